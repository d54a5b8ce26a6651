"""What `wsiseg evaluate` is made of: comparisons, measures, intervals, tables."""
