"""Measures what `fbjax bench` reports: the train step, its adaptive methods, scoring and the patch network, in turn.

Batches are synthetic; only the patch network's weights are read. Every figure is a median over rounds. A round runs
each candidate once, every ratio is taken within a round, and its range is given.

* The training batch holds texts of T - text_bucket < length <= T = text_tokens pieces, padded to T. It is the longest
  of training's length-sorted batches. "by_length" is the speed at the other padded lengths.
* "adaptive" is step time relative to `fixed` weights. "every_16" is (one step that solves + 15 that hold) / 16, both
  kinds timed in each round.
* "peak_share" is (FLOPs / seconds) / (FLOP/s of one large matrix product in the same round and dtype). FLOPs are XLA's
  count, ``cost_analysis()["flops"]``, of the `fixed` step as lowered without recomputation. They leave out the extra
  work of a method. The count of the compiled step differs by 0.1 % (configs/catalogue_paper.py).
* "vs_torch_*" is PyTorch's time over ours at `fixed` weights, with cached patch features; null where torch.compile
  does not work. "torch" has its own rates. See `fbjax.tools.bench.torch_comparison`.
* "score" is null where no task scores pairs: the encoder of such a run reads no pair.
* "peak_gflops" is the best of the matrix products, "patches" the patch network alone.
"""

from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np

from fbjax.config.schema import AdaptiveConfig, Config
from fbjax.data.batches.batch import Batch
from fbjax.model.patch_features import build_patch_network, given_features
from fbjax.monitoring.hardware import matmul, matmul_flops
from fbjax.parallel.mesh import check_fit, make_mesh, put_batch
from fbjax.tools.bench import workload as workloads
from fbjax.tools.bench.timing import Times, peak_share, take_turns
from fbjax.tools.bench.workload import Steps, Workload, synthetic_batch

BASE = "fixed"
VARIANTS = {  # of AdaptiveConfig
    BASE: {"method": "fixed", "every": 1},
    "gradient": {"method": "gradient", "every": 1},
    "loss_softmax": {"method": "loss_softmax", "every": 1},
    "every_16": {"method": "gradient", "every": 16},
    "estimate": {"method": "estimate", "every": 1},
}
ADAPTIVE = [name for name in VARIANTS if name != BASE]
OWN = "own"  # the config's settings, where they equal none of these
NUM_LENGTHS = 4  # at most
TRACED_STEPS = 3


def bench(config: Config, repeats: int, say: Callable[[str], None], compare: str = "", trace: str = "") -> dict:
    """The figures as nested dicts; without repeats only "memory", the bytes that XLA plans for this device.

    "memory", of one device, has "state" (parameters, optimiser, frozen weights) and "step" (the rest at its peak:
    batch, activations, gradients). `compare`: "torch" or nothing. `trace`: a folder for a profile of three steps.
    """
    if compare not in ("", "torch"):
        raise ValueError(f"--compare {compare!r} is unknown (use torch)")
    check_fit(config, make_mesh(config.mesh))
    workload = workloads.make_workload(config, given_features(config.data) or build_patch_network(config.patches))
    comparison = None
    if compare and repeats:
        from fbjax.tools.bench.torch_comparison import Comparison

        comparison = Comparison(workload, say)
    variants, own = _variants(workload.config.adaptive)
    if not repeats:
        variants = {name: variants[name] for name in (BASE, "gradient", own)}
    steps, batch = Steps(workload), synthetic_batch(workload, config.model.text_tokens)
    memory = {"state": steps.state_bytes, "step": {}}
    for name, adaptive in variants.items():
        memory["step"][name] = steps.compile(name, adaptive, batch)
        say(f"{name}: state {steps.state_bytes / 2**30:.2f} GiB, step {memory['step'][name] / 2**30:.2f} GiB")
    figures = {"repeats": repeats, "device": jax.devices()[0].device_kind, "memory": memory}
    if trace:
        steps.trace(own, batch, trace, TRACED_STEPS)
        say(f"trace of {TRACED_STEPS} steps: {trace}")
    if not repeats:
        return figures
    train, train_times = _train(workload, steps, batch, variants, own, repeats, say, comparison)
    score, products = None, train_times.seconds["matmul"]
    scored = comparison.workload if comparison else workload
    if any(task.scores_pairs for task in scored.config.tasks.values()):
        score, score_times = _score(scored, repeats, say, comparison)
        products = products + score_times.seconds["matmul"]
        if comparison:
            train_ratios, score_ratios, figures["torch"] = comparison.figures(train_times, score_times)
            train, score = train | train_ratios, score | score_ratios
    figures |= {"train": train, "score": score, "patches": _patches(workload, repeats, say)}
    return figures | {"peak_gflops": matmul_flops() / min(products) / 1e9}


def _variants(own: AdaptiveConfig) -> tuple[dict[str, AdaptiveConfig], str]:
    """The settings to compare, by name, and the name of the config's own."""
    variants = {name: replace(own, **settings) for name, settings in VARIANTS.items()}
    name = next((name for name, settings in variants.items() if settings == own), OWN)
    return variants | {name: own}, name


def _train(
    workload: Workload, steps: Steps, batch: Batch, variants, own: str, repeats: int, say, comparison
) -> tuple[dict, Times]:
    """fbjax's "train" figures, and the times of all candidates."""
    config = workload.config
    *shorter, longest = workloads.padded_lengths(config, NUM_LENGTHS)
    timed = {name: (adaptive, batch) for name, adaptive in variants.items()}
    for length in shorter:
        timed[f"length {length}"] = (variants[own], synthetic_batch(workload, length))
        steps.compile(f"length {length}", *timed[f"length {length}"])
    candidates = {"matmul": matmul(config.model.dtype)}
    for name, (adaptive, given) in timed.items():
        kinds = {f"{name} solving": 0, f"{name} holding": 1} if adaptive.every > 1 else {name: 0}
        candidates |= {kind: steps.candidate(name, given, at) for kind, at in kinds.items()}
    if comparison:
        candidates |= comparison.train_candidates()
    times = take_turns(candidates, repeats, _rounds(say, "train", repeats))
    for name, (adaptive, _) in timed.items():
        if adaptive.every > 1:
            share = 1 / adaptive.every
            times = times.mixed(name, {f"{name} solving": share, f"{name} holding": 1 - share})
    pairs = 2 * config.train.batch_size
    rate = pairs / times.median(own)
    figures = {"pairs_per_second": rate} | peak_share(times, own, workloads.train_flops(workload, batch))
    figures["adaptive"] = {}
    for name in ADAPTIVE:
        figures["adaptive"] |= times.ratio_entry(name, name, BASE)
    figures["by_length"] = {str(n): pairs / times.median(f"length {n}") for n in shorter} | {str(longest): rate}
    return figures, times


def _score(workload: Workload, repeats: int, say, comparison) -> tuple[dict, Times]:
    """fbjax's "score" figures, and the times of all candidates; images are embedded once, beforehand."""
    workload = workload.with_cached_features()
    scored = workloads.synthetic_candidates(workload)
    score = workloads.scoring(workload, workloads.fresh_parameters(workload), scored)
    candidates = {"matmul": matmul(workload.config.model.dtype), "score": score}
    if comparison:
        candidates |= comparison.score_candidates()
    times = take_turns(candidates, repeats, _rounds(say, "score", repeats))
    figures = {"pairs_per_second": len(scored.pairs) / times.median("score")}
    return figures | peak_share(times, "score", workloads.score_flops(workload, scored)), times


def _patches(workload: Workload, repeats: int, say) -> dict:
    """Images/s of the patch network, from pixels on the device to features."""
    size, count = workload.config.patches.image_size, workload.config.train.batch_size
    images = np.random.default_rng(0).integers(0, 255, (count, size, size, 3), dtype=np.uint8)
    images, params = put_batch(images, workload.mesh), jax.device_put(workload.network.params)
    apply = jax.jit(workload.network.apply)
    candidates = {"patches": lambda: apply(params, images).block_until_ready()}
    times = take_turns(candidates, repeats, _rounds(say, "patches", repeats))
    return {"images_per_second": count / times.median("patches")}


def _rounds(say: Callable[[str], None], what: str, repeats: int) -> Callable[[int], None]:
    return lambda turn: say(f"{what}: round {turn} of {repeats}" if turn > 0 else f"{what}: warming up")


def format_table(figures: dict) -> list[str]:
    """The figures as lines of text; none where only memory was planned."""
    if not figures["repeats"]:
        return []
    train, score = figures["train"], figures["score"]
    lines = [
        f"{figures['device']}, medians of {figures['repeats']} rounds; a matrix product reaches "
        f"{figures['peak_gflops']:.0f} GFLOP/s",
        f"train     {train['pairs_per_second']:>9,.0f} pairs/s   {_share(train)}",
        *(f"  {n + ' pieces':<18}{rate:>9,.0f} pairs/s" for n, rate in train["by_length"].items()),
        *(f"  {name:<18}{_ratio(train['adaptive'], name)} x the time of fixed weights" for name in ADAPTIVE),
        *([f"score     {score['pairs_per_second']:>9,.0f} pairs/s   {_share(score)}"] if score else []),
        f"patches   {figures['patches']['images_per_second']:>9,.0f} images/s",
    ]
    if "torch" in figures:
        lines.append(f"PyTorch's time over ours (its matrix product: {figures['torch']['peak_gflops']:.0f} GFLOP/s)")
        for name, part in (("train", train), ("score", score)):
            keys = [key for key in part if key.startswith("vs_torch_") and not key.endswith(".range")]
            words = {key: f"{name}, {key.removeprefix('vs_torch_').replace('_', ' ')}" for key in keys}
            lines += [f"  {words[key]:<18}{_ratio(part, key)}" for key in keys]
    return lines


def _share(part: dict) -> str:
    return "" if part["peak_share"] is None else f"{part['peak_share']:.0%} of the FLOP/s of a matrix product"


def _ratio(part: dict, key: str) -> str:
    if part[key] is None:
        return "  not measured"
    low, high = part[f"{key}.range"]
    return f"{part[key]:>7.2f} ({low:.2f} to {high:.2f})"
