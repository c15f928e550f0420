"""A Hugging Face folder of `fbjax export` as a run, with its present weights."""

import json
from collections.abc import Callable
from pathlib import Path

import flax.traverse_util
import jax
import numpy as np
from safetensors import safe_open

from fbjax.config.load import config_from_json
from fbjax.config.schema import Config
from fbjax.core.atomic_folder import fresh_folder
from fbjax.data.text.wordpiece import Vocabulary
from fbjax.export import huggingface
from fbjax.export.huggingface import CONFIG, LAYOUT, VOCABULARY, WEIGHTS
from fbjax.export.source_model import one_device
from fbjax.model.lora import merged
from fbjax.model.ngrams import TYPES, Ngrams
from fbjax.model.weights.files import read_arrays, write_npz
from fbjax.runs.loaded import write_params
from fbjax.runs.run import PATCH_WEIGHTS, Run
from fbjax.runs.state import abstract_state

FREE = ("architectures", "auto_map", "dtype", "tasks", "fbjax")  # settings of config.json without effect
FREE += ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range")
ABOUT = {"config": dict, "pieces": str, "step": int}  # what config.json tells under "fbjax", beside the layout
COPY = "copy it there from the exported folder"


def import_run(folder: Path, workdir: str | Path, say: Callable[[str], None]) -> None:
    """Makes `workdir` a run of the model in `folder`.

    Raises OSError or ValueError where the folder lacks a file or differs in architecture from the exported run.
    """
    described = _read_config(folder)
    config = _config_of(folder, described)
    vocabulary, arrays = _read_vocabulary(folder, described["fbjax"]["pieces"]), _read_weights(folder)
    ngrams = _read_ngrams(folder, arrays) if described.get("ngrams") else {}
    with fresh_folder("--workdir", workdir) as partial:
        patches = patch_parameters(arrays)
        if patches:
            write_npz(partial / PATCH_WEIGHTS, patches)
        run = Run.build(config, vocabulary, partial / PATCH_WEIGHTS if patches else None, ngrams)
        _check_architecture(folder, described, huggingface.describe(run, 0))
        write_params(run, _params_of(run, arrays), partial, one_device())
    say(f"{len(arrays)} arrays of {folder}, exported at step {described['fbjax']['step']}: step 0 of {workdir}")


def _params_of(run: Run, arrays: dict[str, np.ndarray]) -> dict:
    """The parameters of `run` in a folder's `arrays`; low-rank factors were merged when they were exported."""
    state = abstract_state(run.objective, run.optimizer, run.config, one_device())
    shapes = jax.eval_shape(merged, state.base, state.params)
    there = shapes | ({"patches": run.patches.params} if run.patches.twin else {})
    there = {name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(there, sep="/").items()}
    params = huggingface.from_torch(arrays, there, run.config.model.num_layers)
    return {name: params[name] for name in shapes}


def patch_parameters(arrays: dict[str, np.ndarray]) -> dict:
    """The patch network's parameters in a folder's `arrays`, with our names and order of axes."""
    found = {}
    for theirs, array in arrays.items():
        if theirs.startswith("patches.network."):
            *path, leaf = theirs.removeprefix("patches.network.").split(".")
            if leaf == "weight" and array.ndim == 1:
                leaf = "scale"
            elif leaf == "weight":
                leaf = "depthwise_kernel" if array.ndim == 4 and array.shape[1] == 1 else "kernel"
            found["/".join([*path, leaf])] = huggingface.from_torch_axes(leaf, array)
    return flax.traverse_util.unflatten_dict(found, sep="/")


def _read_config(folder: Path) -> dict:
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"--from {folder} has no {CONFIG}: give a Hugging Face folder")
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(described, dict):
        raise ValueError(f"{path} holds no settings by their names: {COPY}")
    if described.get("model_type") != "fashionbert":
        raise ValueError(
            f"--from {folder} holds a model of type {described.get('model_type')!r}, not the 'fashionbert' of "
            "fbjax export --format hf (a CLIP or SigLIP is read too; to start from a BERT, set "
            "config.model.pretrained to its folder)"
        )
    about = described.get("fbjax")
    layout = about.get("layout") if isinstance(about, dict) else None
    if layout != LAYOUT:
        raise ValueError(f"{path} has the layout {layout!r} under 'fbjax', this reads {LAYOUT}: export again")
    if lacking := [name for name, kind in ABOUT.items() if not isinstance(about.get(name), kind)]:
        raise ValueError(f"{path} has no {' and no '.join(lacking)} under 'fbjax': {COPY}")
    return described


def _config_of(folder: Path, described: dict) -> Config:
    try:
        return config_from_json(json.dumps(described["fbjax"]["config"]))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} has no config of this version of fbjax under 'fbjax': {error}") from error


def _read_vocabulary(folder: Path, pieces: str) -> Vocabulary:
    path = folder / VOCABULARY
    if not path.is_file():
        raise FileNotFoundError(f"--from {folder} has no {VOCABULARY}: {COPY}")
    vocabulary = Vocabulary.load(path)
    if huggingface.digest_of_pieces(vocabulary) != pieces:
        raise ValueError(f"{path} has other pieces than the model was trained with: {COPY}")
    return vocabulary


def _read_weights(folder: Path) -> dict[str, np.ndarray]:
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"--from {folder} has no {WEIGHTS}: save the whole model there, in one file")
    return read_arrays(path)


def _read_ngrams(folder: Path, arrays: dict[str, np.ndarray]) -> Ngrams:
    """Takes the n-grams out of a folder's `arrays`, which hold codes as float32, and reads them as they are there."""
    names, found = {f"ngrams.{name}": kind for name, kind in TYPES.items()}, {}
    if missing := sorted(names.keys() - arrays.keys()):
        raise ValueError(f"{folder / WEIGHTS} lacks {', '.join(missing)}: save the whole model there")
    with safe_open(folder / WEIGHTS, framework="flax") as file:  # NumPy's has no bfloat16
        for name, kind in names.items():
            del arrays[name]
            array = np.asarray(file.get_tensor(name))
            if kind is not np.float32 and array.dtype != kind:
                raise ValueError(f"{folder / WEIGHTS} holds {name} as {array.dtype}: save it as {np.dtype(kind)}")
            found[name.removeprefix("ngrams.")] = array.astype(kind)
    return found


def _check_architecture(folder: Path, described: dict, expected: dict) -> None:
    problems = [
        f"{name} is {described.get(name)!r}, expected {value!r}"
        for name, value in expected.items()
        if name not in FREE and described.get(name) != value
    ]
    if problems:
        raise ValueError(f"{folder / CONFIG} differs from the exported run: " + "; ".join(problems))
