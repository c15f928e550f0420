"""Proves an export: loads it, runs it and the live model on the same inputs, and compares every output."""

import functools
import time
from collections.abc import Callable, Iterator

import numpy as np

from fbjax.export.functions import BATCH, LENGTH, Function
from fbjax.export.source_model import SourceModel
from fbjax.runs.feature_cache import text_inputs
from fbjax.runs.run import Run

TOLERANCE = 1e-4
SEED = 0
RANDOM = ((1, None), (3, 9))  # (batch, text length); None: the maximum length
PAIRS, BATCH_SIZE = 256, 16  # real pairs, in batches of this size
SECONDS = 300.0  # starts no batch after this: a deep network on enlarged patches needs minutes for one
Batches = Callable[[Function], Iterator[dict[str, np.ndarray]]]  # {input: array} of each batch


class ProofFailed(ValueError):
    """The export is not the model."""


def prove(source_model: SourceModel, exported, real: Batches | str, say: Callable[[str], None]) -> dict:
    """The largest absolute differences of ``exported.call(name, **arrays)`` from the live model, by output.

    `real`: inputs of a catalogue, or the reason why there are none. Raises ProofFailed past `TOLERANCE`, which for
    patch features is relative to the largest of them.
    """
    found = {"tolerance": TOLERANCE, "seed": SEED, "random": {}, "real": {}}
    for name, function in source_model.functions.items():
        inputs = {"random": random_inputs(source_model.run, function)}
        if not isinstance(real, str):
            inputs["real"] = real(function)
        for kind, batches in inputs.items():
            figures = found[kind][name] = _compare(source_model, exported, function, batches)
            worst = max(figures[output] for output in function.outputs)
            say(f"{name}: within {worst:.1e} of the live model on {figures['examples']} {kind} examples")
    if isinstance(real, str):
        found["real"] = None
        say(f"proved on random inputs alone: {real}")
    return found


def _compare(source_model: SourceModel, exported, function: Function, batches: Iterator[dict]) -> dict:
    """{"examples": how many, output: largest difference} over as many of `batches` as `SECONDS` allow."""
    examples, largest, begin = 0, dict.fromkeys(function.outputs, 0.0), time.monotonic()
    for arrays in batches:
        live, theirs = (model.call(function.name, **arrays) for model in (source_model, exported))
        for output in function.outputs:
            difference = _difference(f"{function.name}: {output}", live[output], theirs[output])
            largest[output] = max(largest[output], difference)
        examples += len(next(iter(arrays.values())))
        if time.monotonic() - begin > SECONDS:
            break
    return {"examples": examples, **largest}


def _difference(name: str, live: np.ndarray, theirs: np.ndarray) -> float:
    if live.shape != theirs.shape:
        raise ProofFailed(f"{name} has shape {list(theirs.shape)}, the live model's {list(live.shape)}")
    difference = float(np.abs(live - theirs).max())
    limit = TOLERANCE * (max(1.0, float(np.abs(live).max())) if name.endswith(": features") else 1.0)
    if not difference <= limit:  # NaN too
        reason = f"{name} differs from the live model's by {difference:.1e}, more than {limit:.1e}"
        raise ProofFailed(f"{reason}: nothing is exported")
    return difference


def random_inputs(run: Run, function: Function) -> Iterator[dict[str, np.ndarray]]:
    """Inputs of several batch sizes and text lengths, {name: array}; the same in every call."""
    rng = np.random.default_rng(SEED)
    longest = run.config.model.text_tokens
    for batch, length in RANDOM:
        sizes = {BATCH: batch, LENGTH: min(length or longest, longest)}
        shapes = {given.name: tuple(sizes.get(size, size) for size in given.shape) for given in function.inputs}
        yield {name: _MAKERS[name](rng, run, shape) for name, shape in shapes.items()}


def _random_ids(rng, run: Run, shape: tuple[int, ...]) -> np.ndarray:
    """``[CLS] pieces [SEP] [PAD] ..``; the first text has the full length."""
    room = shape[1] - 2
    lengths = np.maximum(rng.integers(0, room + 1, shape[0]), np.eye(1, shape[0], dtype=int)[0] * room)
    pieces = [rng.integers(1, run.vocabulary.size, length).tolist() for length in lengths]
    return np.stack([run.vocabulary.frame(row, shape[1]) for row in pieces])


_MAKERS = {
    "ids": _random_ids,
    "images": lambda rng, run, shape: rng.integers(0, 256, shape).astype(np.uint8),
    "features": lambda rng, run, shape: rng.standard_normal(shape, np.float32),
}


def real_inputs(source_model: SourceModel, data: str | None) -> Batches | str:
    """Batches of the first products of `data` (a table or glob; default: the run's validation split) for a function.

    Each text comes with its own image. Returns the reason instead where the run's own tables cannot be read.
    """
    try:
        records = source_model.records(data)
    except (OSError, ValueError) as error:
        if data:
            raise
        return str(error).splitlines()[0]
    run, rows = source_model.run, np.arange(min(PAIRS, len(records)))
    patches = run.config.patches

    @functools.cache
    def read(name: str, start: int) -> np.ndarray:
        part = rows[start : start + BATCH_SIZE]
        if name == "ids":
            return text_inputs(run, records, part)
        images = next(records.images(part, patches.image_size, BATCH_SIZE, patches.fit))
        if name == "features" and not run.config.data.feature_size:  # else the records hold features
            images = source_model.call("features", images=images)["features"]
        return images if name == "images" else images.astype(np.float32)

    def batches(function: Function) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(rows), BATCH_SIZE):
            yield {given.name: read(given.name, start) for given in function.inputs}

    return batches
