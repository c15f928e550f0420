"""InceptionV3 in PyTorch operations over torchvision's names: a table of its convolutions, and what joins them.

Kept apart from the network's own code: kernel sizes and channels stand here as torchvision's state dict has them.
"""

import numpy as np
import torch

F = torch.nn.functional
STEM = "1a_3x3 32x3x3x3, 2a_3x3 32x32x3x3, 2b_3x3 64x32x3x3, 3b_1x1 80x64x1x1, 4a_3x3 192x80x3x3"
MIXED_5 = (
    "1x1 64x{0}x1x1, 5x5_1 48x{0}x1x1, 5x5_2 64x48x5x5, 3x3dbl_1 64x{0}x1x1, 3x3dbl_2 96x64x3x3, 3x3dbl_3 96x96x3x3, "
    "_pool {1}x{0}x1x1"
)
MIXED_6A = "3x3 384x288x3x3, 3x3dbl_1 64x288x1x1, 3x3dbl_2 96x64x3x3, 3x3dbl_3 96x96x3x3"
MIXED_6 = (
    "1x1 192x768x1x1, 7x7_1 {0}x768x1x1, 7x7_2 {0}x{0}x1x7, 7x7_3 192x{0}x7x1, 7x7dbl_1 {0}x768x1x1, "
    "7x7dbl_2 {0}x{0}x7x1, 7x7dbl_3 {0}x{0}x1x7, 7x7dbl_4 {0}x{0}x7x1, 7x7dbl_5 192x{0}x1x7, _pool 192x768x1x1"
)
MIXED_7A = (
    "3x3_1 192x768x1x1, 3x3_2 320x192x3x3, 7x7x3_1 192x768x1x1, 7x7x3_2 192x192x1x7, 7x7x3_3 192x192x7x1, "
    "7x7x3_4 192x192x3x3"
)
MIXED_7 = (
    "1x1 320x{0}x1x1, 3x3_1 384x{0}x1x1, 3x3_2a 384x384x1x3, 3x3_2b 384x384x3x1, 3x3dbl_1 448x{0}x1x1, "
    "3x3dbl_2 384x448x3x3, 3x3dbl_3a 384x384x1x3, 3x3dbl_3b 384x384x3x1, _pool 192x{0}x1x1"
)
BLOCKS = {
    **{
        f"5{letter}": MIXED_5.format(*sizes)
        for letter, sizes in zip("bcd", [(192, 32), (256, 64), (288, 64)], strict=True)
    },
    "6a": MIXED_6A,
    **{f"6{letter}": MIXED_6.format(width) for letter, width in zip("bcde", (128, 160, 160, 192), strict=True)},
    "7a": MIXED_7A,
    **{f"7{letter}": MIXED_7.format(inputs) for letter, inputs in zip("bc", (1280, 2048), strict=True)},
}
CHAINS = {  # branches of a block, joined in this order; "a+b": both over what came before; "!" ends in a stride of 2
    "5": ["1x1", "5x5_1 5x5_2", "3x3dbl_1 3x3dbl_2 3x3dbl_3", "average _pool"],
    "6a": ["3x3!", "3x3dbl_1 3x3dbl_2 3x3dbl_3!", "largest"],
    "6": ["1x1", "7x7_1 7x7_2 7x7_3", "7x7dbl_1 7x7dbl_2 7x7dbl_3 7x7dbl_4 7x7dbl_5", "average _pool"],
    "7a": ["3x3_1 3x3_2!", "7x7x3_1 7x7x3_2 7x7x3_3 7x7x3_4!", "largest"],
    "7": ["1x1", "3x3_1 3x3_2a+3x3_2b", "3x3dbl_1 3x3dbl_2 3x3dbl_3a+3x3dbl_3b", "average _pool"],
}


def random_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under torchvision's names, auxiliary classifier and classifier included."""
    rng, state = np.random.default_rng(seed), {}
    rows = [f"Conv2d_{row}" for row in STEM.split(", ")]
    rows += [f"Mixed_{block}.branch{row}" for block, table in BLOCKS.items() for row in table.split(", ")]
    for row in rows + ["AuxLogits.conv0 128x768x1x1"]:
        name, shape = row.split(" ")
        shape = tuple(map(int, shape.split("x")))
        kernel = rng.standard_normal(shape, np.float32) * np.sqrt(2 / np.prod(shape[1:]))
        state[f"{name}.conv.weight"] = torch.tensor(kernel, dtype=torch.float32)
        for variable, low, high in (
            ("weight", 0.7, 1.3),
            ("bias", -0.3, 0.5),
            ("running_mean", -0.3, 0.3),
            ("running_var", 0.5, 1.5),
        ):
            state[f"{name}.bn.{variable}"] = torch.tensor(rng.uniform(low, high, shape[0]), dtype=torch.float32)
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(1000)
    return state | {"fc.weight": torch.zeros(10, 2048), "fc.bias": torch.zeros(10)}


def reference(state: dict[str, torch.Tensor], images: np.ndarray) -> np.ndarray:
    """``[N, H, W, 3] in 0..255 -> [N, h, w, 2048]``, in double precision."""

    def unit(x, name, stride=1, padded=True):
        kernel = state[f"{name}.conv.weight"].double()
        padding = [size // 2 if padded else 0 for size in kernel.shape[2:]]
        x = F.conv2d(x, kernel, stride=stride, padding=padding)
        tensors = [state[f"{name}.bn.{v}"].double() for v in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(x, *tensors, eps=1e-3))

    def step(x, home, part):
        if part == "average":
            return F.avg_pool2d(x, 3, stride=1, padding=1)
        if part == "largest":
            return F.max_pool2d(x, 3, stride=2)
        if "+" in part:
            return torch.cat([step(x, home, each) for each in part.split("+")], dim=1)
        return unit(x, home + part.removesuffix("!"), *((2, False) if part.endswith("!") else ()))

    def chain(x, home, parts):
        for part in parts.split(" "):
            x = step(x, home, part)
        return x

    x = torch.tensor(images / 127.5 - 1.0).permute(0, 3, 1, 2)
    x = unit(unit(x, "Conv2d_1a_3x3", 2, False), "Conv2d_2a_3x3", 1, False)
    x = F.max_pool2d(unit(x, "Conv2d_2b_3x3"), 3, stride=2)
    x = F.max_pool2d(unit(unit(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3", 1, False), 3, stride=2)
    for block in BLOCKS:
        branches = CHAINS.get(block) or CHAINS[block[0]]
        x = torch.cat([chain(x, f"Mixed_{block}.branch", parts) for parts in branches], dim=1)
    return x.permute(0, 2, 3, 1).numpy()
