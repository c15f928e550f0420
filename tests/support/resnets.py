"""Random networks in PyTorch, and what they compute of images: what the patch networks are held against."""

from functools import cache

import flax.traverse_util
import jax
import numpy as np
import torch
from transformers import ResNetConfig, ResNetForImageClassification

from fbjax.model.weights import name_maps

torch.set_num_threads(1)  # on a busy machine its threads wait for each other
F = torch.nn.functional
IMAGENET = np.array([0.485, 0.456, 0.406]) * 255, np.array([0.229, 0.224, 0.225]) * 255
RESNET50, RESNEXT101 = ((3, 4, 6, 3), 64, 1), ((3, 4, 23, 3), 256, 32)  # blocks, channels of the first 3x3, groups


def randomised(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random kernels, scales and running moments, such that activations neither die nor explode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, generator=generator)
        elif isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight.data, 0.3, 0.9),
                (module.bias.data, -0.3, 0.5),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 1.5),
            ):
                tensor.uniform_(low, high, generator=generator)
    return model.eval()


@cache
def hugging_face_resnet50() -> ResNetForImageClassification:
    return randomised(ResNetForImageClassification(ResNetConfig(num_labels=10)))


def small_hugging_face(downsample_in_bottleneck: bool) -> ResNetForImageClassification:
    sizes = {"embedding_size": 8, "hidden_sizes": [32, 64, 128], "depths": [1, 2, 1], "num_labels": 3}
    return randomised(
        ResNetForImageClassification(ResNetConfig(downsample_in_bottleneck=downsample_in_bottleneck, **sizes))
    )


def feature_map(model: torch.nn.Module, inputs: np.ndarray) -> np.ndarray:
    """Of a Hugging Face network: prepared images [N, H, W, 3] -> [N, h, w, C], in double precision."""
    with torch.no_grad():
        x = model.double().resnet(torch.tensor(inputs).permute(0, 3, 1, 2)).last_hidden_state
    return x.permute(0, 2, 3, 1).numpy()


def pictures(size: int, count: int = 2) -> np.ndarray:
    """Random uint8 images with shapes larger than a pixel, [count, size, size, 3]."""
    rng = np.random.default_rng(size)
    blocks = rng.integers(0, 200, (count, -(-size // 8), -(-size // 8), 3)).repeat(8, axis=1).repeat(8, axis=2)
    return (blocks[:, :size, :size] + rng.integers(0, 56, (count, size, size, 3))).astype(np.uint8)


def as_arrays(state):
    return {name: tensor.float().numpy() for name, tensor in state.items()}


def assert_equal_to_reference(features: np.ndarray, reference: np.ndarray) -> None:
    """Relative error under 1e-4, against a reference whose dimensions are alive in the first place."""
    assert features.shape == reference.shape
    assert (reference.reshape(-1, reference.shape[-1]).std(axis=0) > 1e-3).mean() > 0.5
    assert np.abs(features - reference).max() < 1e-4 * np.abs(reference).max()


def shapes_of(network, size: int = 96) -> dict[str, tuple[int, ...]]:
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), image)["params"]
    return {name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(params, sep="/").items()}


def run(network, sources, arrays: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """The feature map of a network whose weights are a file's arrays."""
    taken, problems = name_maps.take(arrays, sources, shapes_of(network))
    assert problems == []
    params = {"params": flax.traverse_util.unflatten_dict(taken, sep="/")}
    return np.asarray(jax.jit(network.apply)(params, images.astype(np.float32)))


def torchvision_resnet(depths, width, groups, seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict of random weights under torchvision's names, num_batches_tracked and classifier included."""
    rng, state = np.random.default_rng(seed), {}

    def unit(conv, norm, out, inputs, size):
        kernel = rng.standard_normal((out, inputs, size, size), np.float32) * np.sqrt(2 / (inputs * size**2))
        state[f"{conv}.weight"] = torch.tensor(kernel, dtype=torch.float32)
        for name, low, high in (
            ("weight", 0.3, 0.9),
            ("bias", -0.3, 0.5),
            ("running_mean", -0.3, 0.3),
            ("running_var", 0.5, 1.5),
        ):
            state[f"{norm}.{name}"] = torch.tensor(rng.uniform(low, high, out), dtype=torch.float32)
        state[f"{norm}.num_batches_tracked"] = torch.tensor(1000)

    unit("conv1", "bn1", 64, 3, 7)
    inputs = 64
    for layer, depth in enumerate(depths, start=1):
        middle, out = width * 2 ** (layer - 1), 256 * 2 ** (layer - 1)
        for block in range(depth):
            home = f"layer{layer}.{block}."
            unit(home + "conv1", home + "bn1", middle, inputs, 1)
            unit(home + "conv2", home + "bn2", middle, middle // groups, 3)
            unit(home + "conv3", home + "bn3", out, middle, 1)
            if block == 0:
                unit(home + "downsample.0", home + "downsample.1", out, inputs, 1)
            inputs = out
    return state | {"fc.weight": torch.zeros(10, inputs), "fc.bias": torch.zeros(10)}


def torchvision_features(state: dict[str, torch.Tensor], depths, groups: int, images: np.ndarray) -> np.ndarray:
    """``[N, H, W, 3] in 0..255 -> [N, h, w, C]`` by torchvision's names, in double precision; stride in the 3x3."""

    def unit(x, conv, norm, stride=1, groups=1):
        kernel = state[f"{conv}.weight"].double()
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2, groups=groups)
        moments, scale = ("running_mean", "running_var"), ("weight", "bias")
        tensors = [state[f"{norm}.{name}"].double() for name in moments + scale]
        return F.batch_norm(x, *tensors, eps=1e-5)

    mean, deviation = IMAGENET
    x = torch.tensor((images - mean) / deviation).permute(0, 3, 1, 2)
    x = F.max_pool2d(F.relu(unit(x, "conv1", "bn1", stride=2)), 3, stride=2, padding=1)
    for layer, depth in enumerate(depths, start=1):
        for block in range(depth):
            home = f"layer{layer}.{block}."
            stride = 2 if block == 0 and layer > 1 else 1
            y = F.relu(unit(x, home + "conv1", home + "bn1"))
            y = F.relu(unit(y, home + "conv2", home + "bn2", stride, groups))
            y = unit(y, home + "conv3", home + "bn3")
            if block == 0:
                x = unit(x, home + "downsample.0", home + "downsample.1", stride)
            x = F.relu(x + y)
    return x.permute(0, 2, 3, 1).numpy()
