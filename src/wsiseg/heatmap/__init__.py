"""Tumour maps in memory and on disk: our own, and those that others published."""
