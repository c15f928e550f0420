"""Alignment-guided masking of Kaleido-BERT (Zhuge et al. 2021, arXiv 2103.16110): of a word and the patch that it goes
to, one is hidden.

A coin for each patch says which side of its pairs may be hidden, the same in all tasks. Words and patches of that side
come first where a task picks what to hide, then those of no pair, at last those of the other side. So a task hides as
much as without a guide, and a pair is hidden on both sides only where nothing else that fits is left.

Departs from the paper: it says neither which words of a text are linked nor how a side is chosen.

Axis legend: T text tokens, P image tokens, K grids of an image.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fbjax.model.fashionbert import InputSpec
from fbjax.model.grids.cells import first_cell

NAME = "guide"  # of its random stream, beside those of tasks
FINE = 3  # the coarsest scale whose patches are in pairs, as in the paper
NO_LINK = -1


class Guide(NamedTuple):
    """Ranks of one product: what has a lower one is hidden first."""

    words: jax.Array  # [T] int32: by a word's number in the text
    patches: jax.Array  # [P] int32


def guide(key: jax.Array, links: jax.Array | None, word_ids: jax.Array, num_patches: int) -> Guide | None:
    """The guide by ``links [T or more, K]``, image tokens that each text token goes to, or `NO_LINK`; None without.

    All pieces of a word have the same links, and one that has a link has one in each grid.
    """
    if links is None:
        return None
    links = links[: len(word_ids)].astype(jnp.int32)
    linked = links[:, 0] != NO_LINK
    coins = jax.random.bernoulli(key, shape=(num_patches,))  # of the coarsest grid: a cell's words are on one side
    hides_word = linked & coins[links[:, 0]]
    ranks = jnp.where(linked, jnp.where(hides_word, 0, 2), 1)
    words = jnp.ones_like(word_ids).at[jnp.where(word_ids >= 0, word_ids, len(word_ids))].set(ranks, mode="drop")
    patches = jnp.ones(num_patches, jnp.int32)
    for which, rank in ((linked, 0), (hides_word, 2)):
        patches = patches.at[jnp.where(which[:, None], links, num_patches)].set(rank, mode="drop")
    return Guide(words, patches)


def num_grids(scales: tuple[int, ...]) -> int:
    """K of an image with these `scales`; without scales there is one grid."""
    return sum(scale >= FINE for scale in scales) if scales else 1


def image_tokens(links: np.ndarray, side: int, spec: InputSpec) -> np.ndarray:
    """``links [N, T]``, cells of a grid of `side` x `side`, as the image tokens of `spec` at the cells' centres.

    int16 [N, T, K], coarse grids first.
    """
    rows, columns = (np.arange(side**2) // side + 0.5) / side, (np.arange(side**2) % side + 0.5) / side
    own = round((spec.num_patches - spec.first_patch) ** 0.5)
    grids = [(s, first_cell(spec.scales, s)) for s in spec.scales if s >= FINE] or [(own, spec.first_patch)]
    tokens = [first + (rows * n).astype(int) * n + (columns * n).astype(int) for n, first in grids]
    return np.where(links[..., None] == NO_LINK, NO_LINK, np.stack(tokens, axis=1)[links]).astype(np.int16)
