"""Vectors of texts, images and products, by FashionBERT's encoder.

A batch has a fixed size and texts of one padded length. So a vector does not depend on the rest of its batch, on the
order, or on the number of devices.
"""

import collections
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from fbjax.core.batching import padded_lengths, uniform_batches
from fbjax.data.text.wordpiece import PAD_ID
from fbjax.model.fashionbert import FashionBert
from fbjax.model.ngrams import bag_of_ngrams
from fbjax.model.patch_features import PatchNetwork
from fbjax.parallel.mesh import by_example, pad_rows, put_batch, replicated

if TYPE_CHECKING:  # bench must not import tensorflow_datasets
    from fbjax.runs.run import Run

Batch = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]  # rows [n], framed piece ids [n, T], images [n, ..]
UNITS = ("text", "image", "product")  # what has a vector; a product is a text and its image, read together
BUCKET = 16  # pads a text to a multiple of this, so that few programs are compiled
IN_FLIGHT = 4  # batches
CPU_ROWS, ACCELERATOR_ROWS = 32, 512  # a batch


def embed_vectors(
    model: FashionBert, variables: Any, ids: jax.Array | None, features: jax.Array | None, is_query: bool = False
) -> jax.Array:
    """Vectors [B, E] of framed piece ids [B, T], of patch features [B, P, C], or of both, read together.

    `is_query`: the ids are of queries, which have a segment of their own.
    """
    bag = bag_of_ngrams(variables["ngrams"], ids, model.most_ngrams) if model.reads_bags and ids is not None else None
    apply = partial(model.apply, {"params": variables["fashionbert"]})
    return apply(apply(ids, bag, features, is_query=is_query, method="read"), method="vector")


class Embedder:
    """Vectors [N, E] of length 1 with any parameters of one model: `variables` hold "fashionbert" and "patches".

    The cosine of two is their match score. Raises ValueError where no task of the model trains vectors.
    """

    def __init__(
        self,
        model: FashionBert,
        patches: PatchNetwork,
        mesh,
        rows_per_batch: int | None = None,
        bucket: int = BUCKET,
    ):
        embeds = next((task for task in model.tasks if task.embeds), None)
        if not embeds:
            raise ValueError(
                f"this run makes no vectors, its tasks are {', '.join(task.name for task in model.tasks)}: train one "
                "with the task itc, qpc or style (config.train.start_from starts from this run's weights)"
            )
        self._model, self._mesh, self._bucket, self.size = model, mesh, bucket, embeds.vector_size
        self._reads_queries = embeds.reads_queries
        self.batch_size = batch_size(mesh, rows_per_batch, CPU_ROWS, ACCELERATOR_ROWS)

        def embed(units, variables, ids, features):
            inputs = {"text": (ids, None), "image": (None, features), "product": (ids, features)}
            inputs["query"] = (ids, None, True)
            return {unit: embed_vectors(model, variables, *inputs[unit]) for unit in units}

        across, whole = by_example(mesh), replicated(mesh)
        # a program of its own, which is compiled once, not for each length of the texts
        self._read = jax.jit(patches.apply, in_shardings=(None, across), out_shardings=across)
        self._embed = jax.jit(embed, static_argnums=0, in_shardings=(None, across, across), out_shardings=whole)

    def embed_texts(self, variables: Any, ids: np.ndarray, progress: Callable | None = None) -> np.ndarray:
        """Vectors of framed piece ids [N, T]."""
        return self._of_rows("text", variables, ids, None, progress)

    def embed_queries(self, variables: Any, ids: np.ndarray, progress: Callable | None = None) -> np.ndarray:
        """Vectors of framed piece ids [N, Q] of queries; of texts, where the run has learned from no queries."""
        return self._of_rows("query" if self._reads_queries else "text", variables, ids, None, progress)

    def embed_images(self, variables: Any, batches: Iterable[np.ndarray]) -> np.ndarray:
        """Vectors of batches of at most `batch_size` images (or cached features)."""
        alone = ((np.arange(len(images)), None, images) for images in batches)
        found = [vectors["image"] for _, vectors in self.vectors(variables, alone, ("image",))]
        return np.concatenate([np.empty((0, self.size), np.float32), *found])

    def embed_products(
        self,
        variables: Any,
        ids: np.ndarray,
        read: Callable[[np.ndarray], Iterable[np.ndarray]],
        progress: Callable | None = None,
    ) -> np.ndarray:
        """Vectors of products: framed piece ids [N, T], each with its image.

        ``read(rows)`` yields the images (or cached features) of `rows` [M], a multiple of `batch_size`, in batches of
        that size; few batches are in memory.
        """
        return self._of_rows("product", variables, ids, read, progress)

    def vectors(
        self, variables: Any, batches: Iterable[Batch], units: Sequence[str]
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """(rows, vectors float32 [n, E] of each of `units`) of each batch of at most `batch_size` rows, in order.

        A patch network reads an image once for all `units`. While the devices compute, the host reads the next batches.
        """
        launched: collections.deque = collections.deque()

        def collect():
            rows, found = launched.popleft()
            return rows, {unit: np.asarray(vectors)[: len(rows)] for unit, vectors in found.items()}

        for rows, *inputs in batches:
            whole = tuple(None if part is None else pad_rows(part, self.batch_size) for part in inputs)
            ids, images = put_batch(whole, self._mesh)
            features = None if images is None else self._read(variables["patches"], images)
            launched.append((rows, self._embed(tuple(units), variables, ids, features)))
            if len(launched) > IN_FLIGHT:
                yield collect()
        while launched:
            yield collect()

    def plan(self, lengths: np.ndarray, longest: int, done: int = 0) -> list[tuple[int, np.ndarray]]:
        """(padded length, rows) of the batches of texts of `lengths` [N], without the first `done` of their rows.

        The rows have one order, whatever the batch size: by padded length, then by number.
        """
        rows = np.argsort(padded_lengths(lengths, self._bucket, longest), kind="stable")[done:]
        batches = uniform_batches(lengths[rows], self.batch_size, self._bucket, longest)
        return [(length, rows[places]) for length, places in batches]

    def whole(self, rows: np.ndarray) -> np.ndarray:
        """The rows of a batch, padded to `batch_size`: those that a reader of batches of one size reads for it."""
        return pad_rows(rows, self.batch_size)

    def _of_rows(self, unit: str, variables: Any, ids: np.ndarray, read, progress: Callable | None) -> np.ndarray:
        """Vectors [N, E] of framed piece ids [N, T], read with images where there is a `read`."""
        vectors, planned = np.empty((len(ids), self.size), np.float32), self._batches(ids)
        images = iter(read(np.concatenate([self.whole(rows) for _, rows in planned]))) if read and planned else None
        if progress:
            planned = progress(planned, len(planned), "batches")
        batches = ((rows, ids[rows, :length], next(images) if images else None) for length, rows in planned)
        for rows, found in self.vectors(variables, batches, (unit,)):
            vectors[rows] = found[unit]
        return vectors

    def score(
        self,
        variables: Any,
        ids: np.ndarray,
        images: jax.Array | np.ndarray,
        pairs: np.ndarray,
        progress: Callable | None = None,
    ) -> np.ndarray:
        """Cosines [N] of `pairs` [N, 2]: (row of ids [.., T], row of image vectors [I, E])."""
        texts = self.embed_texts(variables, ids, progress)
        parts = np.array_split(pairs, 64)
        return np.concatenate([np.einsum("ne,ne->n", texts[part[:, 0]], images[part[:, 1]]) for part in parts])

    def expected_seconds(
        self, variables: Any, ids: np.ndarray, images: jax.Array | np.ndarray, pairs: np.ndarray
    ) -> float:
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
        return self.plan((ids != PAD_ID).sum(axis=1), ids.shape[1])


def make_embedder(run: "Run", mesh, patches: PatchNetwork | None = None, rows: int | None = None) -> Embedder:
    """A run's embedder; `patches`: the network that reads the inputs (default: `run.feature_input`)."""
    return Embedder(run.model, patches or run.feature_input, mesh, rows)


def batch_size(mesh, given: int | None, on_cpu: int, on_accelerator: int) -> int:
    """Rows of a batch: `given`, else the default of the devices; rounded up to a multiple of their number."""
    size = given or (on_cpu if jax.default_backend() == "cpu" else on_accelerator)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-size // shards) * shards


def embed_batches(embed: Callable, batches: Iterable[np.ndarray], size: int, mesh) -> Iterator[jax.Array]:
    """``embed(images)`` of each of `batches`, padded to `size` rows for the computation."""
    for images in batches:
        yield embed(put_batch(pad_rows(images, size), mesh))[: len(images)]
