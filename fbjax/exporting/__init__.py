"""Trained runs in formats that others run, each proved equal to the live model, and the way back."""
