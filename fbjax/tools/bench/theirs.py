"""PyTorch as a contestant: checks that it computes what fbjax computes, then trains and scores.

Both run the paper's three tasks without an embedder, and no other task of the config. PyTorch trains with `fixed`
weights on cached patch features, and uses all cores.
"eager" and "compile" skip the work that fbjax skips. Heads compute masked positions, the last layer computes the rows
that heads read, and AdamW is one kernel. In scoring, texts are padded to the longest of their batch, each image is
embedded once, and equal lengths need no mask. Both draw masks in each step; PyTorch's losses then read those of the
check, which fbjax has drawn. The remaining differences are some 2 % of configs/catalogue_paper.py each way. PyTorch's
last layer computes the masked rows of negative pairs, which MLM and MPM do not read. fbjax computes the MLM head for
empty slots, and pads scored texts to a multiple of 8, not of 1.
"as_written" is the plain implementation, with AdamW as it is by default.
"""

import os
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from fbjax.config.load import config_from_json
from fbjax.config.schema import PAPER_TASKS, TASKS, TrainConfig
from fbjax.data.text.wordpiece import PAD_ID
from fbjax.inference.pair_scorer import ACCELERATOR_PAIRS, CPU_PAIRS
from fbjax.monitoring.hardware import matmul_size
from fbjax.tasks.objective import MaskedBatch
from fbjax.tools.bench import torch_model
from fbjax.tools.bench.timing import Run, timed
from fbjax.tools.bench.workload import ScoredPairs

TOLERANCE = 1e-4  # relative
MEMORY_SHARE = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # which `fbjax.tools.bench.bench` sets for both
RECOMPILE_LIMIT = 64  # programs of one function: the default of 8 leaves some text lengths uncompiled


class Theirs:
    """The paper's workload of a config, given as JSON, on the kind of device that JAX has."""

    def __init__(self, config_json: str, platform: str, num_devices: int):
        self._config, self._device = config_from_json(config_json), _torch_device(platform, num_devices)
        self._weights = torch.tensor([TASKS[name]().weight for name in PAPER_TASKS], device=self._device)
        self._candidates: dict[str, Callable] = {}
        torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT

    def check(
        self,
        vocabulary_size: int,
        num_patches: int,
        feature_size: int,
        params: dict,
        masked: MaskedBatch,
        losses: np.ndarray,
        pairs: ScoredPairs,
        scores: np.ndarray,
    ) -> None:
        """Raises ValueError where losses or scores differ from fbjax's, in float32 and without dropout."""
        model = torch_model.TorchModel(self._config, vocabulary_size, num_patches, feature_size)
        torch_model.copy_parameters(params, model)
        self._model, self._pairs = model.to(self._device), pairs
        self._masked = torch_model.collate(masked).to(self._device)
        self._model.eval()
        for implementation in (torch_model.needed, torch_model.as_written):
            with torch.inference_mode():
                found = implementation(self._model, self._masked).cpu().numpy()
            for name, a, b in zip(PAPER_TASKS, losses, found, strict=True):
                _check_equal(f"{name} loss", a, b)
        for implementation, trim in ((torch_model.score_needed, True), (torch_model.score_as_written, False)):
            _check_equal("scores", scores, self._scoring(implementation, trim, exact=True)())
        self._optimizers = {fused: _adamw(self._model, self._config.train, fused) for fused in (True, False)}
        torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as XLA's default for products of float32 matrices

    def prepare(self, name: str) -> float:
        """Makes the candidate `name`, which compiles when it first runs; the seconds that took."""
        start = time.perf_counter()
        self._candidates[name] = self._made(name)
        self._candidates[name]()
        self._wait()
        return time.perf_counter() - start

    def run(self, name: str, count: int) -> Run:
        """A run of `count` launches."""
        return timed(self._candidates[name], self._wait, count)

    def _made(self, name: str) -> Callable:
        needed, score = torch_model.needed, torch_model.score_needed
        match name.split():
            case ["matmul"]:
                dtype, size = getattr(torch, self._config.model.dtype), matmul_size(self._device.type)
                a = torch.randn(size, size, device=self._device, dtype=dtype)
                return lambda: a @ a
            case ["step", "as_written"]:
                return self._train_step(torch_model.as_written, fused=False)
            case ["step", how]:
                return self._train_step(torch.compile(needed) if how == "compile" else needed, fused=True)
            case ["score", "as_written"]:
                return self._scoring(torch_model.score_as_written, trim=False)
            case ["score", how]:
                return self._scoring(torch.compile(score) if how == "compile" else score, trim=True)
        raise ValueError(f"no candidate {name}")

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _train_step(self, losses: Callable, fused: bool) -> Callable[[], torch.Tensor]:
        """A candidate: masks, losses, gradient, clipping and AdamW with fixed task weights."""
        optimizer, rate = self._optimizers[fused], TASKS["mlm"]().rate

        def step() -> torch.Tensor:
            self._model.train()
            torch_model.draw_masks(self._masked, rate)
            with self._precision():
                loss = self._weights @ losses(self._model, self._masked)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self._model.parameters(), self._config.train.clip_norm)
            optimizer.step()
            return loss.detach()

        return step

    def _scoring(self, function: Callable, trim: bool, exact: bool = False) -> Callable[[], np.ndarray]:
        """A candidate: the scores [N] of all (text, image) pairs. `exact`: in float32, not in the config's dtype.

        `trim`: pairs sorted by length, each batch padded to its longest text, each image embedded beforehand. Without
        it, each batch has every column of the ids and embeds its own images.
        """
        pairs, columns = self._pairs.pairs, self._pairs.ids.shape[1]
        lengths = (self._pairs.ids != PAD_ID).sum(axis=1)[pairs[:, 0]]
        order = np.argsort(lengths, kind="stable") if trim else np.arange(len(pairs))
        size = CPU_PAIRS if self._device.type == "cpu" else ACCELERATOR_PAIRS
        ids = torch.from_numpy(self._pairs.ids.astype(np.int64)).to(self._device)
        images = torch.from_numpy(self._pairs.features.astype(np.float32)).to(self._device)
        with torch.inference_mode():
            images = self._model.eval().embed_image(images) if trim else images

        @torch.inference_mode()
        def run() -> np.ndarray:
            self._model.eval()
            in_order = []
            for start in range(0, len(pairs), size):
                members = order[start : start + size]
                longest = lengths[members].max() if trim else columns
                text = ids[pairs[members, 0], :longest]
                mask = None if trim and lengths[members].min() == longest else text != PAD_ID
                with self._precision(exact):
                    in_order.append(function(self._model, text, mask, images[pairs[members, 1]]).float())
            scores = np.empty(len(pairs), np.float32)
            scores[order] = torch.cat(in_order).cpu().numpy()
            return scores

        return run

    def _precision(self, exact: bool = False):
        enabled = self._config.model.dtype == "bfloat16" and not exact
        return torch.autocast(self._device.type, torch.bfloat16, enabled=enabled)


def _torch_device(platform: str, num_devices: int) -> torch.device:
    """The kind of device that JAX has, with as many threads. Raises ValueError where PyTorch has none."""
    if hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    if platform == "cpu":
        return torch.device("cpu")
    if platform != "gpu" or not torch.cuda.is_available():
        raise ValueError(f"JAX runs on {platform}, PyTorch cannot: compare with JAX_PLATFORMS=cpu")
    if num_devices > 1:
        raise ValueError(f"PyTorch would run on 1 device, JAX on {num_devices}: set CUDA_VISIBLE_DEVICES=0")
    torch.cuda.set_per_process_memory_fraction(float(os.environ[MEMORY_SHARE]))  # as much as JAX has
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
