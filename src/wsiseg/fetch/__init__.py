"""Public slides, maps and models, one module a source; every byte comes through `http.py`, checked."""
