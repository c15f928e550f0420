"""The patch network without weights: the pixels themselves."""

import flax.linen as nn
import jax


class Pixels(nn.Module):
    """``[N, H, W, 3] -> [N, H/cell, W/cell, 3 cell^2]``: the pixels themselves in [-1, 1]; needs no weights."""

    cell: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        n, height, width, _ = images.shape
        cells = images.reshape(n, height // self.cell, self.cell, width // self.cell, self.cell, 3)
        return cells.swapaxes(2, 3).reshape(n, height // self.cell, width // self.cell, -1) / 127.5 - 1.0
