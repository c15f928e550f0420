"""fbjax as a contestant: its train steps, its scorer and its patch network, by the names of their candidates."""

import time
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np

from fbjax.config.load import config_from_json
from fbjax.model.patch_features import given_features
from fbjax.monitoring.flops import program_flops
from fbjax.monitoring.hardware import chip_of, matmul, matmul_flops
from fbjax.parallel.mesh import check_fit, make_mesh, put_batch
from fbjax.tools.bench import workload as workloads
from fbjax.tools.bench.latency import candidate as latency_candidate
from fbjax.tools.bench.latency import requests_of
from fbjax.tools.bench.timing import Run, timed
from fbjax.tools.bench.trace import traced
from fbjax.tools.bench.workload import Candidate, Steps, Workload, repeated

BASE = "fixed"
VARIANTS = {  # of AdaptiveConfig
    BASE: {"method": "fixed", "every": 1},
    "gradient": {"method": "gradient", "every": 1},
    "loss_softmax": {"method": "loss_softmax", "every": 1},
    "every_16": {"method": "gradient", "every": 16},
    "estimate": {"method": "estimate", "every": 1},
}
OWN = "own"  # the config's settings, where they equal none of these
NUM_LENGTHS = 4  # at most
CHECKED_DEVIATION = 0.05  # of the parameters in the check: heads of BERT's .02 hide a fault further down


class Ours:
    """The workload of a config, given as JSON.

    Candidates: "matmul"; "step VARIANT", "step VARIANT holding"; "length N"; "score"; "patches";
    "request I", the I-th kind of `fbjax.tools.bench.latency`; and "paper step",
    "paper score": the paper's tasks with cached features, which PyTorch computes too.
    """

    def __init__(self, config_json: str):
        config = config_from_json(config_json)
        check_fit(config, make_mesh(config.mesh))
        if config.data.max_images > 1:
            raise ValueError(
                f"fbjax bench times one picture of a product: data.max_images {config.data.max_images} (leave it at 1)"
            )
        network = given_features(config.data) or workloads.random_network(config.patches)
        self._workload = workloads.make_workload(config, network)
        self._variants = {name: replace(config.adaptive, **settings) for name, settings in VARIANTS.items()}
        self._own = next((name for name, settings in self._variants.items() if settings == config.adaptive), OWN)
        self._variants[self._own] = config.adaptive
        self._steps: Steps | None = None
        self._candidates: dict[str, Candidate] = {}

    def about(self) -> dict:
        """What the figures are of."""
        config, device = self._workload.config, jax.devices()[0]
        chip = chip_of(device.device_kind)
        return {
            "device": device.device_kind,
            "platform": device.platform,
            "num_devices": jax.device_count(),
            "dtype": config.model.dtype,
            "chip_gflops": chip and chip.bf16_flops / 1e9,
            "own": self._own,
            "variants": list(self._variants),
            "lengths": workloads.padded_lengths(config, NUM_LENGTHS),
            "products": config.train.batch_size,
            "scored_pairs": workloads.SCORED_TEXTS * workloads.SCORED_IMAGES,
            "requests": [request.about() for request in requests_of(config)],
            "scores_pairs": any(task.scores_pairs for task in config.tasks.values()),
        }

    def memory(self, variant: str) -> tuple[int, int]:
        """Bytes of a device for the state, and for the rest of a step at its peak; nothing runs."""
        steps = self._steps_of(self._workload)
        return steps.state_bytes, steps.step_bytes(self._variants[variant], self._batch)

    def check_memory(self, variant: str) -> None:
        """Raises ValueError, with the remedy, where a step does not fit into a device."""
        self._steps_of(self._workload).check_memory(self._variants[variant], self._batch)

    def prepare(self, name: str) -> float:
        """Compiles the candidate `name`; the seconds that took."""
        start = time.perf_counter()
        self._candidates[name] = self._made(name)
        return time.perf_counter() - start

    def run(self, name: str, count: int) -> Run:
        """A run of `count` launches."""
        if name not in self._candidates:
            self.prepare(name)
        try:
            return timed(*self._candidates[name], count)
        except Exception:
            self._steps, self._candidates = None, {}  # the state was given away: all is prepared again
            raise

    def flops(self, name: str) -> float:
        """FLOPs of one launch on all devices together, as `fbjax.monitoring.flops` counts them."""
        match name:
            case "matmul":
                return matmul_flops(jax.default_backend())
            case "step":
                return workloads.train_flops(self._workload, self._batch)
            case "paper step":
                return workloads.train_flops(self._paper, self._paper_batch)
            case "score" | "paper score":
                cached = self._cached if name == "score" else self._paper
                return workloads.score_flops(cached, workloads.synthetic_pairs(cached))
            case "patches":
                network = self._workload.network
                return float(program_flops(jax.make_jaxpr(network.apply)(network.params, self._images)))
        raise ValueError(f"no FLOPs of {name}")

    def trace(self, folder: str, num_steps: int) -> dict[str, float]:
        """Writes a profile of `num_steps` steps to `folder`; the share of their time that each part takes."""
        steps, adaptive = self._steps_of(self._workload), self._variants[self._own]
        return traced(steps.compile(adaptive, self._batch), steps.candidate(adaptive, self._batch), folder, num_steps)

    def for_torch(self) -> tuple:
        """(vocabulary size, P, C, parameters, masked batch, losses [K], the pairs to score, scores [N]).

        All NumPy. Losses and scores are in float32, without dropout.
        """
        exact = self._paper.with_model(dtype="float32", attention="xla", hidden_dropout=0.0, attention_dropout=0.0)
        # biases are random too: of initial ones, all 0, two exchanged would not show
        params = workloads.random_parameters(workloads.parameter_shapes(exact), CHECKED_DEVIATION)
        key = jax.random.key(0)
        key_masks, _ = jax.random.split(key)  # as the objective does
        pairs = workloads.synthetic_pairs(exact)
        with jax.default_matmul_precision("highest"):
            masked = jax.jit(exact.objective.draw_masks)(self._paper_batch, key_masks)
            losses, _ = jax.jit(exact.objective.losses)({"fashionbert": params}, exact.frozen, self._paper_batch, key)
            scores = workloads.scoring(exact, params, pairs)()
        size, network = workloads.vocabulary_size(exact.config), exact.network
        arrays = jax.device_get((params, masked, losses))
        return size, network.num_patches, network.feature_size, *arrays, pairs, scores

    def _made(self, name: str) -> Candidate:
        match name.split():
            case ["matmul"]:
                return repeated(matmul(self._workload.config.model.dtype))
            case ["step", variant, *holds]:
                at = 1 if holds else 0  # the weights are solved at step 0
                return self._steps_of(self._workload).candidate(self._variants[variant], self._batch, at)
            case ["length", length]:
                batch = workloads.synthetic_batch(self._workload, int(length))
                return self._steps_of(self._workload).candidate(self._variants[self._own], batch)
            case ["paper", "step"]:
                return self._steps_of(self._paper).candidate(self._variants[BASE], self._paper_batch)
            case ["score"] | ["paper", "score"]:
                cached = self._cached if name == "score" else self._paper
                params = workloads.random_parameters(workloads.parameter_shapes(cached), 0.02)
                # waits itself: the scores of all pairs come back to the host
                return Candidate(workloads.scoring(cached, params, workloads.synthetic_pairs(cached)), lambda: None)
            case ["request", number]:
                return latency_candidate(self._workload, list(requests_of(self._workload.config))[int(number)])
            case ["patches"]:
                params = jax.device_put(self._workload.network.params)
                return repeated(partial(jax.jit(self._workload.network.apply), params, self._images))
        raise ValueError(f"no candidate {name}")

    def _steps_of(self, workload: Workload) -> Steps:
        """The steps of `workload`; those of another give their memory back."""
        if self._steps is None or self._steps.workload is not workload:
            self._steps = None
            self._candidates = {name: made for name, made in self._candidates.items() if name == "matmul"}
            self._steps = Steps(workload)
        return self._steps

    @cached_property
    def _paper(self) -> Workload:
        return self._workload.as_in_the_paper().with_cached_features()

    @cached_property
    def _cached(self) -> Workload:
        return self._workload.with_cached_features()

    @cached_property
    def _batch(self) -> Any:
        return workloads.synthetic_batch(self._workload, self._workload.config.model.text_tokens)

    @cached_property
    def _paper_batch(self) -> Any:
        return workloads.synthetic_batch(self._paper, self._paper.config.model.text_tokens)

    @cached_property
    def _images(self) -> jax.Array:
        size, count = self._workload.config.patches.image_size, self._workload.config.train.batch_size
        images = np.random.default_rng(0).integers(0, 255, (count, size, size, 3), dtype=np.uint8)
        return put_batch(images, self._workload.mesh)
