"""What reports are drawn with: pages, plots, pictures."""
