"""Products a second that the input pipeline gives, from records and from arrays: no model, no device.

    fbjax prepare --config my_catalogue --config.data.train=products.csv --arrays arrays
    python launch/input_speed.py --config my_catalogue --arrays arrays --config.data.train=products.csv

A rate per CPU second counts the time of all threads, so other work on the machine changes it little.
"""

import argparse
import contextlib
import time
from dataclasses import replace

from fbjax.config.load import load_config
from fbjax.data.batches.sampler import Sampler
from fbjax.data.batches.split import Split
from fbjax.runs.splits import open_splits
from fbjax.runs.vocabulary import make_vocabulary


def measure(config, split: Split, vocabulary, num_steps: int) -> tuple[float, float]:
    """Products a second, and a CPU second, over `num_steps` batches with negatives; the first batch is not timed."""
    sampler, patches = Sampler.of(split, config.train, config.model, lambda step: 0.0), config.patches
    reads = {"image_size": patches.image_size, "fit": patches.fit, "with_negatives": True}
    with contextlib.closing(split.train_batches(sampler, vocabulary, num_steps=num_steps + 1, **reads)) as batches:
        next(batches)
        wall, cpu = time.perf_counter(), time.process_time()
        num_products = sum(len(batch.index) for batch in batches)
        return num_products / (time.perf_counter() - wall), num_products / (time.process_time() - cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--arrays", required=True)
    parser.add_argument("--steps", type=int, default=60)
    args, overrides = parser.parse_known_args()
    config = load_config(args.config, [override.removeprefix("--config.") for override in overrides])
    vocabulary = make_vocabulary(config, print)
    for name, arrays in (("records", ""), ("arrays", args.arrays)) * 2:
        split = open_splits(replace(config, data=replace(config.data, arrays=arrays)), vocabulary)["train"]
        rates = measure(config, split, vocabulary, args.steps)
        print(f"{name}: {rates[0]:,.0f} products/s, {rates[1]:,.0f} a CPU second")


if __name__ == "__main__":
    main()
