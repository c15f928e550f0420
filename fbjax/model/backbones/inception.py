"""InceptionV3 (Szegedy et al. 2015), the paper's other patch network, with torchvision's operations and names.

Convolutions that halve the map, and three of the stem, have no padding. So the map has fewer cells than pixels / 32,
and images need 75 pixels or more.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fbjax.model.backbones.layers import ConvNorm
from fbjax.model.backbones.registry import register_backbone
from fbjax.model.weights.name_maps import OWN, torch_source

EPSILON = 1e-3


def _torchvision(layer: str) -> tuple[str, str]:
    return f"{layer.replace('/', '.')}.conv", f"{layer.replace('/', '.')}.bn"


TORCHVISION = torch_source("torchvision's InceptionV3", _torchvision, ("fc.", "AuxLogits."))


class Mixed(nn.Module):
    """A block of branches joined along the channels; `conv` is a convolution, a norm and ReLU under a branch's name."""

    def conv(self, x: jax.Array, name: str, channels: int, size: int | tuple[int, int] = 1, stride: int = 1):
        return jax.nn.relu(ConvNorm(channels, size, EPSILON, stride, padded=stride == 1, name=name)(x))

    def pooled(self, x: jax.Array, channels: int) -> jax.Array:
        return self.conv(nn.avg_pool(x, window_shape=(3, 3), strides=(1, 1), padding="SAME"), "branch_pool", channels)

    def shrunk(self, x: jax.Array) -> jax.Array:
        return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))


class Mixed5(Mixed):
    """Branches 1x1, 5x5 and two 3x3: 224 channels and those of the `pool` branch."""

    pool: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        five = self.conv(self.conv(x, "branch5x5_1", 48), "branch5x5_2", 64, 5)
        three = self.conv(self.conv(x, "branch3x3dbl_1", 64), "branch3x3dbl_2", 96, 3)
        three = self.conv(three, "branch3x3dbl_3", 96, 3)
        return jnp.concatenate([self.conv(x, "branch1x1", 64), five, three, self.pooled(x, self.pool)], axis=-1)


class Mixed6a(Mixed):
    """Halves the map and adds 480 channels."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        double = self.conv(self.conv(x, "branch3x3dbl_1", 64), "branch3x3dbl_2", 96, 3)
        double = self.conv(double, "branch3x3dbl_3", 96, 3, 2)
        return jnp.concatenate([self.conv(x, "branch3x3", 384, 3, 2), double, self.shrunk(x)], axis=-1)


class Mixed6(Mixed):
    """7x7 factored into 1x7 and 7x1, once and twice, with `width` channels: 768 channels."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        wide, tall = (1, 7), (7, 1)
        once = self.conv(self.conv(x, "branch7x7_1", self.width), "branch7x7_2", self.width, wide)
        once = self.conv(once, "branch7x7_3", 192, tall)
        twice = self.conv(x, "branch7x7dbl_1", self.width)
        for i, size in ((2, tall), (3, wide), (4, tall)):
            twice = self.conv(twice, f"branch7x7dbl_{i}", self.width, size)
        twice = self.conv(twice, "branch7x7dbl_5", 192, wide)
        return jnp.concatenate([self.conv(x, "branch1x1", 192), once, twice, self.pooled(x, 192)], axis=-1)


class Mixed7a(Mixed):
    """Halves the map and adds 512 channels."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = self.conv(self.conv(x, "branch3x3_1", 192), "branch3x3_2", 320, 3, 2)
        seven = self.conv(self.conv(x, "branch7x7x3_1", 192), "branch7x7x3_2", 192, (1, 7))
        seven = self.conv(self.conv(seven, "branch7x7x3_3", 192, (7, 1)), "branch7x7x3_4", 192, 3, 2)
        return jnp.concatenate([three, seven, self.shrunk(x)], axis=-1)


class Mixed7(Mixed):
    """3x3 factored into parallel 1x3 and 3x1: 2048 channels."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = self.conv(x, "branch3x3_1", 384)
        double = self.conv(self.conv(x, "branch3x3dbl_1", 448), "branch3x3dbl_2", 384, 3)

        def split(x: jax.Array, name: str) -> jax.Array:
            both = self.conv(x, f"{name}a", 384, (1, 3)), self.conv(x, f"{name}b", 384, (3, 1))
            return jnp.concatenate(both, axis=-1)

        branches = self.conv(x, "branch1x1", 320), split(three, "branch3x3_2"), split(double, "branch3x3dbl_3")
        return jnp.concatenate([*branches, self.pooled(x, 192)], axis=-1)


BLOCKS = [
    *((f"Conv2d_{name}",) for name in ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")),
    *((f"Mixed_{name}",) for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")),
]


@register_backbone(
    "inception_v3",
    sources=(OWN, TORCHVISION),
    smallest=75,
    twin=lambda module: {"class": "InceptionV3"},
    blocks=lambda module: BLOCKS,
)
class InceptionV3(nn.Module):
    """Without its classifiers: ``[N, H, W, 3] in 0..255 -> [N, h, w, 2048]``, 8 x 8 cells of 299 x 299 pixels.

    RGB is scaled to [-1, 1], as in torchvision's pretrained network (transform_input).
    """

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        def conv(x, name, channels, size, stride=1, padded=False):
            return jax.nn.relu(ConvNorm(channels, size, EPSILON, stride, padded, name=name)(x))

        x = conv(images / 127.5 - 1.0, "Conv2d_1a_3x3", 32, 3, 2)
        x = conv(conv(x, "Conv2d_2a_3x3", 32, 3), "Conv2d_2b_3x3", 64, 3, padded=True)
        x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))
        x = conv(conv(x, "Conv2d_3b_1x1", 80, 1), "Conv2d_4a_3x3", 192, 3)
        x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))
        for name, pool in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = Mixed5(pool, name=name)(x)
        x = Mixed6a(name="Mixed_6a")(x)
        for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            x = Mixed6(width, name=name)(x)
        x = Mixed7a(name="Mixed_7a")(x)
        return Mixed7(name="Mixed_7c")(Mixed7(name="Mixed_7b")(x))
