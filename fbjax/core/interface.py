"""The methods that a live model and an exported model share: scores and vectors of lists of any length."""

import abc
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class TextImageModel(abc.ABC):
    """Takes texts as strings and images of any kind; subclasses implement `_scores` and `_vectors` of lists."""

    @abc.abstractmethod
    def _scores(self, texts: list, images: list) -> np.ndarray: ...

    @abc.abstractmethod
    def _vectors(self, texts: Any, images: Any) -> np.ndarray:
        """Of texts alone, images alone or both together; what is left out is None."""

    def score(self, texts: Sequence[str], images: Sequence) -> np.ndarray:
        """Match scores [N] of text i with image i: logit differences, > 0 where a match is likelier.

        Cosines where the run has no match head.
        """
        return self._scores(*_paired(texts, images))

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors [N, E] of texts, float32 of length 1; their cosines with images or products measure the match."""
        return self._vectors(listed(texts, "texts"), None)

    def embed_image(self, images: Sequence) -> np.ndarray:
        """Vectors [N, E] of images, comparable with those of `embed_text`."""
        return self._vectors(None, listed(images, "images"))

    def embed_product(self, texts: Sequence[str], images: Sequence) -> np.ndarray:
        """Vectors [N, E] of products: text i is read together with image i."""
        return self._vectors(*_paired(texts, images))


def listed(values: Iterable, name: str) -> list:
    if isinstance(values, str | bytes):
        raise TypeError(f"{name} is one {type(values).__name__}: put it into a list")
    return list(values)


def distinct(values: list) -> tuple[list, np.ndarray]:
    """The distinct `values`, and the index of each value there; paths and bytes by value, others by identity."""
    keys = [value if isinstance(value, str | Path | bytes) else id(value) for value in values]
    found = dict(zip(keys, values, strict=True))
    places = {key: place for place, key in enumerate(found)}
    return list(found.values()), np.array([places[key] for key in keys], int)


def _paired(texts: Sequence[str], images: Sequence) -> tuple[list, list]:
    texts, images = listed(texts, "texts"), listed(images, "images")
    if len(texts) != len(images):
        raise ValueError(f"give as many texts as images; got {len(texts)} and {len(images)}")
    return texts, images
