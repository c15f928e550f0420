"""An export proved: loaded back, it runs beside the live model, and the largest difference of every output counts."""

import time
from collections.abc import Callable, Iterator

import numpy as np

from fbjax.data.batches.pipeline import read_images, read_texts
from fbjax.data.records.builder import Records, build_records
from fbjax.data.records.source import Source
from fbjax.export.functions import BATCH, LENGTH, Function
from fbjax.export.source_model import SourceModel
from fbjax.runs.run import Run

TOLERANCE = 1e-4
SEED = 0
RANDOM = ((1, None), (3, 9))  # (batch, text length); None: as long as a text may be
PAIRS, BATCH_SIZE = 256, 16  # real ones, of which a function takes so many at a time ...
SECONDS = 300.0  # ... and no further batch after this: a deep network on enlarged patches takes minutes for one


class ProofFailed(ValueError):
    """The export is not the model."""


def prove(subject: SourceModel, exported, real: "RealInputs | str", say: Callable[[str], None]) -> dict:
    """The largest absolute differences of ``exported.call(name, **arrays)`` from the live model, by output.

    `real`: inputs of a catalogue, or the reason why there are none. Raises ProofFailed past `TOLERANCE`, which for
    patch features is a share of the largest of them: they have no scale of their own.
    """
    found = {"tolerance": TOLERANCE, "seed": SEED, "random": {}, "real": {}}
    for name, function in subject.functions.items():
        inputs = {"random": random_inputs(subject.run, function)}
        if not isinstance(real, str):
            inputs["real"] = real.batches(function)
        for kind, batches in inputs.items():
            figures = found[kind][name] = _compare(subject, exported, function, batches)
            worst = max(figures[output] for output in function.outputs)
            say(f"{name}: within {worst:.1e} of the live model on {figures['examples']} {kind} examples")
    if isinstance(real, str):
        found["real"] = None
        say(f"proved on random inputs alone: {real}")
    return found


def _compare(subject: SourceModel, exported, function: Function, batches: Iterator[dict]) -> dict:
    """{"examples": how many, output: largest difference} over as many of `batches` as `SECONDS` allow."""
    examples, largest, begin = 0, dict.fromkeys(function.outputs, 0.0), time.monotonic()
    for arrays in batches:
        live, theirs = (model.call(function.name, **arrays) for model in (subject, exported))
        for output in function.outputs:
            difference = _difference(function.name, output, live[output], theirs[output])
            largest[output] = max(largest[output], difference)
        examples += len(next(iter(arrays.values())))
        if time.monotonic() - begin > SECONDS:
            break
    return {"examples": examples, **largest}


def _difference(name: str, output: str, live: np.ndarray, theirs: np.ndarray) -> float:
    if live.shape != theirs.shape:
        raise ProofFailed(f"{name}: {output} has shape {list(theirs.shape)}, the live model's {list(live.shape)}")
    difference = float(np.abs(live - theirs).max())
    scale = max(1.0, float(np.abs(live).max())) if output == "features" else 1.0
    if not difference <= TOLERANCE * scale:  # NaN is in no order
        raise ProofFailed(
            f"{name}: {output} differs from the live model's by {difference:.1e}, more than {TOLERANCE * scale:.1e}: "
            "nothing is exported"
        )
    return difference


def random_inputs(run: Run, function: Function) -> Iterator[dict[str, np.ndarray]]:
    """Inputs of several batch sizes and text lengths, the same every time: {name: array}."""
    rng = np.random.default_rng(SEED)
    longest = run.config.model.text_tokens
    for batch, length in RANDOM:
        sizes = {BATCH: batch, LENGTH: min(length or longest, longest)}
        made = {}
        for given in function.inputs:
            shape = tuple(sizes.get(size, size) for size in given.shape)
            made[given.name] = _MAKERS[given.name](rng, run, shape)
        yield made


def _random_ids(rng, run: Run, shape: tuple[int, ...]) -> np.ndarray:
    """``[CLS] pieces [SEP] [PAD] ..``, the first text as long as there is room."""
    room = shape[1] - 2
    lengths = np.maximum(rng.integers(0, room + 1, shape[0]), np.eye(1, shape[0], dtype=int)[0] * room)
    pieces = [rng.integers(1, run.vocabulary.size, length).tolist() for length in lengths]
    return np.stack([run.vocabulary.frame(row, shape[1]) for row in pieces])


_MAKERS = {
    "ids": _random_ids,
    "images": lambda rng, run, shape: rng.integers(0, 256, shape).astype(np.uint8),
    "features": lambda rng, run, shape: rng.standard_normal(shape, np.float32),
}


class RealInputs:
    """The first products of a run's validation split, each text with its own image; read when they are asked for."""

    def __init__(self, subject: SourceModel, records: Records):
        self._subject, self._records = subject, records
        self._features: dict[int, np.ndarray] = {}
        self.rows = np.arange(min(PAIRS, len(records)))

    @classmethod
    def of(cls, subject: SourceModel, data: str | None, progress: Callable) -> "RealInputs | str":
        """Those of `data` (a table or glob), or of the run's own tables: the reason where these cannot be read."""
        config = subject.run.config
        try:
            source = Source.one_table(data, config) if data else Source.from_config(config)
            records = build_records(source, subject.run.vocabulary, config.data.prepared, progress)["validation"]
        except (OSError, ValueError) as error:
            if data:
                raise
            return str(error).splitlines()[0]
        return cls(subject, records)

    def batches(self, function: Function) -> Iterator[dict[str, np.ndarray]]:
        """{input: array} of `BATCH_SIZE` products at a time."""
        readers = {"ids": self._ids, "images": self._images, "features": self._features_of}
        for start in range(0, len(self.rows), BATCH_SIZE):
            yield {given.name: readers[given.name](start) for given in function.inputs}

    def _ids(self, start: int) -> np.ndarray:
        run = self._subject.run
        return read_texts(self._records, self._at(start), run.vocabulary, run.config.model.text_tokens)

    def _images(self, start: int) -> np.ndarray:
        return next(
            read_images(self._records, self._at(start), self._subject.run.config.patches.image_size, BATCH_SIZE)
        )

    def _features_of(self, start: int) -> np.ndarray:
        if start not in self._features:
            found = self._images(start)  # of the release's records these are features already
            if not self._subject.run.config.patches.ready_made:
                found = self._subject.call("features", images=found)["features"]
            self._features[start] = found.astype(np.float32)
        return self._features[start]

    def _at(self, start: int) -> np.ndarray:
        return self.rows[start : start + BATCH_SIZE]
