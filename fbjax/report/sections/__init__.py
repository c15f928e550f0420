"""Sections of a report, each from what a workdir holds."""
