"""The convolutional patch networks: ``[N, 3, H, W] in 0..255 -> feature map [N, C, h, w]``.

Batch normalisation uses stored moments, which are not trained.
"""

import torch
import torch.nn.functional as F
from torch import nn

CAFFE_MEAN = (103.939, 116.779, 123.68)  # BGR in 0..255
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB in 0..1
MOBILENET_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
MOBILENET_CHANNELS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
LITE_STAGES = ((1, 3, 1), (6, 3, 2), (6, 5, 2), (6, 3, 2), (6, 5, 1), (6, 5, 2), (6, 3, 1))  # expansion, size, stride


class Pixels(nn.Module):
    """The pixels of each cell, in [-1, 1]."""

    def __init__(self, cell: int):
        super().__init__()
        self.cell = cell

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        n, _, height, width = images.shape
        rows, columns = height // self.cell, width // self.cell
        cells = images.reshape(n, 3, rows, self.cell, columns, self.cell).permute(0, 3, 5, 1, 2, 4)
        return cells.reshape(n, -1, rows, columns) / 127.5 - 1.0


class InferenceNorm(nn.Module):
    """``(x - mean) / sqrt(variance + epsilon) * gamma + beta`` over channels, with stored moments."""

    def __init__(self, channels: int, epsilon: float):
        super().__init__()
        self.epsilon = epsilon
        self.gamma, self.beta = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("moving_mean", torch.zeros(channels))
        self.register_buffer("moving_variance", torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.gamma * torch.rsqrt(self.moving_variance + self.epsilon)
        return x * scale[:, None, None] + (self.beta - self.moving_mean * scale)[:, None, None]


class Conv(nn.Module):
    """A convolution without bias; `pads`: zeros at both ends of each axis, or "same": TensorFlow's padding."""

    def __init__(self, inputs: int, outputs: int, size, stride: int = 1, pads=(0, 0), groups: int = 1):
        super().__init__()
        self.size, self.stride, self.pads, self.groups = size, stride, pads, groups
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups, *size).normal_(0, 0.02))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pads = self.pads
        if pads == "same":
            rows, columns = (self._same(cells, size) for cells, size in zip(x.shape[2:], self.size, strict=True))
            x, pads = F.pad(x, (*columns, *rows)), (0, 0)
        return F.conv2d(x, self.weight, None, self.stride, pads, 1, self.groups)

    def _same(self, cells: int, size: int) -> tuple[int, int]:
        whole = max((-(-cells // self.stride) - 1) * self.stride + size - cells, 0)
        return whole // 2, whole - whole // 2


class ConvNorm(nn.Module):
    """A convolution and its norm. `padded`: with PyTorch's padding, which keeps the map's size at stride 1."""

    def __init__(self, inputs, outputs, size, epsilon, stride=1, padded=True, groups=1):
        super().__init__()
        size = (size, size) if isinstance(size, int) else size
        self.conv = Conv(inputs, outputs, size, stride, tuple((s - 1) // 2 * padded for s in size), groups)
        self.bn = InferenceNorm(outputs, epsilon)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x))


class MobileNetV1(nn.Module):
    """RGB in [-1, 1], ReLU6, TensorFlow's padding."""

    def __init__(self, alpha: float):
        super().__init__()
        inputs = int(32 * alpha)
        self.conv1, self.conv1_bn = Conv(3, inputs, (3, 3), 2, "same"), InferenceNorm(inputs, 1e-3)
        for i, (stride, channels) in enumerate(zip(MOBILENET_STRIDES, MOBILENET_CHANNELS, strict=True), start=1):
            outputs = int(channels * alpha)
            setattr(self, f"conv_dw_{i}", Conv(inputs, inputs, (3, 3), stride, "same", inputs))
            setattr(self, f"conv_dw_{i}_bn", InferenceNorm(inputs, 1e-3))
            setattr(self, f"conv_pw_{i}", Conv(inputs, outputs, (1, 1)))
            setattr(self, f"conv_pw_{i}_bn", InferenceNorm(outputs, 1e-3))
            inputs = outputs

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images / 127.5 - 1.0
        places = range(1, len(MOBILENET_STRIDES) + 1)
        for name in ("conv1", *(f"conv_{kind}_{i}" for i in places for kind in ("dw", "pw"))):
            x = F.relu6(getattr(self, f"{name}_bn")(getattr(self, name)(x)))
        return x


class InvertedResidual(nn.Module):
    """``x + project(depthwise(expand(x)))``, without the ``x +`` where shapes differ."""

    def __init__(self, inputs, outputs, expansion, size, stride):
        super().__init__()
        width, self.adds = inputs * expansion, stride == 1 and inputs == outputs
        if expansion > 1:
            self.expand, self.expand_bn = Conv(inputs, width, (1, 1)), InferenceNorm(width, 1e-3)
        self.depthwise = Conv(width, width, (size, size), stride, "same", width)
        self.depthwise_bn = InferenceNorm(width, 1e-3)
        self.project, self.project_bn = Conv(width, outputs, (1, 1)), InferenceNorm(outputs, 1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu6(self.expand_bn(self.expand(x))) if hasattr(self, "expand") else x
        y = F.relu6(self.depthwise_bn(self.depthwise(y)))
        y = self.project_bn(self.project(y))
        return x + y if self.adds else y


class EfficientNetLite(nn.Module):
    """RGB as (x - 127) / 128, ReLU6, TensorFlow's padding; `depths` and `channels` of the seven stages."""

    def __init__(self, depths: list[int], channels: list[int]):
        super().__init__()
        self.stem, self.stem_bn = Conv(3, 32, (3, 3), 2, "same"), InferenceNorm(32, 1e-3)
        inputs, self.blocks = 32, []
        for depth, outputs, (expansion, size, stride) in zip(depths, channels, LITE_STAGES, strict=True):
            for i in range(depth):
                self.blocks.append(f"block_{len(self.blocks)}")
                block = InvertedResidual(inputs, outputs, expansion, size, stride if i == 0 else 1)
                setattr(self, self.blocks[-1], block)
                inputs = outputs

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self.stem_bn(self.stem((images - 127.0) / 128.0)))
        for name in self.blocks:
            x = getattr(self, name)(x)
        return x


class Bottleneck(nn.Module):
    """``relu(x + conv1x1(conv3x3(conv1x1(x))))``; a 1x1 projects `x` where shapes differ."""

    def __init__(self, inputs, inner, outputs, strides, groups, epsilon):
        super().__init__()
        first, second = strides
        self.conv1 = ConvNorm(inputs, inner, 1, epsilon, first)
        self.conv2 = ConvNorm(inner, inner, 3, epsilon, second, groups=groups)
        self.conv3 = ConvNorm(inner, outputs, 1, epsilon)
        if inputs != outputs or first * second > 1:
            self.shortcut = ConvNorm(inputs, outputs, 1, epsilon, first * second)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return F.relu((self.shortcut(x) if hasattr(self, "shortcut") else x) + y)


class ResNet(nn.Module):
    """`strided`: which convolution of a stage's first block halves the map, the 1x1 or the 3x3; `caffe`: BGR about
    its mean in place of RGB standardised."""

    def __init__(self, depths, caffe=False, strided=1, epsilon=1e-5, bottleneck=64, groups=1):
        super().__init__()
        self.caffe, self.blocks = caffe, []
        self.stem, inputs = ConvNorm(3, 64, 7, epsilon, 2), 64
        for stage, depth in enumerate(depths):
            outputs = 256 * 2**stage
            for block in range(depth):
                halves = stage > 0 and block == 0
                strides = tuple(2 if halves and i == strided else 1 for i in (0, 1))
                self.blocks.append(f"stage{stage + 1}_block{block + 1}")
                inner = bottleneck * 2**stage
                setattr(self, self.blocks[-1], Bottleneck(inputs, inner, outputs, strides, groups, epsilon))
                inputs = outputs

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.flip(1) if self.caffe else images / 255.0
        mean = _channels(CAFFE_MEAN if self.caffe else IMAGENET_MEAN, images)
        x = x - mean if self.caffe else (x - mean) / _channels(IMAGENET_DEVIATION, images)
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, 1)
        for name in self.blocks:
            x = getattr(self, name)(x)
        return x


def _channels(values: tuple[float, ...], images: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=images.device)[:, None, None]


class Mixed(nn.Module):
    """A block of InceptionV3: `branches` are chains of (name, outputs, size), joined along the channels.

    A chain may end in two parallel convolutions. `pool`: channels of the 1x1 after an average pool. None: a maximum
    pool with stride 2 replaces both, and the last convolution of each chain has stride 2.
    """

    def __init__(self, inputs: int, branches, pool: int | None):
        super().__init__()
        self.chains, self.pool, self.outputs = [], pool, 0
        for chain in branches:
            width, names = inputs, []
            for i, link in enumerate(chain):
                halves = pool is None and i == len(chain) - 1
                parallel = link if isinstance(link[0], tuple) else (link,)
                for name, outputs, size in parallel:
                    setattr(self, name, ConvNorm(width, outputs, size, 1e-3, 1 + halves, not halves))
                names.append([name for name, _, _ in parallel])
                width = sum(outputs for _, outputs, _ in parallel)
            self.chains.append(names)
            self.outputs += width
        if pool:
            self.branch_pool = ConvNorm(inputs, pool, 1, 1e-3)
        self.outputs += pool or inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = []
        for chain in self.chains:
            y = x
            for parallel in chain:
                y = torch.cat([F.relu(getattr(self, name)(y)) for name in parallel], dim=1)
            found.append(y)
        pooled = F.relu(self.branch_pool(F.avg_pool2d(x, 3, 1, 1))) if self.pool else F.max_pool2d(x, 3, 2)
        return torch.cat([*found, pooled], dim=1)


def mixed5(inputs: int, pool: int) -> Mixed:
    three = (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3))
    five = (("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5))
    return Mixed(inputs, ((("branch1x1", 64, 1),), five, three), pool)


def mixed6a(inputs: int) -> Mixed:
    double = (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3))
    return Mixed(inputs, ((("branch3x3", 384, 3),), double), None)


def mixed6(inputs: int, width: int) -> Mixed:
    wide, tall = (1, 7), (7, 1)
    once = (("branch7x7_1", width, 1), ("branch7x7_2", width, wide), ("branch7x7_3", 192, tall))
    sizes = enumerate((1, tall, wide, tall, wide), start=1)
    twice = tuple((f"branch7x7dbl_{i}", 192 if i == 5 else width, size) for i, size in sizes)
    return Mixed(inputs, ((("branch1x1", 192, 1),), once, twice), 192)


def mixed7a(inputs: int) -> Mixed:
    three = (("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3))
    seven = (("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1)))
    return Mixed(inputs, (three, (*seven, ("branch7x7x3_4", 192, 3))), None)


def mixed7(inputs: int) -> Mixed:
    def split(name):
        return ((f"{name}a", 384, (1, 3)), (f"{name}b", 384, (3, 1)))

    three = (("branch3x3_1", 384, 1), split("branch3x3_2"))
    double = (("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3), split("branch3x3dbl_3"))
    return Mixed(inputs, ((("branch1x1", 320, 1),), three, double), 192)


class InceptionV3(nn.Module):
    """RGB in [-1, 1]; layers that halve the map have no padding."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, 1e-3, 2, False)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3, 1e-3, 1, False)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3, 1e-3)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1, 1e-3, 1, False)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3, 1e-3, 1, False)
        blocks = [("Mixed_5b", mixed5, 32), ("Mixed_5c", mixed5, 64), ("Mixed_5d", mixed5, 64), ("Mixed_6a", mixed6a)]
        blocks += [("Mixed_6b", mixed6, 128), ("Mixed_6c", mixed6, 160), ("Mixed_6d", mixed6, 160)]
        blocks += [("Mixed_6e", mixed6, 192), ("Mixed_7a", mixed7a), ("Mixed_7b", mixed7), ("Mixed_7c", mixed7)]
        inputs, self.blocks = 192, [name for name, *_ in blocks]
        for name, make, *setting in blocks:
            setattr(self, name, block := make(inputs, *setting))
            inputs = block.outputs

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images / 127.5 - 1.0
        for name in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"):
            x = F.relu(getattr(self, name)(x))
        x = F.max_pool2d(x, 3, 2)
        for name in ("Conv2d_3b_1x1", "Conv2d_4a_3x3"):
            x = F.relu(getattr(self, name)(x))
        x = F.max_pool2d(x, 3, 2)
        for name in self.blocks:
            x = getattr(self, name)(x)
        return x


NETWORKS = {network.__name__: network for network in (Pixels, MobileNetV1, ResNet, InceptionV3, EfficientNetLite)}
