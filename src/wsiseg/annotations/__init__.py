"""Truth about slides: outlines, masks and labels of other programs, and how much of a cell they cover."""
