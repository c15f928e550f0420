"""Match scores of (text, image) pairs: batched, jitted at a few static shapes, each image embedded once.

Pairs are sorted by text length, so that a batch computes hardly any padding; only [CLS] leaves the last layer.
"""

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fbjax.data.text.wordpiece import PAD_ID
from fbjax.inference.embedder import Embedder
from fbjax.model.fashionbert import FashionBert, match_score
from fbjax.model.patch_features import PatchNetwork
from fbjax.parallel.mesh import by_example, pad_rows, put_batch, replicated

BUCKET = 8  # a batch's text length is rounded up to a multiple of this: as many programs are compiled
IN_FLIGHT = 4  # batches
CPU_PAIRS, ACCELERATOR_PAIRS = 32, 256  # in a batch


def make_scorer(config, model: FashionBert, patches: PatchNetwork, mesh) -> "PairScorer | Embedder":
    """What gives a pair's match score under a `Config`: FashionBERT where it learns alignment, else its towers."""
    return (PairScorer if "tia" in config.tasks.names else Embedder)(model, patches, mesh)


class PairScorer:
    """Scores with any parameters of one model: `variables` hold "fashionbert" and "patches".

    On a CPU a batch is small, so that the MLP's hidden layer stays in its cache: 64 pairs at a time took 1.28 times as
    long a pair as 32 (3 layers of width 384, 48 + 16 tokens, 2 cores).
    """

    def __init__(self, model: FashionBert, patches: PatchNetwork, mesh, pairs_per_batch: int | None = None):
        self._mesh = mesh
        if pairs_per_batch is None:
            pairs_per_batch = CPU_PAIRS if jax.default_backend() == "cpu" else ACCELERATOR_PAIRS
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        self.batch_size = -(-pairs_per_batch // shards) * shards

        def embed(variables, images):
            features = patches.apply(variables["patches"], images)
            return model.apply({"params": variables["fashionbert"]}, features, method="embed_image")

        def score(variables, ids, image):
            apply = partial(model.apply, {"params": variables["fashionbert"]})
            text = apply(ids, method="embed_text")
            cls = jnp.zeros((len(ids), 1), jnp.int32)
            hidden, means = apply(text, ids != PAD_ID, image, cls, method="encode_pair")
            return match_score(apply(hidden[:, 0], means, method="tia_logits"))

        across, whole = by_example(mesh), replicated(mesh)
        self._embed = jax.jit(embed, in_shardings=(None, across), out_shardings=whole)
        self._score = jax.jit(score, in_shardings=(None, across, across), out_shardings=whole)

    def embed_images(self, variables: Any, batches: Iterable[np.ndarray]) -> np.ndarray:
        """Image embeddings [I, P, D] of batches of at most `batch_size` images (or cached features)."""
        embedded = []
        for images in batches:
            whole = put_batch(pad_rows(images, self.batch_size), self._mesh)
            embedded.append(np.asarray(self._embed(variables, whole))[: len(images)])
        return np.concatenate(embedded)

    def score(
        self, variables: Any, ids: np.ndarray, images: np.ndarray, pairs: np.ndarray, progress: Callable | None = None
    ) -> np.ndarray:
        """Logit differences [N] of `pairs` [N, 2]: (row of ids [.., T], row of image embeddings [I, P, D])."""
        scores = np.empty(len(pairs), np.float32)
        batches, launched = self._batches(ids, pairs), []
        for length, members in progress(batches, len(batches), "scoring") if progress else batches:
            launched.append((members, self._launch(variables, ids, images, pairs[members], length)))
            if len(launched) > IN_FLIGHT:  # the host prepares batches while the device computes
                _collect(scores, launched.pop(0))
        for item in launched:
            _collect(scores, item)
        return scores

    def expected_seconds(self, variables: Any, ids: np.ndarray, images: np.ndarray, pairs: np.ndarray) -> float:
        """How long `score` will take, from one timed batch of every shape (compiled first)."""
        by_length = dict(batches := self._batches(ids, pairs))
        total = 0.0
        for length, members in by_length.items():
            self._launch(variables, ids, images, pairs[members], length).block_until_ready()
            start = time.perf_counter()
            self._launch(variables, ids, images, pairs[members], length).block_until_ready()
            total += (time.perf_counter() - start) * sum(length == other for other, _ in batches)
        return total

    def _batches(self, ids: np.ndarray, pairs: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """(text length, members of `pairs`) of each batch, shortest texts first."""
        lengths = (ids != PAD_ID).sum(axis=1)[pairs[:, 0]]
        order = np.argsort(lengths, kind="stable")
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        return [(min(-(-int(lengths[b[-1]]) // BUCKET) * BUCKET, ids.shape[1]), b) for b in batches]

    def _launch(self, variables, ids, images, pairs, length) -> jax.Array:
        batch = (ids[pairs[:, 0], :length], images[pairs[:, 1]])
        return self._score(variables, *put_batch(tuple(pad_rows(x, self.batch_size) for x in batch), self._mesh))


def _collect(scores: np.ndarray, launched) -> None:
    members, values = launched
    scores[members] = np.asarray(values)[: len(members)]
