"""An explanation: a value for each word of a text and each patch of an image."""

import dataclasses
from typing import Self

import numpy as np

from fbjax.inference.explain.pair import Read


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A score and a value for each part of the pair.

    Values of `gradient` and `occlusion` have the score's unit, logits or cosine: > 0 speaks for the match, < 0 against
    it. Those of `attention` are shares of what [CLS] attends to, from 0 to 1; they speak neither for nor against.
    Those of `alignment` are mean cosines of a word with the patches that it goes to, and of a patch with its words.
    """

    method: str
    score: float
    scores_matches: bool  # whether the score is a logit difference, > 0 where a match is likelier, or else a cosine
    words: list[tuple[str, float]]  # in the order of the text, without those cut off
    patches: np.ndarray  # [side, side], from the top left
    whole_image: float | None = None  # value of the token of the whole image, where there is one
    without_words: float | None = None  # score with every word masked
    without_patches: float | None = None  # score with every patch zeroed
    word_patches: np.ndarray | None = None  # [words, side, side] share of each word's attention or mass to a patch

    @classmethod
    def of(cls, method: str, read: Read, score: float, by_word: np.ndarray, by_token: np.ndarray, **more) -> Self:
        """From values of words [>= W] and of image tokens [P]."""
        words = [(word, float(value)) for word, value in zip(read.words, by_word, strict=False)]
        whole = float(by_token[0]) if read.whole_image else None
        return cls(method, float(score), read.scores_matches, words, read.grid(by_token), whole, **more)

    def as_json(self) -> dict:
        """A tree of plain values."""
        values = dataclasses.asdict(self) | {"words": [{"word": word, "value": value} for word, value in self.words]}
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}
