"""Maps the arrays of a weight file to the parameters of a network. Each backbone has its sources in its own file.

A `Source` maps the name of a parameter to the name in the file. `take` finds the source that a file follows, and
reports missing, unexpected, misshapen and non-finite arrays by their names in the file.
"""

import dataclasses
import re
from collections.abc import Callable

import numpy as np

SHOWN = 30  # problems of an error, at most
DENSE_VARIABLES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
JOINED = {"in_proj_": "q_proj. k_proj. v_proj.", "qkv.": "q. k. v.", "kv.": "k. v."}  # arrays of several layers
TORCH_VARIABLES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def own_axes(name: str, ndim: int) -> tuple[int, ...]:
    """Our order of a parameter's axes: kernels [in, out] and HWIO, depthwise ones HWC1."""
    return tuple(range(ndim))


def torch_axes(name: str, ndim: int) -> tuple[int, ...]:
    """PyTorch's order of a parameter's axes: kernels [in, out] as [out, in], HWIO as OIHW, depthwise HWC1 as C1HW."""
    leaf = name.split("/")[-1]
    if leaf == "depthwise_kernel":
        return (2, 3, 0, 1)
    return {2: (1, 0), 4: (3, 2, 0, 1)}[ndim] if leaf == "kernel" else own_axes(name, ndim)


@dataclasses.dataclass(frozen=True)
class Source:
    """How one kind of file names a network's parameters.

    `name`: fbjax's name -> the file's, after one of `prefixes`. `axes`: (fbjax's name, number of axes) -> the order in
    which the file has our axes. `unused`: prefixes of arrays to ignore. `bias`: name of a moving mean -> the file's
    bias of the convolution before it, which the mean absorbs: ``(conv + bias) - mean = conv - (mean - bias)``.
    `arranged`: the file's arrays -> the same, where one array may hold several parameters or a part of one.
    """

    title: str
    name: Callable[[str], str]
    axes: Callable[[str, int], tuple[int, ...]] = own_axes
    unused: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("",)
    bias: Callable[[str], str] | None = None
    arranged: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = lambda arrays: arrays

    def shape(self, ours: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the file of the parameter `ours`, which has `shape` here."""
        return tuple(shape[axis] for axis in self.axes(ours, len(shape)))

    def array(self, ours: str, theirs: np.ndarray) -> np.ndarray:
        """The parameter `ours`, in our order of axes, of the file's array."""
        return theirs.transpose(np.argsort(self.axes(ours, theirs.ndim)))


OWN = Source("this project's", lambda ours: ours)


def take(
    arrays: dict[str, np.ndarray], sources: tuple[Source, ...], shapes: dict[str, tuple[int, ...]]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """``({name: array}, problems)``: a file's `arrays` as parameters of `shapes`, and every mismatch."""
    arranged = [(source, source.arranged(arrays)) for source in sources]
    source, prefix, arrays = max(
        ((source, prefix, found) for source, found in arranged for prefix in source.prefixes),
        key=lambda candidate: sum(candidate[1] + candidate[0].name(ours) in candidate[2] for ours in shapes),
    )
    wanted = {prefix + source.name(ours): ours for ours in shapes}
    biases = {}
    if source.bias:
        means = [ours for ours in shapes if ours.endswith("/moving_mean")]
        biases = {bias: ours for ours in means if (bias := source.bias(ours)) in arrays}
    expected = {theirs: source.shape(ours, shapes[ours]) for theirs, ours in (wanted | biases).items()}
    known = {name: array for name, array in arrays.items() if not name.endswith("num_batches_tracked")}
    used = {name: array for name, array in known.items() if not name.removeprefix(prefix).startswith(source.unused)}
    fitting = {theirs: used[theirs] for theirs in expected if theirs in used and used[theirs].shape == expected[theirs]}
    problems = [f"missing {theirs} {expected[theirs]}" for theirs in sorted(expected.keys() - used.keys())]
    problems += [f"unexpected {theirs} {used[theirs].shape}" for theirs in sorted(used.keys() - expected.keys())]
    problems += [
        f"{theirs} has shape {used[theirs].shape}, expected {expected[theirs]}"
        for theirs in sorted((expected.keys() & used.keys()) - fitting.keys())
    ]
    problems += [f"{name} holds NaN or infinity" for name, array in fitting.items() if not np.isfinite(array).all()]
    taken = {ours: source.array(ours, fitting[theirs]) for theirs, ours in wanted.items() if theirs in fitting}
    problems += [
        f"{source.name(ours)} holds negative variances"
        for ours, array in taken.items()
        if ours.endswith("moving_variance") and (array < 0).any()
    ]
    for bias, mean in biases.items():
        if bias in fitting and mean in taken:
            taken[mean] = taken[mean] - fitting[bias]
    return taken, problems


def follows(arrays: dict[str, np.ndarray], source: Source, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether `arrays` hold every parameter of `shapes` with the name and shape of `source`."""
    arrays = source.arranged(arrays)
    return any(
        all(
            (array := arrays.get(prefix + source.name(ours))) is not None and array.shape == source.shape(ours, shape)
            for ours, shape in shapes.items()
        )
        for prefix in source.prefixes
    )


@dataclasses.dataclass(frozen=True)
class Named:
    """A file's arrays by our names, of a source that it follows."""

    source: Source
    prefix: str
    arrays: dict[str, np.ndarray]  # as the source arranges them

    @classmethod
    def find(cls, arrays: dict[str, np.ndarray], sources: tuple[Source, ...], name: str) -> "Named":
        """By the first of `sources` that has our `name` in `arrays`. Raises KeyError, with the file's name, if none."""
        for source in sources:
            arranged = source.arranged(arrays)
            for prefix in source.prefixes:
                if prefix + source.name(name) in arranged:
                    return cls(source, prefix, arranged)
        raise KeyError(sources[-1].name(name))

    def __contains__(self, name: str) -> bool:
        return self.prefix + self.source.name(name) in self.arrays

    def shape(self, name: str) -> tuple[int, ...]:
        """In our order of axes. Raises KeyError, with the file's name, where it is not there."""
        return self.source.array(name, self.arrays[self.prefix + self.source.name(name)]).shape

    def num_blocks(self, prefix: str = "") -> int:
        """Of a transformer whose names begin with `prefix` here."""
        count = 0
        while f"{prefix}block_{count}/mlp_in/bias" in self:
            count += 1
        return count


def listed(problems: list[str]) -> str:
    more = len(problems) - SHOWN
    return "\n  ".join(problems[:SHOWN] + [f"... and {more} more"] * (more > 0))


def torch_source(
    title: str, layer: Callable[[str], tuple[str, str]], unused: tuple[str, ...], prefixes: tuple[str, ...] = ("",)
) -> Source:
    """A source for PyTorch files; `layer`: a layer's name -> those of its convolution and norm."""

    def name(ours: str) -> str:
        path, part, variable = ours.rsplit("/", 2)
        conv, norm = layer(path)
        return f"{conv}.weight" if part == "conv" else f"{norm}.{TORCH_VARIABLES[variable]}"

    return Source(title, name, torch_axes, unused, prefixes)


def layered(table: dict[str, str], block: str, prefix: str = "") -> Callable[[str], str]:
    """fbjax's name -> a file's, of a transformer; `table`: of layers and parameters, a block's as "block/..".

    A name of block 3 begins with `prefix`, `block` and "3." in the file, one outside of the blocks with `prefix`.
    """

    def name(ours: str) -> str:
        number = re.match(r"block_(\d+)/", ours)
        home = f"{prefix}{block}{number.group(1)}." if number else prefix
        layer = re.sub(r"^block_\d+", "block", ours)
        if layer in table:
            return home + table[layer]
        layer, variable = layer.rsplit("/", 1)
        return f"{home}{table[layer]}.{DENSE_VARIABLES[variable]}"

    return name


def apart(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A file's arrays, where those of query, key and value are one, as ``attn.qkv.weight``, with each on its own."""
    found = {}
    for name, array in arrays.items():
        joined = re.search(r"(?<=\.)(in_proj_|qkv\.|kv\.)(?=(weight|bias)$)", name)
        parts = JOINED[joined.group()].split() if joined else []
        if not parts or len(array) % len(parts):
            found[name] = array
            continue
        pieces = np.split(array, len(parts))
        found |= {name.replace(joined.group(), part): piece for part, piece in zip(parts, pieces, strict=True)}
    return found
