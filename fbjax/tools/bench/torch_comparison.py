"""Compares fbjax with PyTorch on the same inputs: checks that the results agree, then times both.

Both run the paper's three tasks without an embedder, and no other task of the config. PyTorch trains with `fixed`
weights, on cached patch features and on masks that are drawn beforehand. It uses all cores.
"vs_torch_eager" and "vs_torch_compile" skip the work that fbjax skips. Heads compute masked positions, the last layer
computes the rows that heads read, and AdamW is one kernel. In scoring, texts are padded to the longest of their batch
and each image is embedded once. The remaining differences are some 2 % of configs/catalogue_paper.py each way.
PyTorch's last layer computes the masked rows of negative pairs, which MLM and MPM do not read. fbjax computes the MLM
head for empty slots, and pads scored texts to a multiple of 8, not of 1.
"vs_torch_as_written" and, in scoring, "vs_torch_padded" are the plain implementations.
"""

import os
from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np
import torch
from torch import nn

from fbjax.config.schema import TrainConfig
from fbjax.data.text.wordpiece import PAD_ID
from fbjax.inference.pair_scorer import ACCELERATOR_PAIRS, CPU_PAIRS
from fbjax.monitoring.hardware import matmul_flops, matmul_size
from fbjax.tools.bench import torch_model
from fbjax.tools.bench import workload as workloads
from fbjax.tools.bench.timing import Times, peak_share

TOLERANCE = 1e-4  # relative
TRAIN = {"vs_torch_eager": "eager", "vs_torch_compile": "compile", "vs_torch_as_written": "as_written"}
SCORE = {"vs_torch_eager": "eager", "vs_torch_compile": "compile", "vs_torch_padded": "padded"}
OURS, PEAK = "ours, as torch", "torch matmul"
NOISE = 0.02


class Comparison:
    """Timed functions of PyTorch and their figures; fbjax runs `workload`.

    Raises ValueError where losses or scores of the two libraries differ.
    """

    def __init__(self, workload: workloads.Workload, say: Callable[[str], None]):
        self._device, self._say = _torch_device(), say
        self.workload = workload.as_in_the_paper().with_cached_features()
        self._config, network = self.workload.config, self.workload.network
        size = workloads.vocabulary_size(self._config)
        model = torch_model.TorchModel(self._config, size, network.num_patches, network.feature_size)
        self._model = model.to(self._device)
        self._optimizers = {fused: _adamw(self._model, self._config.train, fused) for fused in (True, False)}
        weights = [task.weight for task in self._config.tasks.values()]
        self._weights = torch.tensor(weights, device=self._device)
        self._batch = workloads.synthetic_batch(self.workload, self._config.model.text_tokens)
        self._scored = workloads.synthetic_candidates(self.workload)
        with jax.default_matmul_precision("highest"):
            self._masked = self._check().to(self._device)
        torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as XLA's default for products of float32 matrices
        say("PyTorch gives the same losses and scores")

    def _check(self) -> torch_model.Masked:
        """Raises where the libraries differ, in float32 and without dropout; returns the batch for PyTorch."""
        exact = self.workload.with_model(dtype="float32", attention="xla", hidden_dropout=0.0, attention_dropout=0.0)
        params = noisy(workloads.fresh_parameters(exact))
        torch_model.copy_parameters(params, self._model)
        key = jax.random.key(0)
        key_masks, _ = jax.random.split(key)  # as the objective does
        masked = torch_model.collate(exact.objective.draw_masks(self._batch, key_masks))
        losses, _ = jax.jit(exact.objective.losses)({"fashionbert": params}, exact.frozen, self._batch, key)
        self._model.eval()
        for implementation in (torch_model.needed, torch_model.as_written):
            with torch.inference_mode():
                theirs = implementation(self._model, masked.to(self._device)).cpu().numpy()
            for task, a, b in zip(exact.objective.names, np.asarray(losses), theirs, strict=True):
                _check_equal(f"{task} loss", a, b)
        scores = workloads.scoring(exact, params, self._scored)()
        for implementation, trim in ((torch_model.score_needed, True), (torch_model.score_as_written, False)):
            _check_equal("scores", scores, self._scoring(implementation, trim, exact=True)())
        return masked

    def train_candidates(self) -> dict[str, Callable]:
        steps = workloads.Steps(self.workload)
        steps.compile(OURS, replace(self._config.adaptive, method="fixed", every=1), self._batch)
        candidates = {
            OURS: steps.candidate(OURS, self._batch),
            PEAK: self._matmul(),
            "eager": self._train_step(torch_model.needed, fused=True),
            "as_written": self._train_step(torch_model.as_written, fused=False),
        }
        return candidates | self._compiled(lambda: self._train_step(torch.compile(torch_model.needed), fused=True))

    def score_candidates(self) -> dict[str, Callable]:
        candidates = {
            PEAK: self._matmul(),
            "eager": self._scoring(torch_model.score_needed, trim=True),
            "padded": self._scoring(torch_model.score_as_written, trim=False),
        }
        return candidates | self._compiled(lambda: self._scoring(torch.compile(torch_model.score_needed), trim=True))

    def figures(self, train: Times, score: Times) -> tuple[dict, dict, dict]:
        """The ratios of training, those of scoring, and PyTorch's own rates with shares of its own peak."""
        best = min(train.seconds[PEAK] + score.seconds[PEAK])
        own, train_pairs = {"peak_gflops": matmul_flops() / best / 1e9}, 2 * self._config.train.batch_size
        flops = workloads.train_flops(self.workload, self._batch)
        own["train"] = {name: _rate(train, name, train_pairs, flops) for name in TRAIN.values()}
        flops = workloads.score_flops(self.workload, self._scored)
        own["score"] = {name: _rate(score, name, len(self._scored.pairs), flops) for name in SCORE.values()}
        return _ratios(train, TRAIN, OURS), _ratios(score, SCORE, "score"), own

    def _train_step(self, losses: Callable, fused: bool) -> Callable[[], float]:
        """A candidate: losses, gradient, clipping and AdamW with fixed task weights."""
        optimizer = self._optimizers[fused]

        def step() -> float:
            self._model.train()
            with self._precision():
                loss = self._weights @ losses(self._model, self._masked)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self._model.parameters(), self._config.train.clip_norm)
            optimizer.step()
            return loss.item()

        return step

    def _scoring(self, function: Callable, trim: bool, exact: bool = False) -> Callable[[], np.ndarray]:
        """A candidate: the scores [N] of all (text, image) pairs. `exact`: in float32, not in the config's dtype.

        `trim`: pairs sorted by length, each batch padded to its longest text, each image embedded beforehand. Without
        it, each batch has every column of the ids and embeds its own images.
        """
        pairs, columns = self._scored.pairs, self._scored.ids.shape[1]
        lengths = (self._scored.ids != PAD_ID).sum(axis=1)[pairs[:, 0]]
        order = np.argsort(lengths, kind="stable") if trim else np.arange(len(pairs))
        size = CPU_PAIRS if self._device.type == "cpu" else ACCELERATOR_PAIRS
        ids = torch.from_numpy(self._scored.ids.astype(np.int64)).to(self._device)
        images = torch.from_numpy(self._scored.features.astype(np.float32)).to(self._device)
        with torch.inference_mode():
            images = self._model.eval().embed_image(images) if trim else images

        @torch.inference_mode()
        def run() -> np.ndarray:
            self._model.eval()
            in_order = []
            for start in range(0, len(pairs), size):
                members = order[start : start + size]
                text = ids[pairs[members, 0], : lengths[members].max() if trim else columns]
                with self._precision(exact):
                    in_order.append(function(self._model, text, images[pairs[members, 1]]).float())
            scores = np.empty(len(pairs), np.float32)
            scores[order] = torch.cat(in_order).cpu().numpy()
            return scores

        return run

    def _matmul(self) -> Callable[[], None]:
        """A candidate: one product of two square matrices, in the model's dtype."""
        dtype = getattr(torch, self._config.model.dtype)
        a = torch.randn(matmul_size(), matmul_size(), device=self._device, dtype=dtype)

        def product() -> None:
            a @ a
            if self._device.type == "cuda":
                torch.cuda.synchronize()

        return product

    def _precision(self, exact: bool = False):
        enabled = self._config.model.dtype == "bfloat16" and not exact
        return torch.autocast(self._device.type, torch.bfloat16, enabled=enabled)

    def _compiled(self, make: Callable[[], Callable]) -> dict[str, Callable]:
        """The candidate after its first run, or nothing where torch.compile fails (it needs a C++ compiler)."""
        try:
            candidate = make()
            candidate()
        except Exception as error:  # the compilers raise many types
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._say(f"torch.compile does not work here, its figures are null: {reason}")
            return {}
        return {"compile": candidate}


def noisy(params: dict) -> dict:
    """`params` with noise on every array: initial biases are all 0, so that two exchanged ones would not show."""
    structure = jax.tree.structure(params)
    keys = jax.tree.unflatten(structure, [*jax.random.split(jax.random.key(1), structure.num_leaves)])
    return jax.tree.map(lambda x, key: x + NOISE * jax.random.normal(key, x.shape), params, keys)


def _torch_device() -> torch.device:
    """The kind of device that JAX has, with as many threads. Raises ValueError where PyTorch has none."""
    if hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    if jax.default_backend() == "cpu":
        return torch.device("cpu")
    if jax.default_backend() != "gpu" or not torch.cuda.is_available():
        raise ValueError(f"JAX runs on {jax.default_backend()}, PyTorch cannot: compare with JAX_PLATFORMS=cpu")
    if jax.device_count() > 1:
        raise ValueError(f"PyTorch would run on 1 device, JAX on {jax.device_count()}: set CUDA_VISIBLE_DEVICES=0")
    return torch.device("cuda")


def _adamw(model: nn.Module, train: TrainConfig, fused: bool) -> torch.optim.AdamW:
    """AdamW in one kernel (`fused`), or PyTorch's default; the fastest, and the first that one writes."""
    decayed, others = ([p for p in model.parameters() if (p.ndim > 1) is matrix] for matrix in (True, False))
    groups = [{"params": decayed, "weight_decay": train.weight_decay}, {"params": others, "weight_decay": 0.0}]
    betas = (train.beta1, train.beta2)
    return torch.optim.AdamW(groups, lr=train.learning_rate, betas=betas, eps=1e-6, fused=fused or None)


def _check_equal(what: str, ours: np.ndarray | float, theirs: np.ndarray | float) -> None:
    difference = np.abs(np.subtract(ours, theirs)).max() / np.abs(ours).max()
    if not difference <= TOLERANCE:
        raise ValueError(f"{what}: fbjax and PyTorch differ by {difference:.1e} of it, above {TOLERANCE}: not compared")


def _ratios(times: Times, names: dict[str, str], base: str) -> dict:
    ratios = {}
    for key, name in names.items():
        timed = name in times.seconds
        ratios |= times.ratio_entry(key, name, base) if timed else {key: None, f"{key}.range": None}
    return ratios


def _rate(times: Times, name: str, pairs: int, flops: float | None) -> dict | None:
    if name not in times.seconds:
        return None
    return {"pairs_per_second": pairs / times.median(name)} | peak_share(times, name, flops, PEAK)
