"""What `wsiseg train` is made of, around the bags, the network and the risk (needs torch)."""
