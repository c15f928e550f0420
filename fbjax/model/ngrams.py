"""Bags of n-grams: which words and pairs of neighbouring words a text has, each with its TF-IDF weight.

All of it is a pure function of framed piece ids, so it runs inside the jitted step, in an embedder and in an export.
A word is the multilinear hash of its pieces (Carter & Wegman 1979), a pair that of two words; the vocabulary is the
sorted array of the hashes that enough training texts have. Texts without spaces may use pieces in place of words.
"""

import unicodedata
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fbjax.data.text.stop_words import STOP_WORDS

LONGEST_WORD = 8  # pieces of a word that its hash reads
FEWEST_TEXTS = 2
IN_BUCKET = 8  # codes
ROWS = 128
_FACTORS = np.random.default_rng(0).integers(-(2**31), 2**31, LONGEST_WORD + 2, np.int32) | np.int32(1)
Ngrams = dict[str, Any]  # of a vocabulary of V pieces and M n-grams; {} where there are none
TYPES = {
    **dict.fromkeys(("continues", "stop_word", "left_out"), np.bool_),  # [V], of pieces
    "codes": np.int32,  # [M], sorted
    "idf": np.float32,  # [M]
    "first": np.int32,  # of `_buckets`
}


class Bag(NamedTuple):
    """The n-grams of B texts of T pieces, in T places; a place without one has weight 0."""

    rows: jax.Array  # [B, T] int32: rows of the vocabulary
    weights: jax.Array  # [B, T] float32


def piece_kinds(pieces: Iterable[str], *, unit: str) -> Ngrams:
    """Of each piece of a vocabulary, bool [V]: does it continue a word, is it a stop word, is it left out?

    Left out are special pieces and those without a letter, digit or vowel mark. `unit` "pieces": every piece is a word
    of its own.
    """
    pieces = list(pieces)
    special = [len(piece) > 2 and piece[0] == "[" and piece[-1] == "]" for piece in pieces]
    spoken = [any(letter.isalnum() or unicodedata.category(letter)[0] == "M" for letter in piece) for piece in pieces]
    return {
        "continues": np.array([unit == "words" and piece.startswith("##") for piece in pieces]),
        "stop_word": np.array([piece in STOP_WORDS for piece in pieces]),
        "left_out": np.array(special) | ~np.array(spoken),
    }


def ngram_codes(kinds: Ngrams, ids: jax.Array) -> jax.Array:
    """``ids [B, T] -> codes [B, 2 T]`` int32: the words in their order, then the pairs of neighbours; 0: none."""
    words = _packed(*_words(kinds, ids))
    following = _shifted(words, -1)
    pairs = words * _FACTORS[-2] + following * _FACTORS[-1]
    return jax.lax.concatenate([words, jnp.where((words != 0) & (following != 0), pairs, 0)], 1)


def _words(kinds: Ngrams, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether a word that counts ends at each place of ``ids [B, T]``, and the hash of the pieces up to there."""
    kinds = jax.tree.map(jnp.asarray, kinds)
    number, continues = ids + 1, kinds["continues"][ids]
    word, inside = number * _FACTORS[0], jnp.ones(ids.shape, bool)
    for back in range(1, LONGEST_WORD):
        inside = inside & _shifted(continues, back - 1)
        word = word + jnp.where(inside, _shifted(number, back) * _FACTORS[back], 0)
    ends = ~_shifted(continues, -1)
    return ends & ~(kinds["stop_word"][ids] & ~continues) & ~kinds["left_out"][ids], word


def make_ngrams(texts: Iterable[np.ndarray], kinds: Ngrams) -> Ngrams:
    """The n-grams of at least `FEWEST_TEXTS` of the `texts`, batches of framed ids [b, T].

    idf as scikit-learn's: ``1 + log((1 + N) / (1 + texts with it))``. Raises ValueError where none is frequent enough.
    """
    find, num_texts = jax.jit(ngram_codes), 0
    counts = np.zeros(0, np.int64), np.zeros(0, np.int32)
    for ids in texts:
        num_texts += len(ids)
        codes = np.sort(np.asarray(find(kinds, ids)), axis=1)
        first = np.concatenate([codes[:, :1] != 0, codes[:, 1:] != codes[:, :-1]], axis=1) & (codes != 0)
        found, times = np.unique(codes[first], return_counts=True)
        codes, places = np.unique(np.concatenate([counts[1], found]), return_inverse=True)
        counts = np.bincount(places, np.concatenate([counts[0], times])).astype(np.int64), codes
    times, codes = counts
    kept = times >= FEWEST_TEXTS
    if not kept.any():
        raise ValueError(f"no word is in {FEWEST_TEXTS} of the {num_texts:,} training texts: there is nothing to learn")
    idf = 1 + np.log((1 + num_texts) / (1 + times[kept]))
    return kinds | {"codes": codes[kept], "idf": idf.astype(np.float32), "first": _buckets(codes[kept])}


def random_ngrams(vocabulary_size: int, count: int) -> Ngrams:
    """At most `count` n-grams that no text has, over pieces that are all words: to plan and to time with."""
    codes = np.unique(np.random.default_rng(0).integers(-(2**31), 2**31, count, np.int32))
    none, idf = np.zeros(vocabulary_size, bool), np.ones(len(codes), np.float32)
    kinds = dict.fromkeys(("continues", "stop_word", "left_out"), none)
    return kinds | {"codes": codes, "idf": idf, "first": _buckets(codes)}


def num_rows(ngrams: Ngrams) -> int:
    """Rows of a table with a vector for each n-gram: a multiple of `ROWS`, which a mesh divides; 0 without n-grams."""
    return -(-len(ngrams["codes"]) // ROWS) * ROWS if ngrams else 0


def bag_of_ngrams(ngrams: Ngrams, ids: jax.Array, most: int) -> Bag:
    """The first `most` known n-grams of framed ids [B, T], weighted by idf, the weights of length 1.

    G is 2 T or `most`. So a bag does not depend on how far its text is padded.
    """
    ngrams = jax.tree.map(jnp.asarray, ngrams)
    rows = _rows(ngrams, ngram_codes(ngrams, ids))
    packed = _first(_packed(rows >= 0, rows + 1), most)
    rows = jnp.maximum(packed - 1, 0)
    weights = jnp.where(packed > 0, ngrams["idf"][rows], 0.0)
    return Bag(rows, weights * jax.lax.rsqrt(jnp.square(weights).sum(axis=1, keepdims=True) + 1e-12))


def words_of_bag(ngrams: Ngrams, ids: jax.Array, most: int, words: jax.Array) -> jax.Array:
    """The two words of each n-gram of `bag_of_ngrams`, ``[B, G, 2]``; -1: no second one, or no n-gram.

    `words` [B, T]: the number of each piece's word.
    """
    ngrams = jax.tree.map(jnp.asarray, ngrams)
    known = _rows(ngrams, ngram_codes(ngrams, ids)) >= 0
    first = _packed(_words(ngrams, ids)[0], words + 1)
    parts = (
        jnp.concatenate([first, first], axis=1),
        jnp.concatenate([jnp.zeros_like(first), _shifted(first, -1)], axis=1),
    )
    return jnp.stack([_first(_packed(known, part), most) for part in parts], axis=-1) - 1


def _first(packed: jax.Array, most: int) -> jax.Array:
    """The first `most` of ``packed [B, 2 T]``; zeros in place of the others where T is a symbol, as in exports."""
    if isinstance(packed.shape[1], int):
        return packed[:, :most]
    return jnp.where(jax.lax.broadcasted_iota(jnp.int32, packed.shape, 1) < most, packed, 0)


def _buckets(codes: np.ndarray) -> np.ndarray:
    """First rows of the sorted `codes` [M] by their leading bits, and M: [2^k + 1] with at most `IN_BUCKET` each."""
    for bits in range(1, 32):
        edges = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1) + 1, dtype=np.int64) << (32 - bits)
        first = np.searchsorted(codes, edges).astype(np.int32)
        if np.diff(first).max() <= IN_BUCKET:
            break
    return first


def _rows(ngrams: Ngrams, wanted: jax.Array) -> jax.Array:
    """The row of each of the codes `wanted`, -1 where there is none."""
    first, codes = ngrams["first"], ngrams["codes"]
    bits = (len(first) - 1).bit_length() - 1
    start = first[(wanted >> (32 - bits)) + 2 ** (bits - 1)]
    row = jnp.full_like(wanted, -1)
    for place in range(IN_BUCKET):
        at = jnp.minimum(start + place, len(codes) - 1)
        row = jnp.where((codes[at] == wanted) & (wanted != 0), at, row)
    return row


def _packed(kept: jax.Array, x: jax.Array) -> jax.Array:
    """``x [B, T]`` where `kept`, moved to the front of its row in the same order, then zeros.

    A sum into zeros, in which the rest adds 0 where it stands: jax2onnx 0.13 converts no scatter that drops indices or
    comes from a vmap. Rows from an iota let XLA keep each on its device.
    """
    row, own = (jax.lax.broadcasted_iota(jnp.int32, (*x.shape, 1), axis) for axis in (0, 1))
    place = jnp.where(kept[..., None], jnp.cumsum(kept, axis=1, dtype=jnp.int32)[..., None] - 1, own)
    at = jax.lax.concatenate([row, place], 2)
    axes = jax.lax.ScatterDimensionNumbers((), inserted_window_dims=(0, 1), scatter_dims_to_operand_dims=(0, 1))
    kept_x = jnp.where(kept, x, 0)
    return jax.lax.scatter_add(jnp.zeros_like(x), at, kept_x, axes, mode="promise_in_bounds")


def _shifted(x: jax.Array, by: int) -> jax.Array:
    """``x [B, T]`` moved `by` places to the right, or to the left where negative; zeros come in.

    By `jax.lax.concatenate`: of jnp's, jax2onnx 0.13 takes the first part's length for that of the whole.
    """
    gap = jnp.zeros((x.shape[0], abs(by)), x.dtype)
    if by >= 0:
        return jax.lax.concatenate([gap, x], 1)[:, : x.shape[1]]
    return jax.lax.concatenate([x, gap], 1)[:, -by:]
