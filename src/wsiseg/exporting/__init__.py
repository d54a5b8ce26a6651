"""What `wsiseg export` is made of: graphs, precisions, parity, other people's models (needs torch)."""
