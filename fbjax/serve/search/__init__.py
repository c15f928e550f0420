"""Asks an index: queries, matches, and changes of single products."""
