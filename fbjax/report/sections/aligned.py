"""An alignment as the pages draw it: the picture with its patch grid, and each word in the colour of its patch."""

import numpy as np

from fbjax.inference.explain import Explanation

GOLDEN_ANGLE = 137.5  # degrees of hue between one colour and the next, so that neighbours are told apart


def aligned(explanation: Explanation) -> dict:
    """For each word the patch that takes most of it; for each such patch, its colour and words.

    Patches are numbered from 1, from the top left, row by row.
    """
    side, words = explanation.patches.shape[0], explanation.words
    shares = np.asarray(explanation.word_patches).reshape(-1, side * side)
    strongest = shares.argmax(axis=1).tolist()
    colours = {p: f"hsl({GOLDEN_ANGLE * i % 360:.0f} 70% 45%)" for i, p in enumerate(sorted(set(strongest)))}
    goes = [
        {"patch": p + 1, "share": float(own[p]), "cosine": value, "colour": colours[p]}
        for p, own, (_, value) in zip(strongest, shares, words, strict=True)
    ]
    theirs = {p: [word for q, (word, _) in zip(strongest, words, strict=True) if q == p] for p in colours}
    taken = [
        {"number": p + 1, "x": p % side, "y": p // side, "colour": colour, "words": ", ".join(theirs[p])}
        for p, colour in colours.items()
    ]
    return {"goes": goes, "taken": taken}
