"""Vectors of texts, images and products, by FashionBERT's encoder.

A batch has a fixed size and texts of one padded length. So a vector does not depend on the rest of its batch, on the
order, or on the number of devices.
"""

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from fbjax.core.batching import uniform_batches
from fbjax.data.text.wordpiece import PAD_ID
from fbjax.model.fashionbert import FashionBert
from fbjax.model.ngrams import bag_of_ngrams
from fbjax.model.patch_features import PatchNetwork
from fbjax.parallel.mesh import by_example, pad_rows, put_batch, replicated

if TYPE_CHECKING:  # bench must not import tensorflow_datasets
    from fbjax.runs.run import Run

BUCKET = 16  # pads a text to a multiple of this, so that few programs are compiled
CPU_ROWS, ACCELERATOR_ROWS = 32, 512  # a batch


def embed_vectors(model: FashionBert, variables: Any, ids: jax.Array | None, features: jax.Array | None) -> jax.Array:
    """Vectors [B, E] of framed piece ids [B, T], of patch features [B, P, C], or of both, read together."""
    bag = bag_of_ngrams(variables["ngrams"], ids) if model.reads_bags and ids is not None else None
    apply = partial(model.apply, {"params": variables["fashionbert"]})
    return apply(apply(ids, bag, features, method="read"), method="vector")


class Embedder:
    """Vectors [N, E] of length 1 with any parameters of one model: `variables` hold "fashionbert" and "patches".

    The cosine of two is their match score. Raises ValueError where no task of the model trains vectors.
    """

    def __init__(self, model: FashionBert, patches: PatchNetwork, mesh, rows_per_batch: int | None = None):
        embeds = next((task for task in model.tasks if task.embeds), None)
        if not embeds:
            raise ValueError(
                f"this run makes no vectors, its tasks are {', '.join(task.name for task in model.tasks)}: train one "
                "with the task itc (config.train.start_from starts from this run's weights)"
            )
        self._model, self._mesh, self.size = model, mesh, embeds.vector_size
        self.batch_size = batch_size(mesh, rows_per_batch, CPU_ROWS, ACCELERATOR_ROWS)

        def embed(variables, ids, images):
            features = None if images is None else patches.apply(variables["patches"], images)
            return embed_vectors(model, variables, ids, features)

        across = by_example(mesh)
        self._embed = jax.jit(embed, in_shardings=(None, across, across), out_shardings=replicated(mesh))

    def embed_texts(self, variables: Any, ids: np.ndarray, progress: Callable | None = None) -> np.ndarray:
        """Vectors of framed piece ids [N, T]."""
        return self.embed_products(variables, ids, None, progress)

    def embed_images(self, variables: Any, batches: Iterable[np.ndarray]) -> np.ndarray:
        """Vectors of batches of at most `batch_size` images (or cached features)."""
        vectors = embed_batches(partial(self._embed, variables, None), batches, self.batch_size, self._mesh)
        return np.concatenate([np.empty((0, self.size), np.float32), *vectors])

    def embed_products(
        self,
        variables: Any,
        ids: np.ndarray,
        read: Callable[[np.ndarray], Iterable[np.ndarray]] | None,
        progress: Callable | None = None,
    ) -> np.ndarray:
        """Vectors of products: framed piece ids [N, T], each with its image.

        ``read(rows)`` yields the images (or cached features) of `rows` [M], a multiple of `batch_size`, in batches of
        that size; only one batch is in memory. Without it, vectors of texts alone.
        """
        vectors = np.empty((len(ids), self.size), np.float32)
        batches = self._batches(ids)
        filled = [pad_rows(rows, self.batch_size) for _, rows in batches]
        images = iter(read(np.concatenate(filled))) if read and batches else None
        numbered = list(zip(batches, filled, strict=True))
        for (length, rows), whole in progress(numbered, len(batches), "batches") if progress else numbered:
            placed = put_batch((ids[whole, :length], next(images) if images else None), self._mesh)
            vectors[rows] = np.asarray(self._embed(variables, *placed))[: len(rows)]
        return vectors

    def score(
        self, variables: Any, ids: np.ndarray, images: np.ndarray, pairs: np.ndarray, progress: Callable | None = None
    ) -> np.ndarray:
        """Cosines [N] of `pairs` [N, 2]: (row of ids [.., T], row of image vectors [I, E])."""
        texts = self.embed_texts(variables, ids, progress)
        parts = np.array_split(pairs, 64)
        return np.concatenate([np.einsum("ne,ne->n", texts[part[:, 0]], images[part[:, 1]]) for part in parts])

    def expected_seconds(self, variables: Any, ids: np.ndarray, images: np.ndarray, pairs: np.ndarray) -> float:
        """An upper bound of the time of `score`, from one timed batch of the longest texts."""
        *_, (length, rows) = batches = self._batches(ids)
        longest = ids[rows, :length]
        self.embed_texts(variables, longest)
        start = time.perf_counter()
        self.embed_texts(variables, longest)
        return (time.perf_counter() - start) * len(batches)

    def scale(self, variables: Any) -> float:
        """The factor of cosines in the logits of the contrast."""
        return float(self._model.apply({"params": variables["fashionbert"]}, method="logit_scale"))

    def _batches(self, ids: np.ndarray) -> list[tuple[int, np.ndarray]]:
        return uniform_batches((ids != PAD_ID).sum(axis=1), self.batch_size, BUCKET, ids.shape[1])


def make_embedder(run: "Run", mesh, patches: PatchNetwork | None = None) -> Embedder:
    """A run's embedder; `patches`: the network that reads the inputs (default: `run.feature_input`)."""
    return Embedder(run.model, patches or run.feature_input, mesh)


def batch_size(mesh, given: int | None, on_cpu: int, on_accelerator: int) -> int:
    """Rows of a batch: `given`, else the default of the devices; rounded up to a multiple of their number."""
    size = given or (on_cpu if jax.default_backend() == "cpu" else on_accelerator)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-size // shards) * shards


def embed_batches(embed: Callable, batches: Iterable[np.ndarray], size: int, mesh) -> list[np.ndarray]:
    """``embed(images)`` of each of `batches`, padded to `size` rows for the computation."""
    return [np.asarray(embed(put_batch(pad_rows(images, size), mesh)))[: len(images)] for images in batches]
