"""Slides and cohorts of them: the only place that knows OpenSlide."""
