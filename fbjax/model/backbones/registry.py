"""Which patch networks there are, and how each is built from a weight file."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from fbjax.model.backbones.inception import InceptionV3
from fbjax.model.backbones.mobilenet import MobileNetV1
from fbjax.model.backbones.pixels import Pixels
from fbjax.model.backbones.resnet import resnet50, resnet50_v1, resnext101_32x8d
from fbjax.model.weights import name_maps
from fbjax.model.weights.files import FORMATS, read_arrays
from fbjax.model.weights.name_maps import Source


@dataclasses.dataclass(frozen=True)
class NetworkKind:
    """How a network is built from a file's arrays: ``build(arrays, cell) -> module``, `cell` for `pixels` alone.

    `sources`: the kinds of file that its weights may come from; none: it has no weights. `smallest`: the side in pixels
    of the smallest image that it takes.
    """

    build: Callable[[dict[str, np.ndarray], int], nn.Module]
    sources: tuple[Source, ...] = ()
    smallest: int = 32

    @property
    def needs_weights(self) -> bool:
        return bool(self.sources)


NETWORKS = {
    "pixels": NetworkKind(lambda arrays, cell: Pixels(cell), smallest=1),
    "mobilenet_v1": NetworkKind(
        lambda arrays, cell: MobileNetV1(alpha=arrays["conv1/kernel"].shape[-1] / 32), name_maps.KERAS_MOBILENET
    ),
    "resnet50": NetworkKind(
        lambda arrays, cell: resnet50(), (name_maps.OWN, name_maps.TORCHVISION_RESNET, name_maps.HUGGING_FACE_RESNET)
    ),
    "resnet50_v1": NetworkKind(lambda arrays, cell: resnet50_v1(), (name_maps.OWN, name_maps.KERAS_RESNET)),
    "resnext101_32x8d": NetworkKind(
        lambda arrays, cell: resnext101_32x8d(), (name_maps.OWN, name_maps.TORCHVISION_RESNET)
    ),
    "inception_v3": NetworkKind(
        lambda arrays, cell: InceptionV3(), (name_maps.OWN, name_maps.TORCHVISION_INCEPTION), smallest=75
    ),
}


def _load(name: str, path: str | Path) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """The network `name` and its parameters by our names, float32, from the file at `path`."""
    if not path:
        raise ValueError(f"patch network {name!r} needs weights: set config.patches.weights to {FORMATS}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no patch network weights at {path}: set config.patches.weights to {FORMATS}")
    kind, arrays = NETWORKS[name], read_arrays(path)
    try:
        network = kind.build(arrays, 0)
    except KeyError as error:
        raise ValueError(f"{path} is no {name} file: it lacks {error} and {_identify(arrays)}") from None
    weights, problems = name_maps.take(arrays, kind.sources, _shapes(network, kind.smallest))
    if problems and (not weights or _owner(arrays, first=name)[0] not in (name, None)):
        raise ValueError(f"{path} is no {name} file: it {_identify(arrays)}")
    if problems:
        raise ValueError(f"these are not {name} weights:\n  {name_maps.listed(problems)}")
    return network, weights


@functools.cache
def _shapes(network: nn.Module, size: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters, by name, of a network that takes images of `size` pixels."""
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), image)["params"]
    return {name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(params, sep="/").items()}


def _owner(arrays: dict[str, np.ndarray], first: str = "") -> tuple[str, Source] | tuple[None, None]:
    """Which of `NETWORKS` the arrays of a file have all parameters of, and as whose; `first` is tried before others."""
    for name in sorted(NETWORKS, key=lambda name: name != first):
        kind = NETWORKS[name]
        try:
            shapes = _shapes(kind.build(arrays, 0), kind.smallest) if kind.needs_weights else {}
        except KeyError:
            continue
        for source in kind.sources:
            if name_maps.follows(arrays, source, shapes):
                return name, source
    return None, None


def _identify(arrays: dict[str, np.ndarray]) -> str:
    name, source = _owner(arrays)
    if name:
        return f"looks like {source.title}, of patches.network {name!r}"
    return f"holds {len(arrays)} arrays: " + ", ".join(map(repr, sorted(arrays)[:3])) + ", .." * (len(arrays) > 3)
