"""EfficientNet-Lite in PyTorch, head and classifier included, under the names of EfficientNet-PyTorch.

Kept apart from the network's own code: a row a block, as the released files have them.
"""

import numpy as np
import torch
from torch import nn

F = nn.functional
LITE0 = (  # outputs, expansion, kernel, stride
    *[(16, 1, 3, 1)],
    *[(24, 6, 3, 2), (24, 6, 3, 1)],
    *[(40, 6, 5, 2), (40, 6, 5, 1)],
    *[(80, 6, 3, 2), (80, 6, 3, 1), (80, 6, 3, 1)],
    *[(112, 6, 5, 1), (112, 6, 5, 1), (112, 6, 5, 1)],
    *[(192, 6, 5, 2), (192, 6, 5, 1), (192, 6, 5, 1), (192, 6, 5, 1)],
    *[(320, 6, 3, 1)],
)
LITE2 = (
    *[(16, 1, 3, 1)],
    *[(24, 6, 3, 2), (24, 6, 3, 1), (24, 6, 3, 1)],
    *[(48, 6, 5, 2), (48, 6, 5, 1), (48, 6, 5, 1)],
    *[(88, 6, 3, 2), (88, 6, 3, 1), (88, 6, 3, 1), (88, 6, 3, 1)],
    *[(120, 6, 5, 1), (120, 6, 5, 1), (120, 6, 5, 1), (120, 6, 5, 1)],
    *[(208, 6, 5, 2), (208, 6, 5, 1), (208, 6, 5, 1), (208, 6, 5, 1), (208, 6, 5, 1)],
    *[(352, 6, 3, 1)],
)


def conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, groups=groups, bias=False)


def same(x: torch.Tensor, layer: nn.Conv2d) -> torch.Tensor:
    """`layer` over `x` with TensorFlow's padding: where it is odd, the bottom and the right get the extra row."""
    (size, _), (stride, _) = layer.kernel_size, layer.stride
    tall, wide = ((-(-cells // stride) - 1) * stride + size - cells for cells in x.shape[2:])
    tall, wide = max(tall, 0), max(wide, 0)
    return layer(F.pad(x, (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2)))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, expansion: int, size: int, stride: int):
        super().__init__()
        width = inputs * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = conv(inputs, width, 1), nn.BatchNorm2d(width, eps=1e-3)
        self._depthwise_conv, self._bn1 = conv(width, width, size, stride, width), nn.BatchNorm2d(width, eps=1e-3)
        self._project_conv, self._bn2 = conv(width, outputs, 1), nn.BatchNorm2d(outputs, eps=1e-3)
        self.expansion, self.has_skip = expansion, stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expansion > 1 else x
        y = F.relu6(self._bn1(same(y, self._depthwise_conv)))
        y = self._bn2(self._project_conv(y))
        return y + x if self.has_skip else y


class Lite(nn.Module):
    def __init__(self, rows):
        super().__init__()
        self._conv_stem, self._bn0 = conv(3, 32, 3, 2), nn.BatchNorm2d(32, eps=1e-3)
        inputs = [32, *(outputs for outputs, *_ in rows)]
        self._blocks = nn.ModuleList(Block(width, *row) for width, row in zip(inputs, rows, strict=False))
        self._conv_head, self._bn1 = conv(inputs[-1], 1280, 1), nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 10)

    def blocks(self, images: np.ndarray) -> np.ndarray:
        """``[N, H, W, 3] in 0..255 -> [N, h, w, C]`` after the last block, in double precision."""
        with torch.no_grad():
            x = torch.tensor((images - 127.0) / 128.0).permute(0, 3, 1, 2)
            x = F.relu6(self._bn0(same(x, self._conv_stem)))
            for block in self._blocks:
                x = block(x)
        return x.permute(0, 2, 3, 1).numpy()
