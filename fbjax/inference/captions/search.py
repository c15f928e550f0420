"""Beam search over sequences of pieces: pure functions of static shapes, for `jax.jit`.

A sequence is ``[CLS] w1 .. wn [SEP] [PAD] ..`` of T rows, n at most T - 2. Its score is ``log p / (n + 1)^power``, the
length normalisation of common decoders; power 0: none.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fbjax.data.text.wordpiece import PAD_ID


class Found(NamedTuple):
    """The best sequence of each of N products."""

    ids: jax.Array  # [N, T] int32
    scores: jax.Array  # [N] float32


class _Beams(NamedTuple):
    place: jax.Array  # of the last piece
    ids: jax.Array  # [N, W, T]
    logs: jax.Array  # [N, W]: log p of sequences that have no [SEP] yet; -inf where there is none
    best: Found  # of those that have


def beam_search(
    log_probabilities: Callable[[jax.Array, jax.Array], jax.Array],
    num_products: int,
    num_beams: int,
    num_tokens: int,
    cls_id: int,
    sep_id: int,
    power: float = 1.0,
    chunk: int = 16,
) -> Found:
    """The best of all sequences that `num_beams` = W beams finish; with one beam this is greedy decoding.

    ``log_probabilities(ids [N W, t], place) -> [N W, V]`` of the piece that follows `place`; -inf forbids one. It is
    given the first t pieces, `place` among them, where t is a multiple of `chunk` or T: what follows is padding.

    At each place the W likeliest continuations of all beams stay. One that ends in [SEP] is finished, and its score
    counts. The search ends where no beam can beat the best finished sequence: then more steps would change nothing.
    """
    n, w, last = num_products, num_beams, num_tokens - 1

    def open_(beams: _Beams, end: int) -> jax.Array:
        could_be = beams.logs.max(axis=1) / last**power  # log p only falls, and is divided by the length at most
        return (beams.place < min(end, last)) & (could_be > beams.best.scores).any()

    def step(beams: _Beams, end: int) -> _Beams:
        logs = log_probabilities(beams.ids[:, :, :end].reshape(n * w, -1), beams.place).reshape(n, w, -1)
        is_end, size = jnp.arange(logs.shape[-1]) == sep_id, logs.shape[-1]
        logs = jnp.where(is_end | (beams.place + 1 < last), logs, -jnp.inf)  # the last row is for [SEP]
        chosen, at = jax.lax.top_k((beams.logs[..., None] + logs).reshape(n, -1), w)
        ids = jnp.take_along_axis(beams.ids, (at // size)[..., None], axis=1)
        pieces = jnp.where(chosen > -jnp.inf, at % size, PAD_ID)
        ids = jax.lax.dynamic_update_index_in_dim(ids, pieces, beams.place + 1, axis=2)
        ends = pieces == sep_id
        scores = jnp.where(ends, chosen / (beams.place + 1.0) ** power, -jnp.inf)
        best = _better(beams.best, ids, scores)
        return _Beams(beams.place + 1, ids, jnp.where(ends, -jnp.inf, chosen), best)

    ids = jnp.full((n, w, num_tokens), PAD_ID, jnp.int32).at[:, :, 0].set(cls_id)
    logs = jnp.full((n, w), -jnp.inf).at[:, 0].set(0.0)
    beams = _Beams(jnp.int32(0), ids, logs, Found(ids[:, 0], jnp.full(n, -jnp.inf)))
    for end in [*range(chunk, num_tokens, chunk), num_tokens]:
        beams = jax.lax.while_loop(partial(open_, end=end), partial(step, end=end), beams)
    return beams.best


def _better(best: Found, ids: jax.Array, scores: jax.Array) -> Found:
    """Of each product the best of `best` and of ``ids [N, W, T]`` with ``scores [N, W]``."""
    first = scores.argmax(axis=1)
    score = jnp.take_along_axis(scores, first[:, None], axis=1)[:, 0]
    found = jnp.take_along_axis(ids, first[:, None, None], axis=1)[:, 0]
    wins = score > best.scores
    return Found(jnp.where(wins[:, None], found, best.ids), jnp.where(wins, score, best.scores))
