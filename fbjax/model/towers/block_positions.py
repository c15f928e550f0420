"""Where a region of an image lies, as PFAN reads it (Wang et al. 2019, arXiv 1907.09748): by attention to the blocks of
a grid over the image that the region covers.

On the cells of one grid the blocks of a cell are always the same, and the region's features choose among them. With
boxes of several scales, as the paper has, the positions say more.
"""

import math
from functools import cached_property

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fbjax.config.schema import ModelConfig
from fbjax.model.encoder import dense, table

GRID, BLOCKS, SIZE = 16, 15, 200  # blocks a side; blocks of a region, those that it covers most; size of a position
NO_BLOCK = GRID * GRID


class BlockPositions(nn.Module):
    """``features [B, P, C] -> [B, P, 200]`` of regions that are the cells of a square grid, after `first_patch` tokens
    of the whole image.

    ``u = softmax_b(tanh(W v . p_b)), w = softmax_b(overlap_b u_b)``, and the position is ``sum_b w_b p_b`` over the
    blocks b of a region with features v; `overlap` is the share of the region that lies in the block.
    """

    config: ModelConfig
    num_patches: int
    first_patch: int = 0

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        rows, overlaps = self._blocks
        blocks = self.param("blocks", table(self.config, (None, None)), (NO_BLOCK + 1, SIZE))[rows]
        query = dense(self.config, SIZE, ("feature", None), use_bias=False, name="query")(features)
        fit = jnp.tanh(jnp.einsum("bpe,pke->bpk", query.astype(jnp.float32), blocks))
        weights = nn.softmax(overlaps * nn.softmax(fit))
        return jnp.einsum("bpk,pke->bpe", weights, blocks)

    @cached_property
    def _blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """(rows of the table, overlaps) [P, 15] of each region."""
        side = math.isqrt(self.num_patches - self.first_patch)
        whole = np.array([[0.0, 0.0, 1.0, 1.0]] * self.first_patch).reshape(-1, 4)
        boxes = np.concatenate([whole, cells(side)])
        overlaps = block_overlaps(boxes)
        rows = np.argsort(-overlaps, axis=1, kind="stable")[:, :BLOCKS]
        overlaps = np.take_along_axis(overlaps, rows, axis=1)
        return np.where(overlaps > 0, rows, NO_BLOCK), overlaps.astype(np.float32)


def cells(side: int) -> np.ndarray:
    """Boxes [side side, 4] of a grid, row by row: left, top, right and bottom as shares of the image."""
    top, left = (axis.ravel() for axis in np.mgrid[:side, :side] / side)
    return np.stack([left, top, left + 1 / side, top + 1 / side], axis=1)


def block_overlaps(boxes: np.ndarray) -> np.ndarray:
    """The share of each of ``boxes [N, 4]`` that lies in each block, row by row: [N, 256]."""
    blocks = cells(GRID)
    starts, ends = np.maximum(boxes[:, None, :2], blocks[:, :2]), np.minimum(boxes[:, None, 2:], blocks[:, 2:])
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, keepdims=True)
    shared = np.prod(np.maximum(ends - starts, 0.0), axis=2) / area
    return np.where(shared > 1e-9, shared, 0.0)  # not what rounding leaves of two that touch
