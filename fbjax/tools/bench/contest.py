"""What PyTorch runs in turn with us: its model on its device, its optimisers, training, scoring, a matrix product."""

import os
from collections.abc import Callable

import jax
import numpy as np
import torch
from torch import nn

from fbjax.config.schema import Config
from fbjax.data.text.wordpiece import PAD_ID
from fbjax.inference.pair_scorer import ACCELERATOR_PAIRS, CPU_PAIRS
from fbjax.monitoring.hardware import matmul_size
from fbjax.tools.bench.torch_model import Masked, TorchModel, as_written, needed

TOLERANCE = 1e-4  # relative


def prepare_torch() -> torch.device:
    """The device of kind and threads that JAX has, or an error."""
    if hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    if jax.default_backend() == "cpu":
        return torch.device("cpu")
    if jax.default_backend() != "gpu" or not torch.cuda.is_available():
        raise ValueError(f"JAX runs on {jax.default_backend()}, PyTorch cannot: compare with JAX_PLATFORMS=cpu")
    if jax.device_count() > 1:
        raise ValueError(f"PyTorch would run on 1 device, JAX on {jax.device_count()}: set CUDA_VISIBLE_DEVICES=0")
    return torch.device("cuda")


def multiply_as_jax() -> None:
    """On a GPU, XLA's products of float32 matrices are in TF32 unless it is told otherwise."""
    torch.set_float32_matmul_precision("high")


def check(what: str, ours: np.ndarray | float, theirs: np.ndarray | float) -> None:
    """Raises ValueError where results of the two libraries differ, relative to the largest: there is no comparison."""
    difference = np.abs(np.subtract(ours, theirs)).max() / np.abs(ours).max()
    if not difference <= TOLERANCE:
        raise ValueError(f"{what}: fbjax and PyTorch differ by {difference:.1e} of it, above {TOLERANCE}: not compared")


class TorchContestant:
    """The rival on its device, with AdamW as PyTorch has it fastest (fused) and as one writes it first."""

    def __init__(self, config: Config, rival: TorchModel, device: torch.device):
        self.config, self.rival, self.device = config, rival.to(device), device
        train = config.train
        decayed = [p for p in rival.parameters() if p.ndim > 1]
        others = [p for p in rival.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": train.weight_decay}, {"params": others, "weight_decay": 0.0}]
        settings = {"lr": train.learning_rate, "betas": (train.beta1, train.beta2), "eps": 1e-6}
        self._fused = torch.optim.AdamW(groups, **settings, fused=True)
        self._plain = torch.optim.AdamW(groups, **settings)
        self._weights = torch.tensor(config.adaptive.fixed, device=device)
        self._pairs_per_batch = CPU_PAIRS if device.type == "cpu" else ACCELERATOR_PAIRS

    def losses(self, batch: Masked) -> dict[str, np.ndarray]:
        """The three losses in float32, no dropout, by both ways."""
        self.rival.eval()
        with torch.inference_mode():
            return {f.__name__: f(self.rival, batch.to(self.device)).cpu().numpy() for f in (needed, as_written)}

    def train_step(self, losses: Callable, batch: Masked, fused: bool) -> Callable[[], float]:
        """A contender: losses, gradient, clipping and AdamW with fixed task weights."""
        batch, optimizer = batch.to(self.device), self._fused if fused else self._plain

        def step() -> float:
            self.rival.train()
            with self._precision():
                loss = self._weights @ losses(self.rival, batch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.rival.parameters(), self.config.train.clip_norm)
            optimizer.step()
            return loss.item()

        return step

    def scoring(
        self, function: Callable, ids: np.ndarray, features: np.ndarray, pairs: np.ndarray, trim: bool, exact: bool
    ) -> Callable[[], np.ndarray]:
        """A contender: scores [N] of `pairs` of (text, image), `exact`: in float32 whatever the config's dtype.

        `trim`: sorted by length, padded to the longest of the batch, each image embedded beforehand; else each
        batch has every column of `ids` and embeds its own images.
        """
        lengths = (ids != PAD_ID).sum(axis=1)[pairs[:, 0]]
        order = np.argsort(lengths, kind="stable") if trim else np.arange(len(pairs))
        ids = torch.from_numpy(ids.astype(np.int64)).to(self.device)
        images = torch.from_numpy(features.astype(np.float32)).to(self.device)
        with torch.inference_mode():
            images = self.rival.eval().embed_image(images) if trim else images

        @torch.inference_mode()
        def run() -> np.ndarray:
            self.rival.eval()
            in_order = []
            for start in range(0, len(pairs), self._pairs_per_batch):
                members = order[start : start + self._pairs_per_batch]
                length = lengths[members].max() if trim else ids.shape[1]
                text = ids[pairs[members, 0], :length]
                with self._precision(exact):
                    in_order.append(function(self.rival, text, images[pairs[members, 1]]).float())
            scores = np.empty(len(pairs), np.float32)
            scores[order] = torch.cat(in_order).cpu().numpy()
            return scores

        return run

    def matmul(self) -> Callable[[], None]:
        """A contender: one product of two square matrices, in the model's dtype."""
        dtype = getattr(torch, self.config.model.dtype)
        a = torch.randn(matmul_size(), matmul_size(), device=self.device, dtype=dtype)

        def product() -> None:
            a @ a
            if self.device.type == "cuda":
                torch.cuda.synchronize()

        return product

    def _precision(self, exact: bool = False):
        enabled = self.config.model.dtype == "bfloat16" and not exact
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)


compiled = torch.compile
