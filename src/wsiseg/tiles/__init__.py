"""Tissue and the tiles that cover it: found, placed, stored, and `tile`, the verb that does so."""
