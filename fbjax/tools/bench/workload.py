"""The workload that a config describes, to be timed: model, compiled steps, synthetic batches, FLOPs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fbjax.config.schema import PAPER_TASKS, TASKS, AdaptiveConfig, Augment, Config
from fbjax.data.batches.batch import Batch
from fbjax.inference.pair_scorer import PairScorer, match_logits
from fbjax.model.fashionbert import build_model, match_score
from fbjax.model.ngrams import Ngrams, num_rows, random_ngrams
from fbjax.model.patch_features import PatchNetwork
from fbjax.parallel.mesh import make_mesh, put_batch, replicated
from fbjax.runs.state import TOWER_SIZE, abstract_state, init_state, make_optimizer
from fbjax.tasks.objective import Objective
from fbjax.training.memory import bytes_of, peak_bytes
from fbjax.training.step import make_step, with_seed

VOCABULARY_SIZE = 30_522  # BERT's, where the config gives no number of pieces
MASK_ID = 103
SHORTEST = 8  # text pieces
NUM_NGRAMS = 80_000  # of the real catalogue of docs/lab/winning.md
SCORED_TEXTS, SCORED_IMAGES = 16, 32  # each text with each image


@dataclass(frozen=True)
class Workload:
    """A config ready to run. `patches` is the step's input: the network, or the identity where features are cached."""

    config: Config
    mesh: Any
    network: PatchNetwork
    patches: PatchNetwork
    objective: Objective
    optimizer: Any
    ngrams: Ngrams

    @property
    def frozen(self) -> dict:
        return self.network.frozen(self.config.patches.mode) | ({"ngrams": self.ngrams} if self.ngrams else {})

    def with_model(self, **settings) -> "Workload":
        """The same with other settings of `ModelConfig`."""
        return self._with(model=replace(self.config.model, **settings))

    def as_in_the_paper(self) -> "Workload":
        """The same with the paper's three tasks, one softmax over text and image, and no embedder."""
        tasks = {name: TASKS[name]() for name in PAPER_TASKS}
        return self._with(model=replace(self.config.model, cross_attention="joint"), tasks=tasks)

    def with_cached_features(self) -> "Workload":
        return self._with(patches=replace(self.config.patches, mode="cached", augment=Augment()))

    def _with(self, **sections) -> "Workload":
        return make_workload(replace(self.config, **sections), self.network)


def make_workload(config: Config, network: PatchNetwork, devices: Sequence[jax.Device] | None = None) -> Workload:
    """`config` on `devices`, by default all of them."""
    patches = network.feature_input(config.patches.mode)
    size = vocabulary_size(config)
    tasks = tuple(config.tasks.values())
    ngrams = random_ngrams(size, NUM_NGRAMS) if any(task.reads_bags for task in tasks) else {}
    model = build_model(config.model, tasks, network, size, min(MASK_ID, size - 1), num_rows(ngrams))
    objective, mesh = Objective(model, patches, tasks, config.patches.augment), make_mesh(config.mesh, devices)
    optimizer = make_optimizer(config.train, config.groups, patches.fixed)
    return Workload(config, mesh, network, patches, objective, optimizer, ngrams)


def vocabulary_size(config: Config) -> int:
    name = config.model.vocabulary
    return int(name.removeprefix("train:")) if name.startswith("train:") else VOCABULARY_SIZE


class Steps:
    """Compiled train steps that run in turn on one state; each consumes the state and returns the next."""

    def __init__(self, workload: Workload):
        self._workload, self._compiled = workload, {}
        config = replace(workload.config, adaptive=replace(workload.config.adaptive, every=1))
        self._state = init_state(workload.objective, workload.optimizer, config, workload.mesh)
        k = len(workload.objective.tasks)
        self._held = jax.device_put(np.full(k, 1 / k, np.float32), replicated(workload.mesh))
        self._frozen = jax.device_put(with_seed(workload.frozen, config), replicated(workload.mesh))
        self.state_bytes = bytes_of((self._state, self._frozen))

    def compile(self, name: str, adaptive: AdaptiveConfig, batch: Batch) -> int:
        """Compiles the step for `adaptive` and the shapes of `batch`; returns a device's bytes without the state."""
        state = self._state.replace(task_weights=self._held if adaptive.every > 1 else None)
        compiled = _jitted(self._workload, adaptive, state).lower(state, self._frozen, batch).compile()
        self._compiled[name] = (compiled, adaptive.every > 1)
        return peak_bytes(compiled) - self.state_bytes

    def candidate(self, name: str, batch: Batch, at: int = 0) -> Callable[[], None]:
        """A function that runs one step, as step number `at`, to its end."""
        compiled, holds = self._compiled[name]
        sharding = self._state.step.sharding

        def run() -> None:
            step = jax.device_put(np.int32(at), sharding)
            state = self._state.replace(step=step, task_weights=self._held if holds else None)
            self._state, metrics = compiled(state, self._frozen, batch)
            self._held = self._state.task_weights if holds else self._held
            jax.block_until_ready((self._state, metrics))

        return run

    def trace(self, name: str, batch: Batch, folder: str | Path, num_steps: int) -> None:
        """Writes a profile of `num_steps` steps to `folder`, for TensorBoard or Perfetto."""
        self.candidate(name, batch)()
        with jax.profiler.trace(str(folder)):
            for at in range(num_steps):
                self.candidate(name, batch, at)()


def _jitted(workload: Workload, adaptive: AdaptiveConfig, state):
    config = replace(workload.config, adaptive=adaptive)
    return make_step(workload.objective, workload.optimizer, config, workload.mesh, state)


def synthetic_batch(workload: Workload, length: int) -> Batch:
    """Random products on the mesh, texts padded to `length`, images as pixels or as cached features.

    A text has more than ``length - text_bucket`` pieces and at most `length`, [CLS] and [SEP] included. These share one
    padded length, since training pads a batch to the next multiple of `text_bucket`.
    """
    rng = np.random.default_rng(0)
    config, network = workload.config, workload.network
    b, size = config.train.batch_size, config.patches.image_size
    lengths = rng.integers(max(SHORTEST, length - config.model.text_bucket + 1), length + 1, b)
    lengths[0] = length
    ids = _texts(rng, lengths, length, vocabulary_size(config))
    columns = np.arange(length, dtype=np.int32)
    word_ids = np.where((columns > 0) & (columns < lengths[:, None] - 1), columns - 1, -1).astype(np.int32)
    if config.patches.mode == "cached":
        images = _features(rng, (2, b), network)
    else:
        images = rng.integers(0, 255, (2, b, size, size, 3), dtype=np.uint8)
    number = np.arange(b, dtype=np.int32)
    negative = images[1] if config.needs_negative else None
    towers = rng.normal(size=(b, 2, TOWER_SIZE)).astype(np.float32) if config.towers else None
    return put_batch(Batch(number, number, ids, word_ids, images[0], negative, towers=towers), workload.mesh)


def padded_lengths(config: Config, most: int) -> list[int]:
    """The padded lengths of batches, ascending; at most `most` of them, evenly spaced, the longest included."""
    model = config.model
    lengths = [n for n in range(model.text_bucket, model.text_tokens, model.text_bucket) if n >= SHORTEST]
    lengths.append(model.text_tokens)
    picked = np.linspace(len(lengths) - 1, 0, min(most, len(lengths))).round().astype(int)
    return [lengths[i] for i in sorted(set(picked.tolist()))]


@dataclass(frozen=True)
class Candidates:
    """The pairs to score: each of Q texts with each of G images."""

    ids: np.ndarray  # [Q, T], lengths even from T / 3 to T
    features: np.ndarray  # [G, P, C]
    pairs: np.ndarray  # [N, 2]: (row of ids, row of features)


def synthetic_candidates(workload: Workload) -> Candidates:
    rng = np.random.default_rng(0)
    t = workload.config.model.text_tokens
    lengths = np.linspace(max(SHORTEST, t / 3), t, SCORED_TEXTS).round().astype(int)
    ids = _texts(rng, lengths, t, vocabulary_size(workload.config))
    grid = np.meshgrid(np.arange(SCORED_TEXTS), np.arange(SCORED_IMAGES), indexing="ij")
    return Candidates(ids, _features(rng, (SCORED_IMAGES,), workload.network), np.stack(grid, axis=-1).reshape(-1, 2))


def _texts(rng, lengths: np.ndarray, num_columns: int, vocabulary: int) -> np.ndarray:
    """Random piece ids [B, num_columns], 0 past each text's length."""
    ids = rng.integers(1, vocabulary, (len(lengths), num_columns), dtype=np.int32)
    return np.where(np.arange(num_columns) < lengths[:, None], ids, 0)


def _features(rng, count: tuple[int, ...], network: PatchNetwork) -> np.ndarray:
    return rng.uniform(0, 3, (*count, network.num_patches, network.feature_size)).astype(np.float16)


def fresh_parameters(workload: Workload) -> dict:
    """FashionBERT's initial parameters."""
    return init_state(workload.objective, workload.optimizer, workload.config, workload.mesh).params["fashionbert"]


def scoring(workload: Workload, params: dict, candidates: Candidates) -> Callable[[], np.ndarray]:
    """A function that scores all pairs, [N]. `workload` takes cached features, which are embedded here, beforehand."""
    scorer = PairScorer(workload.objective.model, workload.patches, workload.mesh)
    variables = {"fashionbert": params, "patches": {}}
    starts = range(0, len(candidates.features), scorer.batch_size)
    images = scorer.embed_images(variables, [candidates.features[i : i + scorer.batch_size] for i in starts])
    return lambda: scorer.score(variables, candidates.ids, images, candidates.pairs)


def train_flops(workload: Workload, batch: Batch) -> float | None:
    """FLOPs of one step under fixed weights, without recomputation; None where XLA does not count."""
    workload = workload.with_model(attention="xla", remat="none")
    config = replace(workload.config, train=replace(workload.config.train, micro_batches=1))
    workload = make_workload(config, workload.network)
    state = abstract_state(workload.objective, workload.optimizer, config, workload.mesh)
    step = _jitted(workload, replace(config.adaptive, method="fixed", every=1), state)
    return _flops(step, state, with_seed(workload.frozen, config), batch)


def score_flops(workload: Workload, candidates: Candidates) -> float | None:
    """FLOPs of scoring all pairs, each text at its own length, without the embedding of images."""
    workload = workload.with_model(attention="xla", remat="none")
    model = workload.objective.model

    score = jax.jit(lambda params, ids, image: match_score(match_logits(model, params, ids, image)))
    state = abstract_state(workload.objective, workload.optimizer, workload.config, workload.mesh)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state.params["fashionbert"])
    image = jax.ShapeDtypeStruct((1, model.spec.num_patches, model.config.width), np.float32)
    lengths = (candidates.ids != 0).sum(axis=1)[candidates.pairs[:, 0]]
    lengths, counts = np.unique(lengths, return_counts=True)
    texts = [jax.ShapeDtypeStruct((1, int(length)), np.int32) for length in lengths]
    each = [_flops(score, params, text, image) for text in texts]
    return None if None in each else float(np.dot(each, counts))


def _flops(jitted, *arguments) -> float | None:
    return (jitted.lower(*arguments).cost_analysis() or {}).get("flops")
