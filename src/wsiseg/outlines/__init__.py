"""What annotations are made of: outline files, masks, exact coverage of grid cells."""
