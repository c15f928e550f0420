"""Captions that a run writes, beside the texts of their products."""
