"""The image towers of CLIP (Radford et al. 2021) and of SigLIP (Zhai et al. 2023) as patch networks.

The feature map is that of the patches after the last norm. The whole image has CLIP's class token after that norm,
before its projection, or what SigLIP's attention pooling makes of all patches.

A weight file tells all sizes but the number of heads, for which the published models have a rule, and not the
activation. So there is a network for each: `clip_vit` has QuickGELU (OpenAI's weights), `clip_vit_gelu` GELU by the
error function (open_clip's LAION weights), `siglip_vit` GELU by tanh (Hugging Face) and `siglip_vit_gelu` by the error
function (timm). A description beside the file that says otherwise is an error.
"""

import math
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fbjax.model.backbones.layers import ACTIVATIONS, DotAttention, TransformerBlock, resized_positions
from fbjax.model.backbones.registry import register_backbone
from fbjax.model.backbones.resnet import standardised
from fbjax.model.weights.clip_folder import described
from fbjax.model.weights.clip_names import HUGGING_FACE_IMAGES, OPEN_CLIP_IMAGES, TIMM_IMAGES
from fbjax.model.weights.name_maps import OWN, Named, Source

CLIP_MEAN, CLIP_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIGLIP_MEAN = SIGLIP_DEVIATION = (0.5, 0.5, 0.5)  # RGB in 0..1, as above
HEAD_WIDTH, MOST_HEADS = 64, 16


class ImageTower(nn.Module):
    """``[N, H, W, 3] in 0..255 -> ([N, H/patch, W/patch, D], whole image [N, D])``; sides are multiples of `patch`.

    The position table is of `grid` x `grid` patches, and is resized to those of the image. Raises ValueError for other
    sides.
    """

    width: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    patch: int
    grid: int
    activation: str

    mean = deviation = (0.0, 0.0, 0.0)
    epsilon = 0.0
    patch_bias = True
    before_blocks = after_blocks = ()  # names of parameters and modules

    def embedded(self, images: jax.Array) -> jax.Array:
        """Patches [N, h, w, D] without their positions."""
        if any(side % self.patch for side in images.shape[1:3]) and not self.is_initializing():
            raise ValueError(_wrong_size(max(images.shape[1:3]), self.patch))
        sides = (self.patch, self.patch)
        prepared = standardised(images, self.mean, self.deviation)
        return nn.Conv(self.width, sides, sides, "VALID", use_bias=self.patch_bias, name="patches")(prepared)

    def encoded(self, x: jax.Array) -> jax.Array:
        """``[N, L, D] -> [N, L, D]``: through the blocks and the last norm."""
        for i in range(self.num_layers):
            block = TransformerBlock(self.num_heads, self.mlp_dim, self.epsilon, self.activation, name=f"block_{i}")
            x = block(x)
        return nn.LayerNorm(self.epsilon, name="norm")(x)

    def _positions(self, rows: int, columns: int, before: int = 0) -> tuple[jax.Array, jax.Array]:
        """Rows of the table [before, D] of tokens before the patches, and [rows columns, D] of patches."""
        table = self.param("positions", nn.initializers.normal(0.02), (before + self.grid**2, self.width))
        return table[:before], resized_positions(table[before:], rows, columns)


class ClipImageTower(ImageTower):
    """CLIP's: a class token before the patches, a norm before the blocks; the class token is the whole image."""

    mean, deviation, epsilon, patch_bias = CLIP_MEAN, CLIP_DEVIATION, 1e-5, False
    before_blocks, after_blocks = ("patches", "class_token", "positions", "first_norm"), ("norm",)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        x = self.embedded(images)
        n, rows, columns, width = x.shape
        first, others = self._positions(rows, columns, before=1)
        token = first + self.param("class_token", nn.initializers.normal(0.02), (width,))
        patches = x.reshape(n, rows * columns, width) + others
        x = jnp.concatenate([jnp.broadcast_to(token, (n, 1, width)), patches], axis=1)
        x = self.encoded(nn.LayerNorm(self.epsilon, name="first_norm")(x))
        return x[:, 1:].reshape(n, rows, columns, width), x[:, 0]


class SiglipImageTower(ImageTower):
    """SigLIP's: no class token; attention pooling makes the whole image of all patches."""

    mean, deviation, epsilon = SIGLIP_MEAN, SIGLIP_DEVIATION, 1e-6
    before_blocks, after_blocks = ("patches", "positions"), ("norm", "pool")

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        x = self.embedded(images)
        n, rows, columns, width = x.shape
        x = self.encoded(x.reshape(n, rows * columns, width) + self._positions(rows, columns)[1])
        pool = AttentionPool(self.num_heads, self.mlp_dim, self.epsilon, self.activation, name="pool")
        return x.reshape(n, rows, columns, width), pool(x)


class AttentionPool(nn.Module):
    """``[N, L, D] -> [N, D]``: a learned query attends to all of x, ``a = attention(probe, x); a + mlp(norm(a))``."""

    num_heads: int
    mlp_dim: int
    epsilon: float
    activation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, width))
        x = DotAttention(self.num_heads, name="attention")(jnp.broadcast_to(probe, (len(x), 1, width)), x)
        y = nn.Dense(self.mlp_dim, name="mlp_in")(nn.LayerNorm(self.epsilon, name="norm")(x))
        return (x + nn.Dense(width, name="mlp_out")(ACTIVATIONS[self.activation](y)))[:, 0]


def num_heads(width: int) -> int:
    """Heads of the published image towers: of 64 dimensions each up to 16 heads, wider ones beyond."""
    return max(1, min(width // HEAD_WIDTH, MOST_HEADS))


def _sizes(sources: tuple[Source, ...], arrays: dict[str, np.ndarray], cell: int) -> dict[str, int]:
    """The arguments of a tower that its arrays tell, by the names of whichever of `sources` has them."""
    named = Named.find(arrays, sources, "patches/kernel")
    patch, *_, width = named.shape("patches/kernel")
    (mlp_dim,), (rows, _) = named.shape("block_0/mlp_in/bias"), named.shape("positions")
    sizes = {"width": width, "num_layers": named.num_blocks(), "num_heads": num_heads(width), "mlp_dim": mlp_dim}
    return sizes | {"patch": patch, "grid": math.isqrt(rows)}


def _blocks(module: ImageTower) -> tuple[tuple[str, ...], ...]:
    first, *others, last = [(f"block_{i}",) for i in range(module.num_layers)]
    return ((*module.before_blocks, *first), *others, (*last, *module.after_blocks))


def _differences(module: ImageTower, path: Path) -> list[str]:
    """What the description beside the weight file at `path` says otherwise than `module`; [] where there is none."""
    if not (found := described(path.parent)):
        return []
    kind = "clip" if isinstance(module, ClipImageTower) else "siglip"
    if found.kind != kind:
        return [f"{found.path} describes a model of type {found.kind!r}: set patches.network to {found.network!r}"]
    problems = []
    if found.image.activation not in (module.activation, None):
        problems.append(
            f"{found.path} has the activation {found.image.activation!r}, this network {module.activation!r}: set "
            f"patches.network to {found.network!r}"
        )
    for name, theirs, ours in (
        ("heads", found.image.num_heads, module.num_heads),
        ("the norms' epsilon", found.image.epsilon, module.epsilon),
        ("the pictures' mean", found.mean, module.mean),
        ("the pictures' deviation", found.deviation, module.deviation),
    ):
        if theirs is not None and not np.allclose(theirs, ours, rtol=1e-3, atol=0):
            problems.append(f"{found.path} has {name} {theirs}, this network computes with {ours}: it cannot be read")
    return problems


def _wrong_size(side: int, patch: int) -> str:
    below, above = side // patch * patch, -(-side // patch) * patch
    return (
        f"an image of {side} pixels is no multiple of the network's patches of {patch} (set patches.image_size, or "
        f"patches.patch_input_size under geometry 'per_patch', to {below} or {above})"
    )


def _register(name: str, tower: type[ImageTower], activation: str, sources: tuple[Source, ...]) -> None:
    register_backbone(
        name,
        sources=sources,
        arguments=partial(_sizes, sources),
        blocks=_blocks,
        differences=_differences,
    )(partial(tower, activation=activation))


CLIP_SOURCES, SIGLIP_SOURCES = (OWN, HUGGING_FACE_IMAGES, OPEN_CLIP_IMAGES), (OWN, HUGGING_FACE_IMAGES, TIMM_IMAGES)
_register("clip_vit", ClipImageTower, "quick_gelu", CLIP_SOURCES)
_register("clip_vit_gelu", ClipImageTower, "gelu", CLIP_SOURCES)
_register("siglip_vit", SiglipImageTower, "gelu_tanh", SIGLIP_SOURCES)
_register("siglip_vit_gelu", SiglipImageTower, "gelu", SIGLIP_SOURCES)
