"""HTML pages for people: the report of a run and a ranking, each one file with everything in it.

The only room that knows Jinja and Matplotlib. It reads what a run has left behind and computes no figures of its own.
"""
