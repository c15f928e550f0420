"""What a search is asked, and what it answers."""

import dataclasses
from pathlib import Path
from typing import Literal

from fbjax.data.sources.cells import clean_text
from fbjax.serve.index.collection import Hit

Mode = Literal["hybrid", "dense", "words"]
MEANINGS: dict[Mode, str] = {
    "hybrid": "sums of 1 / (60 + rank) by cosine and by words",
    "dense": "cosines of vectors",
    "words": "BM25 of words",
}
MOST = 1000  # products of one answer
MOST_CHARACTERS = 2000  # of a query


@dataclasses.dataclass(frozen=True)
class Query:
    """What is wanted: words, a picture (a path or encoded bytes), both, or products like that of an id."""

    text: str = ""
    image: str | Path | bytes | None = None
    like: str = ""
    where: str = ""
    mode: Mode | None = None  # default: hybrid for words alone, else dense
    top: int = 10
    rerank: bool = True  # a text alone, where the index has a re-ranker


@dataclasses.dataclass(frozen=True)
class Results:
    """The products found, best first, and the seconds of each stage; of a kept answer there are none."""

    hits: list[Hit]
    mode: Mode
    seconds: dict[str, float]
    notes: list[str]  # words that the model does not know
    reranked: int = 0  # so many of the first hits are in the re-ranker's order, with its scores


def mode_of(query: Query) -> Mode:
    """The mode of a query. Raises ValueError where it asks for nothing, or for too much."""
    if bool(query.like) + bool(query.text or query.image is not None) != 1:
        raise ValueError("give a text, an image, both, or a product to find others like it")
    if not 1 <= query.top <= MOST:
        raise ValueError(f"top {query.top}: ask for 1 to {MOST:,} products")
    check_text(query.text)
    words_alone = query.image is None and not query.like
    mode = query.mode or ("hybrid" if words_alone else "dense")
    if mode not in MEANINGS:
        raise ValueError(f"mode {mode!r} is unknown: use {', '.join(MEANINGS)}")
    if mode == "words" and not words_alone or mode == "hybrid" and not query.text:
        raise ValueError(f"mode {mode} needs a text{' alone' * (mode == 'words')}: use dense")
    return mode


def check_text(text: str) -> None:
    """Raises ValueError on a text that is too long, or blank; there may be none."""
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"the text has {len(text):,} characters: use at most {MOST_CHARACTERS:,}")
    if text and not clean_text(text):
        raise ValueError(f"text {text!r} has no words")
