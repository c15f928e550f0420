"""The trained model for notebooks and services.

Texts are strings; images are paths, encoded bytes, PIL images or arrays of pixels [H, W, 3] (uint8, or fractions up to
1). Lists have any length and are computed in batches. The same call returns the same bits on the same devices, and
threads may share a model.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from fbjax.core.interface import TextImageModel, distinct, listed
from fbjax.data.sources.images import encoded, is_image, normalise_image, read_pixels
from fbjax.data.sources.tables import clean_text
from fbjax.data.text.wordpiece import PAD_ID
from fbjax.inference.embedder import Embedder, make_embedder
from fbjax.inference.pair_scorer import PairScorer, make_scorer
from fbjax.runs.loaded import LoadedRun


class Model(LoadedRun, TextImageModel):
    """``model.score(texts, images)``, ``model.rank(query, candidates)``, and vectors where the run trained them."""

    def rank(self, query, candidates: Sequence) -> list[tuple[int, float]]:
        """(index in `candidates`, score), best first: one text against images, or one image against texts."""
        candidates = listed(candidates, "candidates")
        queries = [query] * len(candidates)
        if is_image(query):
            scores = self._scores(candidates, queries)
        elif candidates and not any(map(is_image, candidates)):
            raise ValueError("neither the query nor a candidate is an image: is a path wrong?")
        else:
            scores = self._scores(queries, candidates)
        return [(int(i), float(scores[i])) for i in np.argsort(-scores, kind="stable")]

    @cached_property
    def _scorer(self) -> PairScorer | Embedder:
        return make_scorer(self.run, self.mesh, self.run.patches)

    @cached_property
    def _embedder(self) -> Embedder:
        if isinstance(self._scorer, Embedder):
            return self._scorer
        return make_embedder(self.run, self.mesh, self.run.patches)

    def _scores(self, texts: list[str], images: list) -> np.ndarray:
        if not texts:
            return np.empty(0, np.float32)
        (texts, text_places), (images, image_places) = distinct(texts), distinct(images)
        batches = self._read_batches(images, np.arange(len(images)), self._scorer.batch_size)
        embedded = self._scorer.embed_images(self.variables, batches)
        pairs = np.stack([text_places, image_places], axis=1)
        return self._scorer.score(self.variables, self._encode_texts(texts), embedded, pairs)

    def _vectors(self, texts: Any, images: Any) -> np.ndarray:
        read = partial(self._read_batches, images, batch_size=self._embedder.batch_size)
        if texts is None:
            return self._embedder.embed_images(self.variables, read(np.arange(len(images))))
        ids = self._encode_texts(texts)
        if images is None:
            return self._embedder.embed_texts(self.variables, ids)
        return self._embedder.embed_products(self.variables, ids, read)

    def _encode_texts(self, texts: list[str]) -> np.ndarray:
        """Framed piece ids [N, T]."""
        tokens = self.run.config.model.text_tokens
        return np.array([self.encode_text(text) for text in texts], np.int32).reshape(len(texts), tokens)

    def _read_batches(self, images: list, rows: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
        """`images` of `rows` in batches, uint8 [batch_size, S, S, 3]; a batch reads a repeated image once."""
        for start in range(0, len(rows), batch_size):
            distinct, places = np.unique(rows[start : start + batch_size], return_inverse=True)
            yield np.stack([self.read_image(images[row]) for row in distinct])[places]

    def encode_text(self, text: str) -> np.ndarray:
        """Framed piece ids [T], computed as in prepared records."""
        if not isinstance(text, str):
            raise TypeError(f"a text is a string, not {type(text).__name__}")
        ids = self.run.vocabulary.encode([clean_text(text)], self.run.config.model.text_tokens)[0]
        if (ids != PAD_ID).sum() <= 2:  # [CLS] and [SEP]
            raise ValueError(f"text {text[:100]!r} has no words")
        return ids

    def read_image(self, image) -> np.ndarray:
        """uint8 [S, S, 3], computed as in prepared records.

        A run that reads data.arrays needs no TensorFlow here either: its pictures are decoded by `read_pixels`.
        """
        size, fit = self.run.config.patches.image_size, self.run.config.patches.fit
        if self.run.config.data.feature_size:
            raise ValueError("this run reads ready-made features (data.feature_size), not pictures")
        if self.run.config.data.arrays:
            return read_pixels(image, size, fit)
        from fbjax.data.records.pipeline import decode_image

        try:
            return decode_image(normalise_image(encoded(image), size), size, fit)
        except ValueError as error:
            raise ValueError(f"{image if isinstance(image, str | Path) else 'image'}: {error}") from None
