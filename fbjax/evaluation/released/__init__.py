"""Evaluation as the authors' release does it: on its prediction files, and with its miscount."""
