"""Vectors of texts, images and products, from the two towers that share FashionBERT's encoder.

Each is computed in a batch of fixed size among texts padded to the same length as itself: what stands beside it, in
which order and on how many devices, does not matter.
"""

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import numpy as np

from fbjax.data.text.wordpiece import PAD_ID
from fbjax.model.fashionbert import FashionBert
from fbjax.model.patch_features import PatchNetwork
from fbjax.parallel.mesh import by_example, pad_rows, put_batch, replicated

BUCKET = 16  # a text's length is rounded up to a multiple of this: as many programs are compiled
CPU_ROWS, ACCELERATOR_ROWS = 32, 512  # in a batch


class Embedder:
    """Vectors [N, E] of length 1 with any parameters of one model: `variables` hold "fashionbert" and "patches".

    The cosine of two is their match score. Raises ValueError where the model has no towers.
    """

    def __init__(self, model: FashionBert, patches: PatchNetwork, mesh, rows_per_batch: int | None = None):
        if not model.embedding_dim:
            raise ValueError(
                "this run has no towers: train it with config.model.embedding_dim above 0 and the task itc"
            )
        self._model, self._mesh, self.size = model, mesh, model.embedding_dim
        if rows_per_batch is None:
            rows_per_batch = CPU_ROWS if jax.default_backend() == "cpu" else ACCELERATOR_ROWS
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        self.batch_size = -(-rows_per_batch // shards) * shards

        def embed(variables, ids, images):
            apply = partial(model.apply, {"params": variables["fashionbert"]})
            text = None if ids is None else apply(ids, method="embed_text")
            if images is not None:
                images = apply(patches.apply(variables["patches"], images), method="embed_image")
            mean = apply(text, None if ids is None else ids != PAD_ID, images, method="tower")
            return apply(mean, method="vector")

        across = by_example(mesh)
        self._embed = jax.jit(embed, in_shardings=(None, across, across), out_shardings=replicated(mesh))

    def embed_texts(self, variables: Any, ids: np.ndarray, progress: Callable | None = None) -> np.ndarray:
        """Vectors of framed piece ids [N, T]."""
        return self._run(variables, ids, None, progress)

    def embed_images(self, variables: Any, batches: Iterable[np.ndarray]) -> np.ndarray:
        """Vectors of batches of at most `batch_size` images (or cached features)."""
        vectors = []
        for images in batches:
            launched = self._embed(variables, None, put_batch(pad_rows(images, self.batch_size), self._mesh))
            vectors.append(np.asarray(launched)[: len(images)])
        return np.concatenate([np.empty((0, self.size), np.float32), *vectors])

    def embed_products(
        self,
        variables: Any,
        ids: np.ndarray,
        read: Callable[[np.ndarray], Iterable[np.ndarray]],
        progress: Callable | None = None,
    ) -> np.ndarray:
        """Vectors of products: framed piece ids [N, T], each with its image.

        ``read(rows)`` gives the images (or cached features) of `rows` [M], a multiple of `batch_size`, in batches of
        that many: no more of them is held at once.
        """
        return self._run(variables, ids, read, progress)

    def score(
        self, variables: Any, ids: np.ndarray, images: np.ndarray, pairs: np.ndarray, progress: Callable | None = None
    ) -> np.ndarray:
        """Cosines [N] of `pairs` [N, 2]: (row of ids [.., T], row of image vectors [I, E])."""
        texts = self.embed_texts(variables, ids, progress)
        return np.concatenate(
            [np.einsum("ne,ne->n", texts[part[:, 0]], images[part[:, 1]]) for part in np.array_split(pairs, 64)]
        )

    def expected_seconds(self, variables: Any, ids: np.ndarray, images: np.ndarray, pairs: np.ndarray) -> float:
        """How long `score` will take at most, from one timed batch of the longest texts."""
        *_, (length, rows) = batches = list(self._batches(ids))
        longest = ids[rows, :length]
        self.embed_texts(variables, longest)
        start = time.perf_counter()
        self.embed_texts(variables, longest)
        return (time.perf_counter() - start) * len(batches)

    def scale(self, variables: Any) -> float:
        """What turns cosines into the logits that the contrast has trained."""
        return float(self._model.apply({"params": variables["fashionbert"]}, method="scale"))

    def _run(self, variables, ids, read, progress) -> np.ndarray:
        vectors = np.empty((len(ids), self.size), np.float32)
        batches = list(self._batches(ids))
        filled = [pad_rows(rows, self.batch_size) for _, rows in batches]
        images = iter(read(np.concatenate(filled))) if read and batches else None
        numbered = list(zip(batches, filled, strict=True))
        for (length, rows), whole in progress(numbered, len(batches), "batches") if progress else numbered:
            placed = put_batch((ids[whole, :length], next(images) if images else None), self._mesh)
            vectors[rows] = np.asarray(self._embed(variables, *placed))[: len(rows)]
        return vectors

    def _batches(self, ids: np.ndarray) -> Iterable[tuple[int, np.ndarray]]:
        """(padded length, rows) of each batch, shortest texts first."""
        lengths = np.minimum(-(-(ids != PAD_ID).sum(axis=1) // BUCKET) * BUCKET, ids.shape[1])
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            for start in range(0, len(rows), self.batch_size):
                yield int(length), rows[start : start + self.batch_size]


def make_embedder(config, model: FashionBert, patches: PatchNetwork, mesh) -> Embedder:
    """The towers of a run that trained them under this `Config`. Raises ValueError where it did not."""
    if "itc" not in config.tasks.names:
        raise ValueError(
            f"this run has no towers, its tasks are {', '.join(config.tasks.names)}: train one with 'itc' in "
            "config.tasks.names and config.model.embedding_dim above 0 "
            "(config.train.start_from takes this one's weights)"
        )
    return Embedder(model, patches, mesh)
