"""The Vision Transformer of DINOv2 as a patch network."""

import torch
import torch.nn.functional as F
from torch import nn

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB in 0..1
EPSILON = 1e-6


class Attention(nn.Module):
    """Self-attention: ``[N, L, D] -> [N, L, D]``."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        for name in ("query", "key", "value", "out"):
            setattr(self, name, nn.Linear(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = (*x.shape[:2], self.num_heads, -1)
        q, k, v = (dense(x).reshape(heads).transpose(1, 2) for dense in (self.query, self.key, self.value))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    """Attention and an MLP over norms, each scaled by a learned factor a dimension and added to its input."""

    def __init__(self, width: int, num_heads: int, mlp_dim: int):
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(width, EPSILON), Attention(width, num_heads)
        self.mlp_norm = nn.LayerNorm(width, EPSILON)
        self.mlp_in, self.mlp_out = nn.Linear(width, mlp_dim), nn.Linear(mlp_dim, width)
        self.attention_scale, self.mlp_scale = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention_scale * self.attention(self.attention_norm(x))
        return x + self.mlp_scale * self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))


class VisionTransformer(nn.Module):
    """``[N, 3, H, W] in 0..255 -> ([N, D, H/patch, W/patch], class token [N, D])``.

    The position table, of a class token and `grid` x `grid` patches, is resized to the image's number of patches.
    """

    def __init__(self, width, num_layers, num_heads, mlp_dim, patch, grid):
        super().__init__()
        self.grid, self.blocks = grid, [f"block_{i}" for i in range(num_layers)]
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + grid**2, width).normal_(0, 0.02))
        for name in self.blocks:
            setattr(self, name, Block(width, num_heads, mlp_dim))
        self.norm = nn.LayerNorm(width, EPSILON)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, deviation = (
            torch.tensor(values, device=images.device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_DEVIATION)
        )
        cells = self.patches((images / 255.0 - mean) / deviation)
        n, width, rows, columns = cells.shape
        x = torch.cat([self.class_token.expand(n, 1, width), cells.flatten(2).transpose(1, 2)], dim=1)
        x = x + self._positions(rows, columns)
        for name in self.blocks:
            x = getattr(self, name)(x)
        x = self.norm(x)
        return x[:, 1:].transpose(1, 2).reshape(n, width, rows, columns), x[:, 0]

    def _positions(self, rows: int, columns: int) -> torch.Tensor:
        if (rows, columns) == (self.grid, self.grid):
            return self.positions
        cells = self.positions[:, 1:].transpose(1, 2).reshape(1, -1, self.grid, self.grid)
        cells = F.interpolate(cells, (rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([self.positions[:, :1], cells.flatten(2).transpose(1, 2)], dim=1)
