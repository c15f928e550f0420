"""The trained model for notebooks and services.

Texts are strings; images are paths, encoded bytes, PIL images or arrays of pixels [H, W, 3] (uint8, or fractions up to
1). Lists may be of any length and are computed in batches. The same call gives the same figures, to the last bit on the
same devices; a model may be used by several threads at once.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from fbjax.data.batches.pipeline import decode_image
from fbjax.data.sources.images import encoded, is_image, normalise_image
from fbjax.data.sources.tables import clean_text
from fbjax.data.text.wordpiece import PAD_ID
from fbjax.inference.embedder import Embedder, make_embedder
from fbjax.inference.pair_scorer import PairScorer, make_scorer
from fbjax.parallel.mesh import make_mesh
from fbjax.runs.run import Run
from fbjax.runs.trained import load_params


@dataclasses.dataclass(frozen=True)
class Model:
    """``model.score(texts, images)``, ``model.rank(query, candidates)``, and vectors where the run trained towers."""

    run: Run = dataclasses.field(repr=False)
    step: int
    variables: Any = dataclasses.field(repr=False)  # "fashionbert" and "patches", as the scorer takes them
    _scorer: PairScorer | Embedder = dataclasses.field(repr=False)

    @classmethod
    def load(cls, workdir: str | Path, step: int | None = None) -> "Model":
        """The best checkpoint in `workdir` by validation AUC, or that of `step`."""
        run = Run.open(workdir)
        mesh = make_mesh(run.config.mesh)
        step, params = load_params(run, workdir, mesh, step)
        scorer = make_scorer(run.config, run.model, run.patches, mesh)
        return cls(run, step, {"patches": run.patches.params} | params, scorer)

    def score(self, texts: Sequence[str], images: Sequence) -> np.ndarray:
        """Match scores [N] of each text with the image beside it: logit differences, > 0 where a match is likelier.

        Of a run that has towers only: cosines.
        """
        texts, images = _listed(texts, "texts"), _listed(images, "images")
        if len(texts) != len(images):
            raise ValueError(f"score takes as many texts as images; got {len(texts)} and {len(images)}")
        return self._score(texts, images, np.stack([np.arange(len(texts))] * 2, axis=1))

    def rank(self, query, candidates: Sequence) -> list[tuple[int, float]]:
        """(place in `candidates`, score), best first: one text against images, or one image against texts."""
        candidates = _listed(candidates, "candidates")
        places = np.arange(len(candidates))
        if is_image(query):
            scores = self._score(candidates, [query], np.stack([places, np.zeros_like(places)], axis=1))
        elif candidates and not any(map(is_image, candidates)):
            raise ValueError("neither the query nor a candidate is an image: is a path wrong?")
        else:
            scores = self._score([query], candidates, np.stack([np.zeros_like(places), places], axis=1))
        return [(int(i), float(scores[i])) for i in np.argsort(-scores, kind="stable")]

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors [N, E] of texts, float32 of length 1; the cosine with an image's or product's is their match."""
        return self._towers.embed_texts(self.variables, self._encode_texts(_listed(texts, "texts")))

    def embed_image(self, images: Sequence) -> np.ndarray:
        """Vectors [N, E] of images, as `embed_text` gives them of texts."""
        images = _listed(images, "images")
        batches = self._read_batches(images, np.arange(len(images)), self._towers.batch_size)
        return self._towers.embed_images(self.variables, batches)

    def embed_product(self, texts: Sequence[str], images: Sequence) -> np.ndarray:
        """Vectors [N, E] of products, each text read together with the image beside it."""
        texts, images, towers = _listed(texts, "texts"), _listed(images, "images"), self._towers
        if len(texts) != len(images):
            raise ValueError(f"embed_product takes as many texts as images; got {len(texts)} and {len(images)}")
        read = partial(self._read_batches, images, batch_size=towers.batch_size)
        return towers.embed_products(self.variables, self._encode_texts(texts), read)

    @cached_property
    def _towers(self) -> Embedder:
        if isinstance(self._scorer, Embedder):
            return self._scorer
        return make_embedder(self.run.config, self.run.model, self.run.patches, make_mesh(self.run.config.mesh))

    def _score(self, texts: list[str], images: list, pairs: np.ndarray) -> np.ndarray:
        if not len(pairs):
            return np.empty(0, np.float32)
        loaded = self._read_batches(images, np.arange(len(images)), self._scorer.batch_size)
        embedded = self._scorer.embed_images(self.variables, loaded)
        return self._scorer.score(self.variables, self._encode_texts(texts), embedded, pairs)

    def _encode_texts(self, texts: list[str]) -> np.ndarray:
        """Framed piece ids [N, T]."""
        tokens = self.run.config.model.text_tokens
        return np.array([self.encode_text(text) for text in texts], np.int32).reshape(len(texts), tokens)

    def _read_batches(self, images: list, rows: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
        """`images` of `rows` in batches, uint8 [batch_size, S, S, 3] each, one that a batch repeats read once."""
        for start in range(0, len(rows), batch_size):
            distinct, places = np.unique(rows[start : start + batch_size], return_inverse=True)
            yield np.stack([self.read_image(images[row]) for row in distinct])[places]

    def encode_text(self, text: str) -> np.ndarray:
        """Framed piece ids [T], by the path that prepared records take."""
        if not isinstance(text, str):
            raise TypeError(f"a text is a string, not {type(text).__name__}")
        ids = self.run.vocabulary.encode([clean_text(text)], self.run.config.model.text_tokens)[0]
        if (ids != PAD_ID).sum() <= 2:  # [CLS] and [SEP]
            raise ValueError(f"text {text[:100]!r} has no words")
        return ids

    def read_image(self, image) -> np.ndarray:
        """uint8 [S, S, 3], by the path that prepared records take."""
        size = self.run.config.patches.image_size
        if self.run.config.patches.ready_made:
            raise ValueError("this run reads ready-made features (patches.network 'features'): it takes no picture")
        try:
            return decode_image(normalise_image(encoded(image), size), size)
        except ValueError as error:
            raise ValueError(f"{image if isinstance(image, str | Path) else 'image'}: {error}") from None


def _listed(values, name: str) -> list:
    if isinstance(values, str | bytes):
        raise TypeError(f"{name} is one {type(values).__name__}: put it into a list")
    return list(values)
