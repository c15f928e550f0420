"""ResNet and ResNeXt (He et al. 2015, Xie et al. 2016): the patch networks of the authors' release and of the paper.

Padding is PyTorch's, the same on both sides; Keras' own networks pad alike.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fbjax.model.backbones.layers import ConvNorm

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB in 0..1
CAFFE_MEAN = (103.939, 116.779, 123.68)  # BGR in 0..255


def standardised(images: jax.Array) -> jax.Array:
    """RGB in 0..255 as torchvision and Hugging Face prepare it."""
    return (images / 255.0 - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_DEVIATION)


def caffe_centred(images: jax.Array) -> jax.Array:
    """RGB in 0..255 as Caffe and Keras' ResNet50 prepare it: BGR about its mean, in the same units."""
    return images[..., ::-1] - np.float32(CAFFE_MEAN)


class Bottleneck(nn.Module):
    """``relu(x + conv1x1(conv3x3(conv1x1(x))))``, each with its norm; `x` through a 1x1 where shapes differ."""

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

    `strided` says which convolution of a stage's first block halves the map: 0, the first 1x1 (v1: the paper of ResNet,
    Keras), or 1, the 3x3 (v1.5: torchvision). `bottleneck`: channels of the first stage's 3x3, which `groups` share.
    """

    depths: tuple[int, ...]
    prepare: Callable[[jax.Array], jax.Array] = standardised
    strided: int = 1
    epsilon: float = 1e-5
    stem: int = 64
    bottleneck: int = 64
    groups: int = 1

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.prepare(images)
        x = jax.nn.relu(ConvNorm(self.stem, 7, self.epsilon, 2, name="stem")(x))
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # nothing here is below 0, so that no maximum changes
        x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))
        for stage, depth in enumerate(self.depths):
            for block in range(depth):
                halves = stage > 0 and block == 0
                x = Bottleneck(
                    self.bottleneck * 2**stage,
                    4 * self.stem * 2**stage,
                    tuple(2 if halves and i == self.strided else 1 for i in (0, 1)),
                    self.groups,
                    self.epsilon,
                    name=f"stage{stage + 1}_block{block + 1}",
                )(x)
        return x


def resnet50() -> ResNet:
    """v1.5, of torchvision and Hugging Face."""
    return ResNet((3, 4, 6, 3))


def resnet50_v1() -> ResNet:
    """Of Keras (keras.applications), whose weights were Caffe's. Its convolutions' biases stand in the moving means."""
    return ResNet((3, 4, 6, 3), caffe_centred, strided=0, epsilon=1.001e-5)


def resnext101_32x8d() -> ResNet:
    """Of torchvision."""
    return ResNet((3, 4, 23, 3), bottleneck=256, groups=32)
