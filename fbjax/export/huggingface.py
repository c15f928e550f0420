"""The format hf: a Hugging Face folder that `AutoModel` loads in PyTorch, and `BertModel` without the image side.

Parameters have BERT's names, of `fbjax.model.bert_weights`, or else their own. Only the order of axes changes, so that
an import returns the same bits.
"""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import flax.traverse_util
import numpy as np

from fbjax.config.load import config_to_json
from fbjax.config.schema import Config, PatchConfig
from fbjax.data.text.wordpiece import Vocabulary
from fbjax.export import card
from fbjax.export.source_model import SourceModel
from fbjax.model.bert_weights import bert_settings, parameter_names
from fbjax.model.ngrams import num_rows
from fbjax.model.patch_features import PatchNetwork
from fbjax.model.weights.name_maps import torch_axes
from fbjax.runs.run import Run

WEIGHTS, CONFIG, VOCABULARY = "model.safetensors", "config.json", "tokenizer.json"
HUB = Path(__file__).parent / "hub"
PARTS = ("configuration", "modeling", "linear", "patches", "networks", "vit")
CODE = tuple(f"{part}_fashionbert.py" for part in PARTS)
LAYOUT = 1  # of config.json's "fbjax" section and the names of arrays
LEAVES = {"kernel": "weight", "scale": "weight", "depthwise_kernel": "weight"}


def carried(source_model: SourceModel) -> SourceModel:
    """`source_model`, without functions of images where PyTorch has no twin of its patch network."""
    if any(task.reads_apart == "dual" for task in source_model.run.config.tasks.values()):
        raise ValueError(
            "--format hf: a dual encoder (branches 'dual') has no PyTorch code here (use --format stablehlo or onnx)"
        )
    _check_twin(source_model.run.config)
    if source_model.run.patches.twin:
        return source_model
    functions = {
        name: function
        for name, function in source_model.functions.items()
        if all(given.name != "images" for given in function.inputs)
    }
    return dataclasses.replace(source_model, functions=functions, params=source_model.params | {"patches": {}})


def _check_twin(config: Config) -> None:
    """Raises ValueError where the model has no PyTorch code."""
    found = [f"model.architecture {config.model.architecture!r}"] * (config.model.architecture != "fashionbert")
    tasks = config.tasks.items()
    found += [f"tasks.{name}.head 'product'" for name, task in tasks if task.scores_pairs and task.reads_firsts]
    found += [f"the head of tasks.{name}" for name, task in tasks if task.predicts_attributes or task.writes_captions]
    if found:
        named = " and ".join(found)
        raise ValueError(f"--format hf: {named} has no PyTorch code here (use --format stablehlo or onnx)")


def write(source_model: SourceModel, folder: Path) -> None:
    """config.json, model.safetensors, the tokenizer's files, the PyTorch code and the model card."""
    from safetensors.numpy import save

    run = source_model.run
    arrays = to_torch(source_model.params, run.config.model.num_layers)
    (folder / WEIGHTS).write_bytes(save(arrays, metadata={"format": "pt"}))  # its save_file leaves the file private
    _write_json(folder / CONFIG, describe(run, source_model.step))
    for name in CODE:
        shutil.copyfile(HUB / name, folder / name)
    write_tokenizer(run, folder)
    (folder / "README.md").write_text(card.model_card(source_model), encoding="utf-8")


def describe(run: Run, step: int) -> dict:
    """The content of config.json: BERT's settings, FashionBERT's, and the run itself."""
    config, model = run.config, run.config.model
    module = "modeling_fashionbert.FashionBertModel"
    features = {"network": "features"} if config.data.feature_size else {}  # the data gives features
    form = next((task.form for task in config.tasks.values() if task.embeds), "softmax")
    return {
        "architectures": ["FashionBertModel"],
        "auto_map": {"AutoConfig": "configuration_fashionbert.FashionBertConfig", "AutoModel": module},
        "model_type": "fashionbert",
        "dtype": "float32",
        **bert_settings(model, run.vocabulary.size),
        **_describe_towers(run),
        "match_reads": next((task.head for task in config.tasks.values() if task.scores_pairs), "cls"),
        "cross_attention": model.cross_attention,
        **({} if form == "softmax" else {"contrast": form}),  # folders that were exported before have none
        "tasks": list(config.tasks),
        "patches": describe_patches(config.patches, run.patches) | features,
        "fbjax": {
            "layout": LAYOUT,
            "step": step,
            "pieces": digest_of_pieces(run.vocabulary),
            "config": json.loads(config_to_json(config)),
        },
    }


def _describe_towers(run: Run) -> dict:
    """The settings of config.json that make vectors."""
    task = next((task for task in run.config.tasks.values() if task.embeds), None)
    names = ("embedding_dim", "branches", "encoder_tokens", "image_weight") if task else ()
    found = {name: getattr(task, name) for name in names}
    if run.ngrams:
        sizes = {"codes": len(run.ngrams["codes"]), "buckets": len(run.ngrams["first"]) - 1}
        found["ngrams"] = sizes | {"rows": num_rows(run.ngrams)}
    return found


def digest_of_pieces(vocabulary: Vocabulary) -> str:
    """SHA-256 of the pieces in the order of their rows; it does not depend on how a tokenizer's file is written."""
    return hashlib.sha256("\n".join(vocabulary.rows).encode()).hexdigest()


def describe_patches(config: PatchConfig, network: PatchNetwork) -> dict:
    """The section "patches" of config.json: how an image becomes features."""
    names = ("network", "geometry", "image_size", "patch_size", "patch_input_size", "whole_image", "mode", "fit")
    sizes = {"num_patches": network.num_patches, "feature_size": network.feature_size, "twin": network.twin}
    return {name: getattr(config, name) for name in names} | sizes


def write_tokenizer(run: Run, folder: Path) -> None:
    """tokenizer.json, its settings for `AutoTokenizer`, and vocab.txt."""
    run.vocabulary.save(folder / VOCABULARY)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in run.vocabulary.rows), encoding="utf-8")
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": run.config.model.text_tokens}
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    _write_json(folder / "tokenizer_config.json", settings | special)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def to_torch(params: dict, num_layers: int) -> dict[str, np.ndarray]:
    """A run's parameters, "fashionbert" and "patches", with PyTorch's names and order of axes."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    return {
        torch_name(name, num_layers): np.transpose(array, torch_axes(name, array.ndim)).copy()
        for name, array in flat.items()
    }


def from_torch(arrays: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]], num_layers: int) -> dict:
    """The parameters of `shapes` ({name, "/"-separated: shape}) from a folder's `arrays`.

    Raises ValueError with every array that is missing, unexpected, misshapen or not finite.
    """
    found, problems, names = {}, [], {name: torch_name(name, num_layers) for name in shapes}
    for name, theirs in names.items():
        array, expected = arrays.get(theirs), tuple(shapes[name][axis] for axis in torch_axes(name, len(shapes[name])))
        if array is None:
            problems.append(f"missing {theirs}")
        elif array.shape != expected:
            problems.append(f"{theirs} has shape {array.shape}, expected {expected}")
        elif not np.isfinite(array).all():
            problems.append(f"{theirs} holds NaN or infinity")
        else:
            found[name] = from_torch_axes(name, array)
    problems += [f"unexpected {name} {arrays[name].shape}" for name in sorted(arrays.keys() - set(names.values()))]
    if problems:
        more = [f"... and {len(problems) - 20} more"] * (len(problems) > 20)
        raise ValueError("\n  ".join(["the weights do not fit the config:", *problems[:20], *more]))
    return flax.traverse_util.unflatten_dict(found, sep="/")


def torch_name(name: str, num_layers: int) -> str:
    """The PyTorch name of one of our parameters, "fashionbert/.." or "patches/.."."""
    part, rest = name.split("/", 1)
    bert = parameter_names(num_layers)
    if part == "fashionbert" and rest in bert:
        source = bert[rest][0]
        return source if source.startswith("cls.") else f"bert.{source}"
    if part == "fashionbert" and rest.startswith("encoder/layer_"):  # the gates, which BERT lacks
        _, layer, _, leaf = rest.split("/")
        return f"bert.encoder.layer.{layer.removeprefix('layer_')}.attention.self.{leaf}"
    *path, leaf = (rest if part == "fashionbert" else name).split("/")
    return ".".join([*path, LEAVES.get(leaf, leaf)])


def from_torch_axes(name: str, array: np.ndarray) -> np.ndarray:
    """A parameter in our order of axes; `name` is ours."""
    return np.transpose(array, np.argsort(torch_axes(name, array.ndim))).copy()


def load(folder: str | Path) -> "TorchModel":
    """The model of an exported folder in PyTorch, on the CPU; silences the reports of transformers meanwhile."""
    from transformers.utils import logging

    from fbjax.export.hub.modeling_fashionbert import FashionBertModel

    before, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, loading = FashionBertModel.from_pretrained(folder, output_loading_info=True)
    finally:
        logging.set_verbosity(before)
        if had_bars:
            logging.enable_progress_bar()
    if wrong := {kind: sorted(map(str, names)) for kind, names in loading.items() if names}:
        raise ValueError(f"{folder} does not load as it was written: {wrong}")
    return TorchModel(model.eval())


class TorchModel:
    """``call(name, **arrays)`` over a `FashionBertModel`, names and outputs as in `fbjax.export.functions`."""

    def __init__(self, model):
        self.model = model

    def call(self, name: str, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        import torch

        given = {("input_ids" if key == "ids" else key): torch.tensor(value) for key, value in arrays.items()}
        name = name.removesuffix("_features")
        with torch.inference_mode():
            if name == "features":
                found = {"features": self.model.patch_features(given["images"])}
            elif name == "match":
                found = dict(zip(("score", "logits"), self.model.match(**given), strict=True))
            elif name.startswith("embed_"):
                found = {"vectors": getattr(self.model, name)(**given)}
            else:
                found = {"logits": self.model(**given)[f"{name}_logits"]}
        return {output: value.numpy() for output, value in found.items()}
