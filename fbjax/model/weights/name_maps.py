"""Maps the arrays of a weight file to the parameters of a network. Each backbone has its sources in its own file.

A `Source` maps the name of a parameter to the name in the file. `take` finds the source that a file follows, and
reports missing, unexpected, misshapen and non-finite arrays by their names in the file.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

SHOWN = 30  # problems of an error, at most
TORCH_VARIABLES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


@dataclasses.dataclass(frozen=True)
class Source:
    """How one kind of file names a network's parameters.

    `name`: fbjax's name -> the file's, after one of `prefixes`. `axes`: the file's axes of a kernel, in the order HWIO.
    `unused`: prefixes of arrays to ignore. `bias`: name of a moving mean -> the file's bias of the convolution before
    it, which the mean absorbs: ``(conv + bias) - mean = conv - (mean - bias)``.
    """

    title: str
    name: Callable[[str], str]
    axes: tuple[int, ...] = (0, 1, 2, 3)
    unused: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("",)
    bias: Callable[[str], str] | None = None

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the file of an array that has the shape `ours` here."""
        return tuple(ours[i] for i in np.argsort(self.axes)) if len(ours) == 4 else ours

    def array(self, theirs: np.ndarray) -> np.ndarray:
        return theirs.transpose(self.axes) if theirs.ndim == 4 else theirs


OWN = Source("this project's", lambda ours: ours)


def take(
    arrays: dict[str, np.ndarray], sources: tuple[Source, ...], shapes: dict[str, tuple[int, ...]]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """``({name: array}, problems)``: a file's `arrays` as parameters of `shapes`, and every mismatch."""
    source, prefix = max(
        ((source, prefix) for source in sources for prefix in source.prefixes),
        key=lambda candidate: sum(candidate[1] + candidate[0].name(ours) in arrays for ours in shapes),
    )
    wanted = {prefix + source.name(ours): ours for ours in shapes}
    biases = {}
    if source.bias:
        means = [ours for ours in shapes if ours.endswith("/moving_mean")]
        biases = {bias: ours for ours in means if (bias := source.bias(ours)) in arrays}
    expected = {theirs: source.shape(shapes[ours]) for theirs, ours in (wanted | biases).items()}
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
    taken = {ours: source.array(fitting[theirs]) for theirs, ours in wanted.items() if theirs in fitting}
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
    return any(
        all(
            (array := arrays.get(prefix + source.name(ours))) is not None and array.shape == source.shape(shape)
            for ours, shape in shapes.items()
        )
        for prefix in source.prefixes
    )


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

    return Source(title, name, (2, 3, 1, 0), unused, prefixes)
