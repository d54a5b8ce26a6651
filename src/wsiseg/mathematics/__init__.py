"""Pure mathematics, which never sees a file: the grid of cells, pixel measures, learning from slide labels."""
