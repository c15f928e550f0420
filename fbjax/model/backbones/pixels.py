"""The patch network without weights: it returns the pixels."""

import flax.linen as nn
import jax

from fbjax.model.backbones.registry import register_backbone


@register_backbone(
    "pixels",
    smallest=1,
    arguments=lambda arrays, cell: {"cell": cell},
    twin=lambda module: {"class": "Pixels", "cell": module.cell},
)
class Pixels(nn.Module):
    """``[N, H, W, 3] -> [N, H/cell, W/cell, 3 cell^2]``: the pixels, in [-1, 1]."""

    cell: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        n, height, width, _ = images.shape
        cells = images.reshape(n, height // self.cell, self.cell, width // self.cell, self.cell, 3)
        return cells.swapaxes(2, 3).reshape(n, height // self.cell, width // self.cell, -1) / 127.5 - 1.0
