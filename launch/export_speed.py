"""How fast a run is in each format it was exported to, beside the live model, in one process and in turns.

    fbjax export --workdir runs/mine --format onnx --out exported/onnx
    python launch/export_speed.py --workdir runs/mine exported/onnx exported/stablehlo exported/hf

Examples a second (pairs, texts, images), the median of the rounds, random inputs of the run's sizes, texts of full
length, each runtime with the threads it takes by itself. Every line is a round of all formats after each other, so that
what else the machine does falls on all of them. On the CPU; PyTorch runs eagerly, as it comes.
"""

import argparse
import importlib
import json
import statistics
import time
from pathlib import Path

import numpy as np

from fbjax.export.functions import BATCH, LENGTH, Function
from fbjax.export.package import FORMATS
from fbjax.export.source_model import SourceModel
from fbjax.exported import manifest

ASKED = ("match", "match_features", "embed_text", "embed_image", "embed_image_features")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("exports", nargs="+", metavar="DIR")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    source_model = SourceModel.open(arguments.workdir, None, with_heads=False)
    models = {"live": source_model} | dict(map(load, arguments.exports))
    print(f"{'':22}" + "".join(f"{name:>12}" for name in models))
    for name in (name for name in ASKED if name in source_model.functions):
        arrays = random_arrays(source_model, source_model.functions[name], arguments.batch)
        rates = [
            arguments.batch / seconds for seconds in time_in_turns(models.values(), name, arrays, arguments.rounds)
        ]
        print(f"{name:22}" + "".join(f"{rate:12,.0f}" for rate in rates), flush=True)


def load(folder: str) -> tuple[str, object]:
    """(format, what `call` runs)."""
    form = json.loads((Path(folder) / manifest.FILE).read_text())["format"]
    return form, importlib.import_module(f"fbjax.export.{FORMATS[form][0]}").load(Path(folder))


def random_arrays(source_model: SourceModel, function: Function, batch: int) -> dict[str, np.ndarray]:
    rng, sizes = np.random.default_rng(0), {BATCH: batch, LENGTH: source_model.run.config.model.text_tokens}
    arrays = {}
    for given in function.inputs:
        shape = [sizes.get(size, size) for size in given.shape]
        largest = {"ids": source_model.run.vocabulary.size, "images": 256}.get(given.name)
        found = rng.integers(1, largest, shape) if largest else rng.standard_normal(shape)
        arrays[given.name] = found.astype(given.dtype)
    return arrays


def time_in_turns(models, name: str, arrays: dict[str, np.ndarray], rounds: int) -> list[float]:
    """Median seconds of a call to each of `models`, the first call of which does not count."""
    models = list(models)
    seconds = [[] for _ in models]
    for _ in range(rounds + 1):
        for taken, model in zip(seconds, models, strict=True):
            start = time.perf_counter()
            model.call(name, **arrays)
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken[1:]) for taken in seconds]


if __name__ == "__main__":
    main()
