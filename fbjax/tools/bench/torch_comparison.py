"""Ours against PyTorch on the same inputs: what both are given, whether they agree, and how much faster we are.

Compared are the paper's three tasks, without towers, whatever the config trains besides. PyTorch trains with `fixed`
weights on patch features from the cache and on masks drawn beforehand, on all cores.
"vs_torch_eager" and "vs_torch_compile" save the work that we save: heads at masked positions, the last layer at the
rows that heads read, AdamW in one kernel; in scoring, texts trimmed to their batch and each image embedded once.
What is left differs by some 2 % of configs/catalogue_paper.py each way: PyTorch's last layer computes the masked rows
of negative pairs, which MLM and MPM leave alone; we compute the MLM head for slots that stay empty, and score texts
padded to a multiple of 8, of 1. "vs_torch_as_written" and, in scoring, "vs_torch_padded" are the plain way.
"""

from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np

from fbjax.monitoring.hardware import matmul_flops
from fbjax.tools.bench import contest, torch_model
from fbjax.tools.bench.timing import Times, peak_share
from fbjax.tools.bench.workload import (
    Steps,
    Workload,
    fresh_parameters,
    score_flops,
    scoring,
    synthetic_batch,
    synthetic_candidates,
    train_flops,
    vocabulary_size,
)

TRAIN = {"vs_torch_eager": "eager", "vs_torch_compile": "compile", "vs_torch_as_written": "as_written"}
SCORE = {"vs_torch_eager": "eager", "vs_torch_compile": "compile", "vs_torch_padded": "padded"}
OURS, PEAK = "ours, as torch", "torch matmul"
NOISE = 0.02


class Comparison:
    """Contenders and figures; made only if losses and scores of both libraries agree. Ours are those of `subject`."""

    def __init__(self, subject: Workload, say: Callable[[str], None]):
        device = contest.prepare_torch()
        self.subject = subject = subject.as_in_the_paper().with_cached_features()
        self._say = say
        network = subject.network
        size = vocabulary_size(subject.config)
        model = torch_model.TorchModel(subject.config, size, network.num_patches, network.feature_size)
        self._contest = contest.TorchContestant(subject.config, model, device)
        self._batch = synthetic_batch(self.subject, subject.config.model.text_tokens)
        self._candidates = synthetic_candidates(self.subject)
        with jax.default_matmul_precision("highest"):
            self._masked = self._check()
        contest.multiply_as_jax()
        say("PyTorch gives the same losses and scores")

    def _check(self) -> torch_model.Masked:
        """Raises where the libraries differ, in float32 and without dropout; the batch as PyTorch takes it."""
        exact = self.subject.with_model(dtype="float32", attention="xla", hidden_dropout=0.0, attention_dropout=0.0)
        params = noisy(fresh_parameters(exact))
        torch_model.copy_parameters(params, self._contest.rival)
        key = jax.random.key(0)
        key_masks, _ = jax.random.split(key)  # as the objective does
        masked = torch_model.collate(exact.objective.prepare(self._batch, key_masks), exact.config.tasks.mask_negatives)
        losses, _ = jax.jit(exact.objective.losses)({"fashionbert": params}, exact.frozen, self._batch, key)
        for theirs in self._contest.losses(masked).values():
            for task, a, b in zip(exact.objective.tasks, np.asarray(losses), theirs, strict=True):
                contest.check(f"{task} loss", a, b)
        ours = scoring(exact, params, self._candidates)()
        for function, trim in ((torch_model.score_needed, True), (torch_model.score_as_written, False)):
            contest.check("scores", ours, self._scoring(function, trim, exact=True)())
        return masked

    def train_contenders(self) -> dict[str, Callable]:
        steps = Steps(self.subject)
        adaptive = replace(self.subject.config.adaptive, method="fixed", every=1)
        steps.compile(OURS, adaptive, self._batch)
        step = self._contest.train_step
        contenders = {
            OURS: steps.contender(OURS, self._batch),
            PEAK: self._contest.matmul(),
            "eager": step(torch_model.needed, self._masked, fused=True),
            "as_written": step(torch_model.as_written, self._masked, fused=False),
        }
        return contenders | self._compiled(lambda: step(contest.compiled(torch_model.needed), self._masked, fused=True))

    def score_contenders(self) -> dict[str, Callable]:
        contenders = {
            PEAK: self._contest.matmul(),
            "eager": self._scoring(torch_model.score_needed, trim=True),
            "padded": self._scoring(torch_model.score_as_written, trim=False),
        }
        return contenders | self._compiled(lambda: self._scoring(contest.compiled(torch_model.score_needed), trim=True))

    def train_ratios(self, times: Times) -> dict:
        return _ratios(times, TRAIN, OURS)

    def score_ratios(self, times: Times) -> dict:
        return _ratios(times, SCORE, "score")

    def own_figures(self, train: Times, score: Times) -> dict:
        """PyTorch's own rates, of pairs/s, and shares of its own peak, by the FLOPs that ours are counted by."""
        best = min(train.seconds[PEAK] + score.seconds[PEAK])
        train_pairs = 2 * self.subject.config.train.batch_size
        figures = {"peak_gflops": matmul_flops() / best / 1e9, "train": {}, "score": {}}
        for name in TRAIN.values():
            figures["train"][name] = _figures(train, name, train_pairs, train_flops(self.subject, self._batch))
        for name in SCORE.values():
            flops = score_flops(self.subject, self._candidates)
            figures["score"][name] = _figures(score, name, len(self._candidates.pairs), flops)
        return figures

    def _scoring(self, function: Callable, trim: bool, exact: bool = False):
        c = self._candidates
        return self._contest.scoring(function, c.ids, c.features, c.pairs, trim, exact)

    def _compiled(self, make: Callable[[], Callable]) -> dict[str, Callable]:
        """The contender after its first run, or nothing where torch.compile does not work (it needs a C++ compiler)."""
        try:
            contender = make()
            contender()
        except Exception as error:  # whatever the compilers raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._say(f"torch.compile does not work here, its figures are null: {reason}")
            return {}
        return {"compile": contender}


def noisy(params: dict) -> dict:
    """`params` with noise on every array: as initialised, biases are all 0 and an exchanged one would not show."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        structure, [x + NOISE * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


def _ratios(times: Times, names: dict[str, str], base: str) -> dict:
    ratios = {}
    for key, name in names.items():
        there = name in times.seconds
        ratios |= times.ratio_entry(key, name, base) if there else {key: None, f"{key}.range": None}
    return ratios


def _figures(times: Times, name: str, pairs: int, flops: float | None) -> dict | None:
    if name not in times.seconds:
        return None
    return {"pairs_per_second": pairs / times.median(name)} | peak_share(times, name, flops, PEAK)
