"""A trained run in formats of other runtimes, each proved equal to the live model."""
