"""The registry of backbones, the networks of patch features, and how a weight file becomes one."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from fbjax.core.registry import Registry
from fbjax.model.weights import name_maps
from fbjax.model.weights.files import FORMATS, read_arrays
from fbjax.model.weights.name_maps import Source
from fbjax.model.weights.packages import Package

BACKBONES: Registry["Backbone"] = Registry("patch network", "fbjax.model.backbones")


@dataclasses.dataclass(frozen=True)
class Backbone:
    """How to build a network.

    `make`: a linen module's class, or a function that returns a module. ``module(images [N, H, W, 3] in 0..255,
    train=False)`` returns a feature map [N, h, w, C], or (feature map, features [N, C] of the whole image); dropout and
    augmentation draw from the stream "dropout". `sources`: the kinds of weight file that it takes; none: it has no
    weights. `packages`: Python packages with such a file, whose names `patches.weights` takes. `smallest`: side of the
    smallest image, in pixels. `multiple`: what divides the sides of every image, in pixels. `arguments`: the
    arguments of `make`, from a file's arrays and the config's cell size in pixels. `twin`: the equivalent class in
    fbjax/export/hub, ``{"class": its name, **its arguments}``, JSON values; without it, exports to PyTorch take only
    features. `blocks`: the parts of a module in order, each the names of its parameters or of the modules that hold
    them; `patches.frozen_blocks` counts them. `differences`: what files beside a weight file say otherwise than the
    module, from the module and the weight file's path; each is an error.
    """

    make: Callable[..., nn.Module]
    sources: tuple[Source, ...] = ()
    packages: tuple[Package, ...] = ()
    smallest: int = 32
    multiple: int = 1
    arguments: Callable[[dict[str, np.ndarray], int], dict] = lambda arrays, cell: {}
    twin: Callable[[nn.Module], dict] | None = None
    blocks: Callable[[nn.Module], Sequence[Sequence[str]]] = lambda module: ()
    differences: Callable[[nn.Module, Path], list[str]] = lambda module, path: []

    @property
    def needs_weights(self) -> bool:
        return bool(self.sources)

    def first_blocks(self, module: nn.Module, count: int) -> tuple[str, ...]:
        """The names in the first `count` blocks. Raises ValueError where these are all that there are, or more."""
        blocks = self.blocks(module)
        if count and count >= len(blocks):
            remedy = f"use {len(blocks) - 1} or fewer, or patches.mode 'frozen'" if blocks else "use 0"
            raise ValueError(
                f"patches.frozen_blocks {count}: {type(module).__name__} has {len(blocks)} blocks ({remedy})"
            )
        return tuple(name for block in blocks[:count] for name in block)

    def block_modules(self, module: nn.Module, numbers: Sequence[int]) -> tuple[str, ...]:
        """The modules that give these blocks' outputs. Raises ValueError where a block is no module of its own."""
        names = [
            block[-1] if len(block) == 1 or block[-1].startswith("block_") else "" for block in self.blocks(module)
        ]
        wrong = [number for number in numbers if not 0 <= number < len(names) - 1 or not names[number]]
        if wrong:
            there = [number for number, name in enumerate(names[:-1]) if name]
            remedy = f"use some of {there[0]} to {there[-1]}" if there else "it has none to take: use ()"
            raise ValueError(
                f"patches.levels {tuple(numbers)}: {type(module).__name__} has no map {wrong[0]} ({remedy})"
            )
        return tuple(names[number] for number in sorted(numbers))

    def build(self, arrays: dict[str, np.ndarray], cell: int = 0) -> nn.Module:
        """The module. Raises KeyError where `arrays` lack one that tells the network's size."""
        return self.make(**self.arguments(arrays, cell))


def register_backbone(name: str, **settings) -> Callable:
    """A decorator: registers a module's class, or a function that returns a module; `settings`: of `Backbone`."""

    def register(make):
        BACKBONES.register(name)(Backbone(make, **settings))
        return make

    return register


def load_network(name: str, path: str | Path) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """The network `name` and its parameters by fbjax's names, float32, from the file at `path` or a package's name.

    Raises FileNotFoundError without the file, ModuleNotFoundError without the package, ValueError where it holds other
    weights.
    """
    backbone, path = BACKBONES[name], find_weights(name, path)
    arrays = read_arrays(path)
    if own := {key.removeprefix(f"{name}/"): array for key, array in arrays.items() if key.startswith(f"{name}/")}:
        arrays = own  # of several networks side by side, as a workdir has them
    try:
        network = backbone.build(arrays)
    except KeyError as error:
        raise ValueError(f"{path} is no {name} file: it lacks {error} and {_identify(arrays)}") from None
    weights, problems = name_maps.take(arrays, backbone.sources, shapes_of(network, backbone.smallest))
    if problems and (not weights or _owner(arrays, first=name)[0] not in (name, None)):
        raise ValueError(f"{path} is no {name} file: it {_identify(arrays)}")
    if problems := problems or backbone.differences(network, path):
        raise ValueError(f"these are not {name} weights:\n  {name_maps.listed(problems)}")
    return network, weights


def find_weights(name: str, path: str | Path) -> Path:
    """The weight file at `path`, or in the package of that name; `name` is the network that needs it."""
    packages = {package.name: package for backbone in BACKBONES.values() for package in backbone.packages}
    if str(path) in packages:
        return packages[str(path)].path()
    offered = "".join(f", or to {package.name!r}, a package" for package in BACKBONES[name].packages)
    if not path:
        raise ValueError(f"patch network {name!r} needs weights: set config.patches.weights to {FORMATS}{offered}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no patch network weights at {path}: set config.patches.weights to {FORMATS}{offered}")
    return Path(path)


@functools.cache
def shapes_of(network: nn.Module, size: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters, by name, of a network that takes images of `size` pixels."""
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    params = nn.unbox(jax.eval_shape(network.init, jax.random.key(0), image)["params"])
    return {name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(params, sep="/").items()}


def _owner(arrays: dict[str, np.ndarray], first: str = "") -> tuple[str, Source] | tuple[None, None]:
    """The backbone whose parameters are all in `arrays`, and the source they follow; tries `first` first."""
    for name in sorted(BACKBONES, key=lambda name: name != first):
        backbone = BACKBONES[name]
        try:
            shapes = shapes_of(backbone.build(arrays), backbone.smallest) if backbone.needs_weights else {}
        except KeyError:
            continue
        for source in backbone.sources:
            if name_maps.follows(arrays, source, shapes):
                return name, source
    return None, None


def _identify(arrays: dict[str, np.ndarray]) -> str:
    name, source = _owner(arrays)
    if name:
        return f"looks like {source.title}, of patches.network {name!r}"
    return f"holds {len(arrays)} arrays: " + ", ".join(map(repr, sorted(arrays)[:3])) + ", .." * (len(arrays) > 3)
