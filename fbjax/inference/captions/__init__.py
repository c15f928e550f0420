"""Captions of pictures, written piece by piece."""
