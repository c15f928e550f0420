"""The format hf: a Hugging Face folder, whose PyTorch files `AutoModel` loads and whose text side `BertModel` does.

Parameters go under the names of `fbjax.model.bert_weights` where BERT has them, else under their own; each is the same
numbers in PyTorch's order of axes, so that they come back bit by bit.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import flax.traverse_util
import numpy as np

from fbjax.config.load import config_to_json
from fbjax.config.schema import PatchConfig
from fbjax.data.text.wordpiece import Vocabulary
from fbjax.export import card
from fbjax.export.source_model import SourceModel
from fbjax.model.bert_weights import parameter_names
from fbjax.model.embeddings import NUM_TEXT_SEGMENTS
from fbjax.model.encoder import NORM_EPSILON
from fbjax.model.patch_features import PatchNetwork
from fbjax.runs.run import Run

WEIGHTS, CONFIG, VOCABULARY = "model.safetensors", "config.json", "tokenizer.json"
HUB = Path(__file__).parent / "hub"
CODE = ("configuration_fashionbert.py", "modeling_fashionbert.py", "patches_fashionbert.py")
CARRIED = ("pixels", "mobilenet_v1", "resnet50", "resnet50_v1", "resnext101_32x8d", "inception_v3", "features")
LAYOUT = 1  # of config.json's "fbjax" section and the names of arrays
LEAVES = {"kernel": "weight", "scale": "weight", "depthwise_kernel": "weight"}


def write(subject: SourceModel, folder: Path) -> None:
    """config.json, model.safetensors, the tokenizer's files, the PyTorch code and the model card."""
    from safetensors.numpy import save

    run = subject.run
    if run.config.patches.network not in CARRIED:
        raise ValueError(f"--format hf has no PyTorch form of patches.network {run.config.patches.network!r}")
    arrays = to_torch(subject.params, run.config.model.num_layers)
    (folder / WEIGHTS).write_bytes(save(arrays, metadata={"format": "pt"}))  # its save_file leaves the file private
    _write_json(folder / CONFIG, describe(run, subject.step))
    for name in CODE:
        shutil.copyfile(HUB / name, folder / name)
    write_tokenizer(run, folder)
    (folder / "README.md").write_text(card.model_card(subject), encoding="utf-8")


def describe(run: Run, step: int) -> dict:
    """What config.json says: BERT's settings, FashionBERT's, and the run itself."""
    config, model, patches = run.config, run.config.model, run.config.patches
    module = "modeling_fashionbert.FashionBertModel"
    return {
        "architectures": ["FashionBertModel"],
        "auto_map": {"AutoConfig": "configuration_fashionbert.FashionBertConfig", "AutoModel": module},
        "model_type": "fashionbert",
        "dtype": "float32",
        "vocab_size": run.vocabulary.size,
        "hidden_size": model.width,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.mlp_dim,
        "max_position_embeddings": model.text_tokens,
        "type_vocab_size": NUM_TEXT_SEGMENTS,
        "hidden_act": "gelu",
        "hidden_dropout_prob": model.hidden_dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
        "initializer_range": model.initializer_range,
        "layer_norm_eps": NORM_EPSILON,
        "pad_token_id": 0,
        "embedding_dim": model.embedding_dim,
        "match_reads": model.tia_reads,
        "cross_attention": model.cross_attention,
        "tasks": list(config.tasks.names),
        "patches": describe_patches(patches, run.patches),
        "fbjax": {
            "layout": LAYOUT,
            "step": step,
            "pieces": digest_of_pieces(run.vocabulary),
            "config": json.loads(config_to_json(config)),
        },
    }


def digest_of_pieces(vocabulary: Vocabulary) -> str:
    """SHA-256 of the pieces in the order of their rows: however a tokenizer's file is written, the same."""
    return hashlib.sha256("\n".join(vocabulary.rows).encode()).hexdigest()


def describe_patches(patches: PatchConfig, network: PatchNetwork) -> dict:
    """The section of config.json that says how an image becomes features."""
    told = ("network", "geometry", "image_size", "patch_size", "patch_input_size", "whole_image", "trainable")
    sizes = {"num_patches": network.num_patches, "feature_size": network.feature_size}
    if patches.network == "mobilenet_v1":
        sizes["alpha"] = network.feature_size / 1024
    return {name: getattr(patches, name) for name in told} | sizes


def write_tokenizer(run: Run, folder: Path) -> None:
    """tokenizer.json and what tells `AutoTokenizer` how to pad and cut, and vocab.txt."""
    run.vocabulary.save(folder / VOCABULARY)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in run.vocabulary.rows), encoding="utf-8")
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": run.config.model.text_tokens}
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    _write_json(folder / "tokenizer_config.json", settings | special)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def to_torch(params: dict, num_layers: int) -> dict[str, np.ndarray]:
    """A run's parameters, "fashionbert" and "patches", by their PyTorch names and in PyTorch's order of axes."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    return {
        torch_name(name, num_layers): np.transpose(array, _axes(name, array.ndim)).copy()
        for name, array in flat.items()
    }


def from_torch(arrays: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]], num_layers: int) -> dict:
    """The parameters of `shapes` ({name, "/"-separated: shape}) out of a folder's `arrays`.

    Raises ValueError with all that is missing, misshapen or not finite, and all that has no place here.
    """
    found, problems, known = {}, [], set()
    for name, shape in shapes.items():
        theirs, axes = torch_name(name, num_layers), _axes(name, len(shape))
        known.add(theirs)
        array = arrays.get(theirs)
        if array is None:
            problems.append(f"missing {theirs}")
        elif array.shape != tuple(shape[axis] for axis in axes):
            problems.append(f"{theirs} has shape {array.shape}, expected {tuple(shape[axis] for axis in axes)}")
        elif not np.isfinite(array).all():
            problems.append(f"{theirs} holds NaN or infinity")
        else:
            found[name] = from_torch_axes(name, array)
    problems += [f"unexpected {name} {arrays[name].shape}" for name in sorted(arrays.keys() - known)]
    if problems:
        more = [f"... and {len(problems) - 20} more"] * (len(problems) > 20)
        raise ValueError("\n  ".join(["the weights do not fit the config:", *problems[:20], *more]))
    return flax.traverse_util.unflatten_dict(found, sep="/")


def torch_name(name: str, num_layers: int) -> str:
    """The PyTorch name of one of our parameters, "fashionbert/.." or "patches/.."."""
    room, rest = name.split("/", 1)
    if room == "patches":
        return f"patches.{_dotted(rest)}"
    bert = parameter_names(num_layers)
    if rest in bert:
        source = bert[rest][0]
        return source if source.startswith("cls.") else f"bert.{source}"
    if rest.startswith("encoder/layer_"):  # the gates, which BERT lacks
        _, layer, _, leaf = rest.split("/")
        return f"bert.encoder.layer.{layer.removeprefix('layer_')}.attention.self.{leaf}"
    return _dotted(rest)


def _dotted(name: str) -> str:
    *path, leaf = name.split("/")
    return ".".join([*path, LEAVES.get(leaf, leaf)])


def _axes(name: str, ndim: int) -> tuple[int, ...]:
    """PyTorch's order of a parameter's axes: kernels [in, out] as [out, in], HWIO as OIHW, depthwise HWC1 as C1HW."""
    leaf = name.split("/")[-1]
    if leaf == "depthwise_kernel":
        return (2, 3, 0, 1)
    if leaf == "kernel":
        return {2: (1, 0), 4: (3, 2, 0, 1)}[ndim]
    return tuple(range(ndim))


def from_torch_axes(name: str, array: np.ndarray) -> np.ndarray:
    """A parameter in our order of axes; `name` is ours."""
    return np.transpose(array, np.argsort(_axes(name, array.ndim))).copy()


def load(folder: str | Path) -> "TorchModel":
    """The model of an exported folder in PyTorch, on the CPU."""
    from fbjax.export.hub.modeling_fashionbert import FashionBertModel

    with _quiet():
        model, loading = FashionBertModel.from_pretrained(folder, output_loading_info=True)
    if wrong := {kind: sorted(map(str, names)) for kind, names in loading.items() if names}:
        raise ValueError(f"{folder} does not load as it was written: {wrong}")
    return TorchModel(model.eval())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and the reports of transformers."""
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before[0])
        if before[1]:
            logging.enable_progress_bar()


class TorchModel:
    """``call(name, **arrays)`` over a `FashionBertModel`, names and outputs as in `fbjax.export.functions`."""

    def __init__(self, model):
        self.model = model

    def call(self, name: str, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        import torch

        given = {("input_ids" if key == "ids" else key): torch.tensor(value) for key, value in arrays.items()}
        with torch.inference_mode():
            found = self._compute(name.removesuffix("_features"), given)
        return {output: value.numpy() for output, value in found.items()}

    def _compute(self, name: str, given: dict) -> dict:
        if name == "features":
            return {"features": self.model.patch_features(given["images"])}
        if name == "match":
            score, logits = self.model.match(**given)
            return {"score": score, "logits": logits}
        if name in ("mlm", "mpm"):
            return {"logits": self.model(**given)[f"{name}_logits"]}
        return {"vectors": getattr(self.model, name)(**given)}
