"""MobileNetV1 (Howard et al. 2017): the light network, for a CPU."""

import flax.linen as nn
import jax

from fbjax.model.backbones.layers import Conv, DepthwiseConv, InferenceNorm, StemConv
from fbjax.model.backbones.registry import register_backbone
from fbjax.model.weights.name_maps import Source

EPSILON = 1e-3
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
CHANNELS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)

KERAS = (  # fbjax uses Keras' names; Keras 3 renamed the depthwise kernels
    Source("Keras' MobileNet", lambda ours: ours, unused=("conv_preds/",)),
    Source("Keras 3's MobileNet", lambda ours: ours.replace("/depthwise_kernel", "/kernel"), unused=("conv_preds/",)),
)


BLOCKS = (("conv1", "conv1_bn"),) + tuple(
    (f"conv_dw_{i}", f"conv_dw_{i}_bn", f"conv_pw_{i}", f"conv_pw_{i}_bn") for i in range(1, len(STRIDES) + 1)
)


@register_backbone(
    "mobilenet_v1",
    sources=KERAS,
    arguments=lambda arrays, cell: {"alpha": arrays["conv1/kernel"].shape[-1] / 32},
    twin=lambda module: {"class": "MobileNetV1", "alpha": module.alpha},
    blocks=lambda module: BLOCKS,
)
class MobileNetV1(nn.Module):
    """MobileNetV1 without its classifier: ``[N, H, W, 3] -> [N, H/32, W/32, 1024 alpha]``.

    RGB scaled to [-1, 1], ReLU6, TensorFlow's SAME padding; parameters carry the names of the Keras release.
    """

    alpha: float

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = images / 127.5 - 1.0
        x = StemConv(int(32 * self.alpha), 3, 2, name="conv1")(x)
        x = jax.nn.relu6(InferenceNorm(EPSILON, name="conv1_bn")(x))
        for i, (stride, channels) in enumerate(zip(STRIDES, CHANNELS, strict=True), start=1):
            x = DepthwiseConv(stride, name=f"conv_dw_{i}")(x)
            x = jax.nn.relu6(InferenceNorm(EPSILON, name=f"conv_dw_{i}_bn")(x))
            x = Conv(int(channels * self.alpha), (1, 1), 1, padded=False, groups=1, name=f"conv_pw_{i}")(x)
            x = jax.nn.relu6(InferenceNorm(EPSILON, name=f"conv_pw_{i}_bn")(x))
        return x
