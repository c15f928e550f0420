"""What `fbjax bench` measures: the train step, its adaptive methods, scoring and the patch network, in turn.

Batches are synthetic; nothing is read but the patch network's weights. Every figure is a median over rounds in which
each contender runs once; every ratio is taken within a round, and stands with its range.

* The training batch holds texts of T - text_bucket < length <= T = text_tokens pieces, padded to T: one of training's
  length-sorted batches, the longest. "by_length" is the speed at the other padded lengths.
* "adaptive" is step time relative to `fixed` weights. "every_16" is (one step that solves + 15 that hold) / 16, both
  kinds timed in each round.
* "peak_share" is (FLOPs / seconds) / (FLOP/s of one large matrix product in the same round and dtype). FLOPs are XLA's
  count, ``cost_analysis()["flops"]``, of the `fixed` step as lowered without recomputation: what has to be computed,
  not what a method computes besides. The count of the compiled step differs by 0.1 % (configs/catalogue_paper.py).
* "vs_torch_*", only where PyTorch runs too, is its time over ours at `fixed` weights, patch features taken from the
  cache; null where torch.compile does not work. "torch" has its own rates. See `fbjax.tools.bench.torch_comparison`.
* "score" is null where no task learns alignment (tia): towers score no pair through the encoder.
* "peak_gflops" is the best of the matrix products, "patches" the patch network alone.
"""

from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np

from fbjax.config.schema import AdaptiveConfig, Config
from fbjax.data.batches.batch import Batch
from fbjax.model.patch_features import build_patch_network
from fbjax.monitoring.hardware import matmul, matmul_flops
from fbjax.parallel.mesh import check_fit, make_mesh, put_batch
from fbjax.tools.bench.timing import peak_share, take_turns
from fbjax.tools.bench.workload import (
    Steps,
    Workload,
    fresh_parameters,
    make_workload,
    padded_lengths,
    score_flops,
    scoring,
    synthetic_batch,
    synthetic_candidates,
    train_flops,
)

BASE = "fixed"
VARIANTS = {  # of AdaptiveConfig
    BASE: {"method": "fixed", "every": 1},
    "gradient": {"method": "gradient", "every": 1},
    "loss_softmax": {"method": "loss_softmax", "every": 1},
    "every_16": {"method": "gradient", "every": 16},
    "estimate": {"method": "estimate", "every": 1},
}
OWN = "own"  # the config's own settings, where they are none of these
NUM_LENGTHS = 4  # at most
TRACED_STEPS = 3


def bench(config: Config, repeats: int, say: Callable[[str], None], compare: str = "", trace: str = "") -> dict:
    """The figures as nested dicts; with no repeats only "memory": what XLA plans for this device, in bytes.

    "memory", of one device, has "state" (parameters, optimiser, frozen weights) and "step" (the rest at its peak:
    batch, activations, gradients). `compare`: "torch" or nothing. `trace`: a folder for a profile of three steps.
    """
    if compare not in ("", "torch"):
        raise ValueError(f"nothing to compare with is called {compare!r} (use torch)")
    check_fit(config, make_mesh(config.mesh))
    subject = make_workload(config, build_patch_network(config.patches))
    comparison = None
    if compare and repeats:
        from fbjax.tools.bench.torch_comparison import Comparison

        comparison = Comparison(subject, say)
    variants, own = _variants(subject.config.adaptive)
    if not repeats:
        variants = {name: variants[name] for name in (BASE, "gradient", own)}
    steps, batch = Steps(subject), synthetic_batch(subject, config.model.text_tokens)
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
    train, train_times = _train(subject, steps, batch, variants, own, repeats, say, comparison)
    scored = comparison.subject if comparison else subject
    if "tia" not in scored.config.tasks.names:  # towers alone: no pair goes through the encoder together
        figures |= {"train": train, "score": None, "patches": _patches(subject, repeats, say)}
        return figures | {"peak_gflops": matmul_flops() / min(train_times.seconds["matmul"]) / 1e9}
    score, score_times = _score(scored, repeats, say, comparison)
    if comparison:
        train |= comparison.train_ratios(train_times)
        score |= comparison.score_ratios(score_times)
        figures["torch"] = comparison.own_figures(train_times, score_times)
    figures |= {"train": train, "score": score, "patches": _patches(subject, repeats, say)}
    best = min(train_times.seconds["matmul"] + score_times.seconds["matmul"])
    return figures | {"peak_gflops": matmul_flops() / best / 1e9}


def _variants(own: AdaptiveConfig) -> tuple[dict[str, AdaptiveConfig], str]:
    """What is compared, by name, and which of them is the config's own."""
    variants = {name: replace(own, **settings) for name, settings in VARIANTS.items()}
    name = next((name for name, settings in variants.items() if settings == own), OWN)
    return variants | {name: own}, name


def _train(subject: Workload, steps: Steps, batch: Batch, variants, own: str, repeats: int, say, comparison):
    """The "train" figures of our own, and the times that they come from."""
    config = subject.config
    lengths = padded_lengths(config, NUM_LENGTHS)
    timed = {name: (adaptive, batch) for name, adaptive in variants.items()}
    for length in lengths[:-1]:
        timed[f"length {length}"] = (variants[own], synthetic_batch(subject, length))
        steps.compile(f"length {length}", *timed[f"length {length}"])
    contenders = {"matmul": matmul(config.model.dtype)}
    for name, (adaptive, given) in timed.items():
        kinds = {f"{name} solving": 0, f"{name} holding": 1} if adaptive.every > 1 else {name: 0}
        contenders |= {kind: steps.contender(name, given, at) for kind, at in kinds.items()}
    if comparison:
        contenders |= comparison.train_contenders()
    times = take_turns(contenders, repeats, _rounds(say, "train", repeats))
    for name, (adaptive, _) in timed.items():
        if adaptive.every > 1:
            share = 1 / adaptive.every
            times = times.mixed(name, {f"{name} solving": share, f"{name} holding": 1 - share})
    pairs = 2 * config.train.batch_size
    figures = {"pairs_per_second": pairs / times.median(own)} | peak_share(times, own, train_flops(subject, batch))
    figures["adaptive"] = {}
    for name in (name for name in VARIANTS if name != BASE):
        figures["adaptive"] |= times.ratio_entry(name, name, BASE)
    figures["by_length"] = {str(n): pairs / times.median(f"length {n}") for n in lengths[:-1]}
    figures["by_length"][str(lengths[-1])] = figures["pairs_per_second"]
    return figures, times


def _score(subject: Workload, repeats: int, say, comparison):
    """The "score" figures of our own, and the times that they come from; images are embedded beforehand, once."""
    subject = subject.with_cached_features()
    candidates = synthetic_candidates(subject)
    score = scoring(subject, fresh_parameters(subject), candidates)
    contenders = {"matmul": matmul(subject.config.model.dtype), "score": score}
    if comparison:
        contenders |= comparison.score_contenders()
    times = take_turns(contenders, repeats, _rounds(say, "score", repeats))
    figures = {"pairs_per_second": len(candidates.pairs) / times.median("score")}
    return figures | peak_share(times, "score", score_flops(subject, candidates)), times


def _patches(subject: Workload, repeats: int, say) -> dict:
    """Images/s of the patch network, from pixels on the device to features."""
    size, count = subject.config.patches.image_size, subject.config.train.batch_size
    images = np.random.default_rng(0).integers(0, 255, (count, size, size, 3), dtype=np.uint8)
    images, params = put_batch(images, subject.mesh), jax.device_put(subject.network.params)
    apply = jax.jit(subject.network.apply)
    times = take_turns(
        {"patches": lambda: apply(params, images).block_until_ready()}, repeats, _rounds(say, "patches", repeats)
    )
    return {"images_per_second": count / times.median("patches")}


def _rounds(say: Callable[[str], None], what: str, repeats: int) -> Callable[[int], None]:
    return lambda turn: say(f"{what}: round {turn} of {repeats}" if turn > 0 else f"{what}: warming up")


def format_table(figures: dict) -> list[str]:
    """The figures as lines to read; nothing where only memory was planned."""
    if not figures["repeats"]:
        return []
    train, score = figures["train"], figures["score"]
    adaptive = [name for name in VARIANTS if name != BASE]
    lines = [
        f"{figures['device']}, medians of {figures['repeats']} rounds; a matrix product reaches "
        f"{figures['peak_gflops']:.0f} GFLOP/s",
        f"train     {train['pairs_per_second']:>9,.0f} pairs/s   {_share(train)}",
        *(f"  {n + ' pieces':<18}{rate:>9,.0f} pairs/s" for n, rate in train["by_length"].items()),
        *(f"  {name:<18}{_ratio(train['adaptive'], name)} x the time of fixed weights" for name in adaptive),
        *([f"score     {score['pairs_per_second']:>9,.0f} pairs/s   {_share(score)}"] if score else []),
        f"patches   {figures['patches']['images_per_second']:>9,.0f} images/s",
    ]
    if "torch" in figures:
        lines.append(f"PyTorch's time over ours (its matrix product: {figures['torch']['peak_gflops']:.0f} GFLOP/s)")
        for name, part in (("train", train), ("score", score)):
            keys = [key for key in part if key.startswith("vs_torch_") and not key.endswith(".range")]
            lines += [f"  {name + ', ' + _words(key):<18}{_ratio(part, key)}" for key in keys]
    return lines


def _share(part: dict) -> str:
    return "" if part["peak_share"] is None else f"{part['peak_share']:.0%} of the FLOP/s of a matrix product"


def _ratio(part: dict, key: str) -> str:
    if part[key] is None:
        return "  not measured"
    low, high = part[f"{key}.range"]
    return f"{part[key]:>7.2f} ({low:.2f} to {high:.2f})"


def _words(key: str) -> str:
    return key.removeprefix("vs_torch_").replace("_", " ")
