"""What a slide is read with: formats, pixel size, levels, blocks."""
