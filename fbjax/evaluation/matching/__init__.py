"""Whether a text and a picture belong together: how far the scores of pairs can be taken as probabilities."""
