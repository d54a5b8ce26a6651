"""What `wsiseg tile` is made of: stain, choice of tissue, placement, packed pixels."""
