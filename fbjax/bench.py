"""`fbjax bench`: the train step on synthetic batches, each adaptive method in turn in one run, without TensorFlow.

Before anything runs it says what memory the compiled step needs: with no repeats, that is all.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np

from fbjax.batch import Batch
from fbjax.config import Config
from fbjax.mesh import check_batch_size, make_mesh, put_batch
from fbjax.model.fashionbert import build_model
from fbjax.model.patches import build_patch_network
from fbjax.objectives.pretraining import Pretraining
from fbjax.step import init_state, make_optimizer, make_step

METHODS = ("fixed", "loss_softmax", "gradient")
VOCABULARY_SIZE = 30_522


def bench(config: Config, repeats: int, say: Callable[[str], None]) -> dict:
    """Median pairs/s of the config's own method, each method's step time relative to `fixed`, and its memory in bytes.

    Memory is what XLA plans for this device: "state" (parameters, optimiser, frozen weights) and "step" (the rest at
    its peak: batch, activations, gradients). Methods take turns, so that what slows the machine slows all of them; a
    ratio is the median over the rounds.
    """
    mesh = make_mesh(config.mesh)
    check_batch_size(config.train.batch_size, mesh)
    network = build_patch_network(config.patches)
    patches = network.precomputed() if config.patches.cached else network
    objective = Pretraining(build_model(config.model, VOCABULARY_SIZE, network), patches, config.tasks, mask_id=103)
    optimizer = make_optimizer(config.train)
    frozen = {"patches": patches.params}
    batch = put_batch(synthetic_batch(config, network), mesh)

    state = init_state(objective, optimizer, config, mesh)
    steps = {
        method: make_step(objective, optimizer, replace(config.adaptive, method=method), 0, mesh, state)
        .lower(state, frozen, batch)
        .compile()
        for method in METHODS
    }
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves((state, frozen)))
    step_bytes = {method: _peak(step) - state_bytes for method, step in steps.items()}
    for method in METHODS:
        say(f"{method}: state {state_bytes / 2**30:.2f} GiB, step {step_bytes[method] / 2**30:.2f} GiB")
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    for turn in range(repeats + 1 if repeats else 0):  # the first one warms up
        for method, step in steps.items():
            start = time.perf_counter()
            state, metrics = step(state, frozen, batch)
            jax.block_until_ready((state, metrics))
            if turn:
                seconds[method].append(time.perf_counter() - start)
        say(f"round {turn} of {repeats}")
    memory = {"state": state_bytes, "step": step_bytes}
    measured = {"repeats": repeats, "device": jax.devices()[0].device_kind, "memory": memory}
    if not repeats:
        return measured
    pairs = 2 * config.train.batch_size
    ratios = {
        method: statistics.median(a / b for a, b in zip(seconds[method], seconds["fixed"], strict=True))
        for method in METHODS
    }
    return measured | {
        "train": {
            "pairs_per_second": pairs / statistics.median(seconds[config.adaptive.method]),
            "adaptive": {method: ratio for method, ratio in ratios.items() if method != "fixed"},
        }
    }


def _peak(step) -> int:
    """Bytes that a compiled step needs at once; what it updates in place counts once."""
    plan = step.memory_analysis()
    return plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes - plan.alias_size_in_bytes


def synthetic_batch(config: Config, network) -> Batch:
    """Random products of full text length, with whatever the step takes for images."""
    rng = np.random.default_rng(0)
    b, t, size = config.train.batch_size, config.model.text_tokens, config.patches.image_size
    ids = rng.integers(1000, VOCABULARY_SIZE, (b, t), dtype=np.int32)
    word_ids = np.tile(np.arange(-1, t - 1, dtype=np.int32), (b, 1))
    word_ids[:, -1] = -1
    if config.patches.cached:
        shape = (2, b, network.num_patches, network.feature_size)
        images = rng.uniform(0, 3, shape).astype(np.float16)
    else:
        images = rng.integers(0, 255, (2, b, size, size, 3), dtype=np.uint8)
    return Batch(np.arange(b, dtype=np.int32), ids, word_ids, *images)
