"""Evaluation of a trained run: protocols, metrics, and baselines."""
