"""Which array of a weight file is which parameter of a network: a table for each kind of file.

A `Source` turns the name of one of our parameters into the file's. `take` finds the source that a file follows and
takes the arrays by it; whatever is missing, unexpected, misshapen or not finite is named as the file names it.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

SHOWN = 30  # problems of an error, at most
TORCH_VARIABLES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


@dataclasses.dataclass(frozen=True)
class Source:
    """How one kind of file names a network's parameters.

    `name` of ours -> the file's, behind one of `prefixes`. `axes`: the file's axes of a kernel, in our order HWIO.
    `unused`: how names of arrays begin that are left out knowingly. `bias` of our moving mean -> the file's bias of the
    convolution before it, which the mean takes in: ``(conv + bias) - mean = conv - (mean - bias)``.
    """

    title: str
    name: Callable[[str], str]
    axes: tuple[int, ...] = (0, 1, 2, 3)
    unused: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("",)
    bias: Callable[[str], str] | None = None

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that the file gives an array of our shape."""
        return tuple(ours[i] for i in np.argsort(self.axes)) if len(ours) == 4 else ours

    def array(self, theirs: np.ndarray) -> np.ndarray:
        return theirs.transpose(self.axes) if theirs.ndim == 4 else theirs


def take(
    arrays: dict[str, np.ndarray], sources: tuple[Source, ...], shapes: dict[str, tuple[int, ...]]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """``({our name: array}, problems)``: a file's `arrays` as parameters of `shapes`, and all that does not fit."""
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
    used = {theirs: array for theirs, array in arrays.items() if not _is_unused(theirs.removeprefix(prefix), source)}
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
    """Whether `arrays` hold every parameter of `shapes` as `source` names and shapes it."""
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


def _is_unused(name: str, source: Source) -> bool:
    return name.startswith(source.unused) or name.endswith("num_batches_tracked")


def _torch(title: str, layer: Callable[[str], tuple[str, str]], unused: tuple[str, ...], prefixes=("",)) -> Source:
    """Files of PyTorch: `layer` of ours -> the names of its convolution and of its norm."""

    def name(ours: str) -> str:
        path, part, variable = ours.rsplit("/", 2)
        conv, norm = layer(path)
        return f"{conv}.weight" if part == "conv" else f"{norm}.{TORCH_VARIABLES[variable]}"

    return Source(title, name, (2, 3, 1, 0), unused, prefixes)


def _place(layer: str) -> tuple[int, int, str]:
    """``stage3_block2/conv1 -> (3, 2, "conv1")``, counted from 1."""
    block, part = layer.split("/")
    stage, block = block.removeprefix("stage").split("_block")
    return int(stage), int(block), part


def _torchvision_resnet(layer: str) -> tuple[str, str]:
    if layer == "stem":
        return "conv1", "bn1"
    stage, block, part = _place(layer)
    home = f"layer{stage}.{block - 1}"
    if part == "shortcut":
        return f"{home}.downsample.0", f"{home}.downsample.1"
    return f"{home}.{part}", f"{home}.{part.replace('conv', 'bn')}"


def _hugging_face_resnet(layer: str) -> tuple[str, str]:
    home = "embedder.embedder"
    if layer != "stem":
        stage, block, part = _place(layer)
        home = f"encoder.stages.{stage - 1}.layers.{block - 1}."
        home += part if part == "shortcut" else f"layer.{int(part.removeprefix('conv')) - 1}"
    return f"{home}.convolution", f"{home}.normalization"


def _inception(layer: str) -> tuple[str, str]:
    home = layer.replace("/", ".")
    return f"{home}.conv", f"{home}.bn"


def _keras_resnet_layer(layer: str) -> str:
    if layer == "stem":
        return "conv1"
    stage, block, part = _place(layer)
    return f"conv{stage + 1}_block{block}_{0 if part == 'shortcut' else part.removeprefix('conv')}"


def _keras_resnet(ours: str) -> str:
    layer, part, variable = ours.rsplit("/", 2)
    return f"{_keras_resnet_layer(layer)}_{part}/{variable}"


def _keras_resnet_bias(moving_mean: str) -> str:
    return f"{_keras_resnet_layer(moving_mean.rsplit('/', 2)[0])}_conv/bias"


OWN = Source("this project's", lambda ours: ours)
KERAS_MOBILENET = (  # whose names are our own; Keras 3 calls the depthwise kernels otherwise
    Source("Keras' MobileNet", lambda ours: ours, unused=("conv_preds/",)),
    Source("Keras 3's MobileNet", lambda ours: ours.replace("/depthwise_kernel", "/kernel"), unused=("conv_preds/",)),
)
TORCHVISION_RESNET = _torch("torchvision's ResNet", _torchvision_resnet, ("fc.",))
HUGGING_FACE_RESNET = _torch("Hugging Face's ResNet", _hugging_face_resnet, ("classifier.",), ("", "resnet."))
TORCHVISION_INCEPTION = _torch("torchvision's InceptionV3", _inception, ("fc.", "AuxLogits."))
KERAS_RESNET = Source(
    "Keras' ResNet50", _keras_resnet, unused=("predictions/", "probs/", "fc1000/"), bias=_keras_resnet_bias
)
