"""Vectors of a whole catalogue, in files."""
