"""What `wsiseg predict` is made of: windows, maps, their files and the order of work."""
