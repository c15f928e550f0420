"""HTML pages, each in one file: the report of a run, and a ranking. Computes no figures of its own."""
