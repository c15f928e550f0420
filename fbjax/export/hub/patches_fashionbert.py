"""Patch networks: ``images [B, S, S, 3] in 0..255 -> features [B, P, C]``, P patches of each image, row by row.

A network is a module ``[N, 3, H, W] in 0..255 -> feature map [N, C, h, w]``, or -> (feature map, features [N, C] of the
whole image).
"""

import torch
import torch.nn.functional as F
from torch import nn

from .networks_fashionbert import NETWORKS
from .vit_fashionbert import VisionTransformer

SIDE_BY_SIDE = "SideBySide"  # several networks: a patch has the features of all, one after another
PATCHES_AT_ONCE_PIXELS = 2**22  # limit of enlarged patches in one pass


class PatchExtractor(nn.Module):
    """Cuts images into patches for its `network`; `patches` is the configuration's section of that name.

    geometry "per_patch": the network reads each patch alone, enlarged, and its map is averaged. "feature_map": the
    network reads the whole image, and each patch is the mean of the cells that it touches. whole_image: the network's
    features of the whole image, or else the mean of its map, come first.
    """

    def __init__(self, patches: dict):
        super().__init__()
        self.geometry, self.whole_image = patches["geometry"], patches["whole_image"]
        self.patch_size, self.patch_input_size = patches["patch_size"], patches["patch_input_size"]
        twin = patches["twin"]
        if twin["class"] == SIDE_BY_SIDE:
            self.network = nn.ModuleDict({name: build_network(part) for name, part in twin["networks"].items()})
            self.levels = {name: part.get("levels", ()) for name, part in twin["networks"].items()}
        else:
            self.network, self.levels = build_network(twin), twin.get("levels", ())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = images.to(torch.float32).permute(0, 3, 1, 2)
        if not isinstance(self.network, nn.ModuleDict):
            return self._features(images, self.network, self.levels)
        parts = [self._features(images, network, self.levels[name]) for name, network in self.network.items()]
        return torch.cat(parts, dim=-1)

    def _features(self, images: torch.Tensor, network: nn.Module, levels) -> torch.Tensor:
        side = images.shape[2] // self.patch_size
        if self.geometry == "feature_map" or self.whole_image:
            feature_map, whole = map_and_whole(output_of(network, levels, images))
        if self.geometry == "feature_map":
            patches = average_cells(feature_map, side).flatten(2).transpose(1, 2)
        else:
            patches = self._per_patch(images, side, network, levels)
        if not self.whole_image:
            return patches
        return torch.cat([whole[:, None], patches], dim=1)

    def _per_patch(self, images: torch.Tensor, side: int, network: nn.Module, levels) -> torch.Tensor:
        size = self.patch_size
        patches = images.reshape(len(images), 3, side, size, side, size).permute(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(-1, 3, size, size)
        at_once = max(1, PATCHES_AT_ONCE_PIXELS // self.patch_input_size**2)
        pooled = [self._pooled(part, network, levels) for part in patches.split(at_once)]
        return torch.cat(pooled).reshape(len(images), side * side, -1)

    def _pooled(self, patches: torch.Tensor, network: nn.Module, levels) -> torch.Tensor:
        if self.patch_input_size != self.patch_size:
            size = (self.patch_input_size, self.patch_input_size)
            patches = F.interpolate(patches, size, mode="bilinear", align_corners=False, antialias=True)
        return map_and_whole(output_of(network, levels, patches))[0].mean(dim=(2, 3))


def output_of(network: nn.Module, levels, images: torch.Tensor):
    """A network's output; with `levels`, its map with those of these modules, averaged to its cells, before it."""
    maps: list[torch.Tensor] = []
    blocks = [getattr(network, name) for name in levels]
    hooks = [block.register_forward_hook(lambda *given: maps.append(given[-1])) for block in blocks]
    try:
        output = network(images)
    finally:
        for hook in hooks:
            hook.remove()
    if not maps:
        return output
    return torch.cat([*(average_cells(level, output.shape[2]) for level in maps), output], dim=1)


def map_and_whole(output) -> tuple[torch.Tensor, torch.Tensor]:
    """A network's feature map [N, C, h, w] and its features of the whole image [N, C], by default the map's mean."""
    return output if isinstance(output, tuple) else (output, output.mean(dim=(2, 3)))


def average_cells(feature_map: torch.Tensor, side: int) -> torch.Tensor:
    """``[B, C, h, w] -> [B, C, side, side]``: each patch the mean of the cells that it touches."""
    for axis in (2, 3):
        size = feature_map.shape[axis]
        bounds = [(i * size // side, -(-(i + 1) * size // side)) for i in range(side)]
        parts = [feature_map.narrow(axis, start, end - start).mean(dim=axis) for start, end in bounds]
        feature_map = torch.stack(parts, dim=axis)
    return feature_map


def build_network(twin: dict) -> nn.Module:
    """The network that `twin` describes: "class", the name of a class beside this file, and its arguments."""
    arguments = {name: value for name, value in twin.items() if name not in ("class", "levels")}
    return (NETWORKS | {"VisionTransformer": VisionTransformer})[twin["class"]](**arguments)
