"""Explanations of scores as the pages draw them: the picture under its coloured cells, the text with coloured words."""

import re
from pathlib import Path

import numpy as np

from fbjax.data.sources.images import encode_array, encoded
from fbjax.inference.explain import Explanation
from fbjax.inference.model import Model
from fbjax.report.page import picture, write_page
from fbjax.report.sections.aligned import aligned

FAINT = 0.08  # share of the strongest value, below which a word or patch has no colour
WEAK_LOGIT, WEAK_COSINE = 0.1, 0.02  # if all values are smaller, their colours are pale
TITLES = {"attention": "What attends to what", "alignment": "Which word goes to which patch"}
HEIGHT, ALONE_HEIGHT = 280, 560  # pixels of a picture among others, and alone on its page


def weak(scores_matches: bool) -> float:
    """The value from which the strongest part has its full colour."""
    return WEAK_LOGIT if scores_matches else WEAK_COSINE


def as_read(model: Model, image) -> bytes:
    """A picture whose patches lie where the model's do: the picture itself, or the square that the model reads."""
    return encoded(image) if model.run.config.patches.fit == "squash" else encode_array(model.read_image(image))


def write_explanation(text: str, image: bytes, explanation: Explanation, out: str | Path) -> Path:
    """Writes an explanation of `text` with `image` (see `as_read`) to the file `out`."""
    return write_page(
        out,
        "explanation.html",
        title=TITLES.get(explanation.method, "Why this score"),
        method=explanation.method,
        without_words=explanation.without_words,
        without_patches=explanation.without_patches,
        whole_image=explanation.whole_image,
        digits=2 if explanation.scores_matches else 3,
        scores_matches=explanation.scores_matches,
        weak=weak(explanation.scores_matches),
        it=explained("", text, image, explanation, ALONE_HEIGHT),
    )


def explained(what: str, text: str, image: bytes, explanation: Explanation, height: int = HEIGHT) -> dict:
    """An explanation as the template shows it: the picture's cells and the text's words with their values."""
    patches, values = np.asarray(explanation.patches, float), [value for _, value in explanation.words]
    least = 0.0 if explanation.word_patches is not None else weak(explanation.scores_matches)
    maps = explanation.word_patches
    more = aligned(explanation) if explanation.method == "alignment" else {}
    return more | {
        "what": what,
        "picture": picture(image, height),
        "score": explanation.score,
        "method": explanation.method,
        "side": patches.shape[0],
        "cells": _cells(patches, least),
        "maps": [] if maps is None else [_cells(one, least) for one in maps],
        "words": _words(text, explanation.words, max([least, *map(abs, values)])),
        "strongest_patch": float(patches.flat[np.abs(patches).argmax()]),
        "strongest_word": max(explanation.words, key=lambda word: abs(word[1]), default=("", 0.0)),
    }


def _cells(patches: np.ndarray, least: float) -> list[dict]:
    """The cells that have a colour; `least`: the smallest value of full strength."""
    strongest = np.abs(patches).max(initial=least)
    cells = [
        {"x": x, "y": y, "value": float(value), "strength": round(abs(float(value)) / (strongest or 1.0), 3)}
        for (y, x), value in np.ndenumerate(patches)
    ]
    return [cell for cell in cells if cell["strength"] >= FAINT]


def _words(text: str, words: list[tuple[str, float]], strongest: float) -> list[dict]:
    """The text in pieces, words with their values and places; the part after the last word was cut off."""
    pieces, place = [], 0
    for number, (word, value) in enumerate(words):
        start = text.find(word, place)
        if start < 0:  # the text was cleaned before it was split: show the word alone
            start, between = place, " "
        else:
            between = text[place:start]
            place = start + len(word)
        strength = round(abs(value) / (strongest or 1.0), 3)
        pieces.append({"text": between, "value": None})
        shown = value if strength >= FAINT else None
        pieces.append({"text": word, "value": shown, "strength": strength, "number": number})
    rest = text[place:]
    if re.search(r"\w", rest):
        pieces.append({"text": rest, "value": None, "cut": True})
    return pieces
