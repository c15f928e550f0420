"""ResNet and ResNeXt (He et al. 2015, Xie et al. 2016): the patch networks of the authors' release and of the paper.

Padding is symmetric, as in PyTorch and in Keras' ResNets.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fbjax.model.backbones.layers import ConvNorm
from fbjax.model.backbones.registry import register_backbone
from fbjax.model.weights.name_maps import OWN, Source, torch_source

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB in 0..1
CAFFE_MEAN = (103.939, 116.779, 123.68)  # BGR in 0..255


def standardised(
    images: jax.Array,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    deviation: tuple[float, ...] = IMAGENET_DEVIATION,
) -> jax.Array:
    """RGB in 0..255, standardised by a mean and a deviation of RGB in 0..1; by default those of torchvision."""
    return (images / 255.0 - np.float32(mean)) / np.float32(deviation)


def caffe_centred(images: jax.Array) -> jax.Array:
    """RGB in 0..255, as in Caffe and Keras' ResNet50: BGR minus its mean."""
    return images[..., ::-1] - np.float32(CAFFE_MEAN)


class Bottleneck(nn.Module):
    """``relu(x + conv1x1(conv3x3(conv1x1(x))))``, each with its norm; a 1x1 projects `x` where shapes differ."""

    bottleneck: int
    channels: int
    strides: tuple[int, int]  # of the first 1x1 and of the 3x3
    groups: int
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        first, second = self.strides
        y = jax.nn.relu(ConvNorm(self.bottleneck, 1, self.epsilon, first, name="conv1")(x))
        y = jax.nn.relu(ConvNorm(self.bottleneck, 3, self.epsilon, second, groups=self.groups, name="conv2")(y))
        y = ConvNorm(self.channels, 1, self.epsilon, name="conv3")(y)
        if x.shape != y.shape:
            x = ConvNorm(self.channels, 1, self.epsilon, first * second, name="shortcut")(x)
        return jax.nn.relu(x + y)


class ResNet(nn.Module):
    """Without its classifier: ``[N, H, W, 3] in 0..255 -> [N, H/32, W/32, 32 stem]``, 2048 channels at full width.

    `strided`: the convolution of a stage's first block that halves the map, 0: the first 1x1 (v1: the ResNet paper,
    Keras), or 1: the 3x3 (v1.5: torchvision). `bottleneck`: channels of the first stage's 3x3, in `groups` groups.
    """

    depths: tuple[int, ...]
    prepare: Callable[[jax.Array], jax.Array] = standardised
    strided: int = 1
    epsilon: float = 1e-5
    stem: int = 64
    bottleneck: int = 64
    groups: int = 1

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = self.prepare(images)
        x = jax.nn.relu(ConvNorm(self.stem, 7, self.epsilon, 2, name="stem")(x))
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # no value is below 0, so padding changes no maximum
        x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))
        for stage, depth in enumerate(self.depths):
            for block in range(depth):
                halves = stage > 0 and block == 0
                strides = tuple(2 if halves and i == self.strided else 1 for i in (0, 1))
                sizes, name = (
                    (self.bottleneck * 2**stage, 4 * self.stem * 2**stage),
                    f"stage{stage + 1}_block{block + 1}",
                )
                x = Bottleneck(*sizes, strides, self.groups, self.epsilon, name=name)(x)
        return x


def _place(layer: str) -> tuple[int, int, str]:
    """``stage3_block2/conv1 -> (3, 2, "conv1")``, counted from 1."""
    block, part = layer.split("/")
    stage, block = block.removeprefix("stage").split("_block")
    return int(stage), int(block), part


def _torchvision(layer: str) -> tuple[str, str]:
    if layer == "stem":
        return "conv1", "bn1"
    stage, block, part = _place(layer)
    home = f"layer{stage}.{block - 1}"
    if part == "shortcut":
        return f"{home}.downsample.0", f"{home}.downsample.1"
    return f"{home}.{part}", f"{home}.{part.replace('conv', 'bn')}"


def _hugging_face(layer: str) -> tuple[str, str]:
    home = "embedder.embedder"
    if layer != "stem":
        stage, block, part = _place(layer)
        home = f"encoder.stages.{stage - 1}.layers.{block - 1}."
        home += part if part == "shortcut" else f"layer.{int(part.removeprefix('conv')) - 1}"
    return f"{home}.convolution", f"{home}.normalization"


def _keras(ours: str) -> str:
    layer, part, variable = ours.rsplit("/", 2)
    name = "conv1"
    if layer != "stem":
        stage, block, conv = _place(layer)
        name = f"conv{stage + 1}_block{block}_{0 if conv == 'shortcut' else conv.removeprefix('conv')}"
    return f"{name}_{part}/{variable}"


def _keras_bias(moving_mean: str) -> str:
    return _keras(moving_mean).replace("bn/moving_mean", "conv/bias")


TORCHVISION = torch_source("torchvision's ResNet", _torchvision, ("fc.",))
HUGGING_FACE = torch_source("Hugging Face's ResNet", _hugging_face, ("classifier.",), ("", "resnet."))
KERAS = Source("Keras' ResNet50", _keras, unused=("predictions/", "probs/", "fc1000/"), bias=_keras_bias)


def _twin(module: ResNet) -> dict:
    settings = {name: getattr(module, name) for name in ("strided", "epsilon", "bottleneck", "groups")}
    return {"class": "ResNet", "depths": list(module.depths), "caffe": module.prepare is caffe_centred} | settings


def _blocks(module: ResNet) -> list[tuple[str]]:
    stages = enumerate(module.depths, start=1)
    return [("stem",), *((f"stage{stage}_block{block + 1}",) for stage, depth in stages for block in range(depth))]


@register_backbone("resnet50", sources=(OWN, TORCHVISION, HUGGING_FACE), twin=_twin, blocks=_blocks)
def resnet50() -> ResNet:
    """v1.5, of torchvision and Hugging Face."""
    return ResNet((3, 4, 6, 3))


@register_backbone("resnet50_v1", sources=(OWN, KERAS), twin=_twin, blocks=_blocks)
def resnet50_v1() -> ResNet:
    """Of Keras (keras.applications), with Caffe's weights. The moving means include the convolutions' biases."""
    return ResNet((3, 4, 6, 3), caffe_centred, strided=0, epsilon=1.001e-5)


@register_backbone("resnext101_32x8d", sources=(OWN, TORCHVISION), twin=_twin, blocks=_blocks)
def resnext101_32x8d() -> ResNet:
    """Of torchvision."""
    return ResNet((3, 4, 23, 3), bottleneck=256, groups=32)
