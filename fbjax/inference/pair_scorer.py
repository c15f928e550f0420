"""Match scores of (text, image) pairs: batched, jitted at a few static shapes, each image embedded once.

Pairs are sorted by text length, so that a batch computes little padding.
"""

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit

from fbjax.core.batching import mixed_batches
from fbjax.data.text.wordpiece import PAD_ID
from fbjax.inference.embedder import Embedder, batch_size, embed_batches
from fbjax.inference.token_scorer import TokenScorer
from fbjax.model.fashionbert import FashionBert, match_score
from fbjax.model.patch_features import PatchNetwork
from fbjax.parallel.mesh import by_example, pad_rows, put_batch, replicated

if TYPE_CHECKING:  # bench must not import tensorflow_datasets
    from fbjax.runs.run import Run

BUCKET = 8  # pads a batch's texts to a multiple of this, so that few programs are compiled
IN_FLIGHT = 4  # batches
CPU_PAIRS, ACCELERATOR_PAIRS = 32, 256  # a batch
ON_DEVICE = 4 * 2**30  # bytes of image embeddings that stay on each device; more go back to the host


def match_logits(model: FashionBert, params: dict, ids: jax.Array, image: jax.Array) -> jax.Array:
    """Logits [B, 2] of framed piece ids [B, T] and image embeddings [B, P, D]."""
    text = model.apply({"params": params}, ids, method="embed_text")
    return match_logits_of_embedded(model, params, text, ids != PAD_ID, image)


def match_logits_of_embedded(
    model: FashionBert, params: dict, text: jax.Array, text_mask: jax.Array, image: jax.Array
) -> jax.Array:
    """Logits [B, 2] of embeddings [B, T, D], where `text_mask` [B, T], and [B, P, D]; the last layer computes [CLS]
    alone."""
    apply = partial(model.apply, {"params": params})
    cls = jnp.zeros(text_mask[:, :1].shape, jnp.int32)
    hidden, means = apply(text, text_mask, image, cls, method="encode_pair")
    return apply(hidden[:, 0], means, method="match_logits")


def match_probability(scores: np.ndarray, temperature: float = 1.0, bias: float = 0.0) -> np.ndarray:
    """``sigmoid(score / temperature + bias)``: the probabilities of matches where half of the pairs are matches."""
    return expit(np.asarray(scores, float) / temperature + bias)


def make_scorer(
    run: "Run", mesh, patches: PatchNetwork | None = None, rows: int | None = None
) -> "PairScorer | TokenScorer | Embedder":
    """FashionBERT with its match head where the run scores pairs, a scorer of tokens where it learns late interaction,
    else its embedder.

    `patches`: the network that reads the inputs (default: `run.feature_input`). `rows`: of a batch.
    """
    kind = PairScorer if run.scores_pairs else TokenScorer if run.late_interaction else Embedder
    return kind(run.model, patches or run.feature_input, mesh, rows)


class PairScorer:
    """Scores with any parameters of one model: `variables` hold "fashionbert" and "patches".

    On a CPU a batch is small, so that the MLP's hidden layer stays in the cache. A pair took 1.28 times as long in
    batches of 64 as in batches of 32 (3 layers of width 384, 48 + 16 tokens, 2 cores).
    """

    def __init__(
        self,
        model: FashionBert,
        patches: PatchNetwork,
        mesh,
        pairs_per_batch: int | None = None,
        bucket: int = BUCKET,
    ):
        self.mesh, self._bucket = mesh, bucket
        self.batch_size = batch_size(mesh, pairs_per_batch, CPU_PAIRS, ACCELERATOR_PAIRS)

        def embed(variables, images):
            features = patches.apply(variables["patches"], images)
            return model.apply({"params": variables["fashionbert"]}, features, method="embed_image")

        def score(variables, ids, image):
            return match_score(match_logits(model, variables["fashionbert"], ids, image))

        across, whole = by_example(mesh), replicated(mesh)
        self._embed = jax.jit(embed, in_shardings=(None, across), out_shardings=whole)
        self._score = jax.jit(score, in_shardings=(None, across, across), out_shardings=whole)
        # a program of its own, which compiles in no time: the scorer's does not depend on the number of images
        self._pick = jax.jit(lambda images, rows: images[rows], in_shardings=(whole, across), out_shardings=across)

    def embed_images(self, variables: Any, batches: Iterable[np.ndarray]) -> jax.Array | np.ndarray:
        """Image embeddings [I, P, D] of batches of at most `batch_size` images (or cached features).

        They stay on the devices, each of which holds them all, or lie on the host where they take too much memory.
        """
        on_device, on_host, size = [], [], 0
        for rows in embed_batches(partial(self._embed, variables), batches, self.batch_size, self.mesh):
            size += rows.nbytes
            on_device.append(rows)
            on_device[-IN_FLIGHT:][0].block_until_ready()  # the host reads the next images, but not all at once
            if size > ON_DEVICE:
                on_host += map(np.asarray, on_device)
                on_device.clear()
        if on_host:
            return np.concatenate([*on_host, *map(np.asarray, on_device)])
        return jnp.concatenate(on_device).block_until_ready()

    def score(
        self,
        variables: Any,
        ids: np.ndarray,
        images: jax.Array | np.ndarray,
        pairs: np.ndarray,
        progress: Callable | None = None,
    ) -> np.ndarray:
        """Logit differences [N] of `pairs` [N, 2]: (row of ids [.., T], row of image embeddings [I, P, D])."""
        scores = np.empty(len(pairs), np.float32)
        batches, launched = self._batches(ids, pairs), []

        def collect():
            members, values = launched.pop(0)
            scores[members] = np.asarray(values)[: len(members)]

        for length, members in progress(batches, len(batches), "scoring") if progress else batches:
            launched.append((members, self._launch(variables, ids, images, pairs[members], length)))
            if len(launched) > IN_FLIGHT:  # the host prepares batches while the device computes
                collect()
        while launched:
            collect()
        return scores

    def expected_seconds(
        self, variables: Any, ids: np.ndarray, images: jax.Array | np.ndarray, pairs: np.ndarray
    ) -> float:
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
        return mixed_batches((ids != PAD_ID).sum(axis=1)[pairs[:, 0]], self.batch_size, self._bucket, ids.shape[1])

    def _launch(self, variables, ids, images, pairs, length) -> jax.Array:
        pairs = pad_rows(pairs, self.batch_size)
        texts, rows = ids[pairs[:, 0], :length], pairs[:, 1]
        if isinstance(images, np.ndarray):
            return self._score(variables, *put_batch((texts, images[rows]), self.mesh))
        texts, rows = put_batch((texts, rows.astype(np.int32)), self.mesh)
        return self._score(variables, texts, self._pick(images, rows))
