"""A config made ready to be timed: model, compiled steps, synthetic batches, and the FLOPs that they need."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fbjax.config.schema import AdaptiveConfig, Config
from fbjax.data.batches.batch import Batch
from fbjax.inference.pair_scorer import PairScorer
from fbjax.model.fashionbert import build_model, match_score
from fbjax.model.patch_features import PatchNetwork
from fbjax.parallel.mesh import make_mesh, put_batch, replicated
from fbjax.runs.state import abstract_state, init_state, make_optimizer
from fbjax.tasks.objective import Pretraining
from fbjax.training.step import make_step

VOCABULARY_SIZE = 30_522  # BERT's, where the config does not say how many pieces it trains
MASK_ID = 103
SHORTEST = 8  # text pieces
PAPER_TASKS = ("mlm", "mpm", "tia")
SCORED_TEXTS, SCORED_IMAGES = 16, 32  # each text with each image


@dataclass(frozen=True)
class Workload:
    """A config ready to run; `patches` is what the step takes: the network, or the identity on its features."""

    config: Config
    mesh: Any
    network: PatchNetwork
    patches: PatchNetwork
    objective: Pretraining
    optimizer: Any

    @property
    def frozen(self) -> dict:
        return {} if self.config.patches.trainable else {"patches": self.patches.params}

    def with_model(self, **settings) -> "Workload":
        """The same with other settings of `ModelConfig`."""
        return make_workload(replace(self.config, model=replace(self.config.model, **settings)), self.network)

    def as_in_the_paper(self) -> "Workload":
        """The same with the paper's three tasks, one softmax over text and image, and no towers."""
        model = replace(self.config.model, embedding_dim=0, tia_reads="cls", cross_attention="joint")
        tasks = replace(self.config.tasks, names=PAPER_TASKS)
        return make_workload(replace(self.config, model=model, tasks=tasks), self.network)

    def with_cached_features(self) -> "Workload":
        patches = replace(self.config.patches, cached=True, trainable=False)
        return make_workload(replace(self.config, patches=patches), self.network)


def make_workload(config: Config, network: PatchNetwork, devices: Sequence[jax.Device] | None = None) -> Workload:
    """`config` on `devices`, by default all of them.

    Fixed weights become equal ones where the config has them for another number of tasks.
    """
    num_tasks = len(config.tasks.names)
    if len(config.adaptive.fixed) != num_tasks:
        config = replace(config, adaptive=replace(config.adaptive, fixed=(1 / num_tasks,) * num_tasks))
    patches = network.precomputed() if config.patches.cached else network
    size = vocabulary_size(config)
    objective = Pretraining(build_model(config.model, size, network), patches, config.tasks, min(MASK_ID, size - 1))
    mesh = make_mesh(config.mesh, devices)
    return Workload(config, mesh, network, patches, objective, make_optimizer(config.train))


def vocabulary_size(config: Config) -> int:
    name = config.model.vocabulary
    return int(name.removeprefix("train:")) if name.startswith("train:") else VOCABULARY_SIZE


class Steps:
    """Compiled train steps that take turns on one state, which each of them consumes and renews."""

    def __init__(self, subject: Workload):
        self._subject, self._compiled = subject, {}
        config = replace(subject.config, adaptive=replace(subject.config.adaptive, every=1))
        self._state = init_state(subject.objective, subject.optimizer, config, subject.mesh)
        k = len(subject.objective.tasks)
        self._held = jax.device_put(np.full(k, 1 / k, np.float32), replicated(subject.mesh))
        self._frozen = jax.device_put(subject.frozen, replicated(subject.mesh))
        self.state_bytes = sum(map(_bytes_per_device, jax.tree.leaves((self._state, self._frozen))))

    def compile(self, name: str, adaptive: AdaptiveConfig, batch: Batch) -> int:
        """Compiles the step for `adaptive` and the shapes of `batch`; the bytes a device needs besides the state's."""
        state = self._state.replace(task_weights=self._held if adaptive.every > 1 else None)
        compiled = _jitted(self._subject, adaptive, state).lower(state, self._frozen, batch).compile()
        self._compiled[name] = (compiled, adaptive.every > 1)
        plan = compiled.memory_analysis()  # what it updates in place counts once
        peak = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
        return peak - plan.alias_size_in_bytes - self.state_bytes

    def contender(self, name: str, batch: Batch, at: int = 0) -> Callable[[], None]:
        """One step as step number `at`, done when it returns."""
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
        self.contender(name, batch)()
        with jax.profiler.trace(str(folder)):
            for at in range(num_steps):
                self.contender(name, batch, at)()


def _bytes_per_device(array: jax.Array) -> int:
    return math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize


def _jitted(subject: Workload, adaptive: AdaptiveConfig, state):
    config = replace(subject.config, adaptive=adaptive)
    return make_step(subject.objective, subject.optimizer, config, subject.mesh, state)


def synthetic_batch(subject: Workload, length: int) -> Batch:
    """Random products on the mesh, with whatever the step takes for images, texts padded to `length`.

    A text has more than ``length - text_bucket`` pieces and at most `length`, [CLS] and [SEP] included: a batch of
    training is padded to the next multiple of `text_bucket`, so these are the texts that share one padded length.
    """
    rng = np.random.default_rng(0)
    config, network = subject.config, subject.network
    b, size = config.train.batch_size, config.patches.image_size
    lengths = rng.integers(max(SHORTEST, length - config.model.text_bucket + 1), length + 1, b)
    lengths[0] = length
    ids = _texts(rng, lengths, length, vocabulary_size(config))
    columns = np.arange(length, dtype=np.int32)
    word_ids = np.where((columns > 0) & (columns < lengths[:, None] - 1), columns - 1, -1).astype(np.int32)
    if config.patches.cached:
        images = _features(rng, (2, b), network)
    else:
        images = rng.integers(0, 255, (2, b, size, size, 3), dtype=np.uint8)
    number = np.arange(b, dtype=np.int32)
    negative = images[1] if config.tasks.mismatched else None
    return put_batch(Batch(number, number, ids, word_ids, images[0], negative), subject.mesh)


def padded_lengths(config: Config, most: int) -> list[int]:
    """The lengths that batches are padded to, rising; of more than `most`, some evenly chosen and the last."""
    model = config.model
    lengths = [n for n in range(model.text_bucket, model.text_tokens, model.text_bucket) if n >= SHORTEST]
    lengths.append(model.text_tokens)
    picked = np.linspace(len(lengths) - 1, 0, min(most, len(lengths))).round().astype(int)
    return [lengths[i] for i in sorted(set(picked.tolist()))]


@dataclass(frozen=True)
class Candidates:
    """What is scored: every one of Q texts with every one of G images."""

    ids: np.ndarray  # [Q, T], lengths even from T / 3 to T
    features: np.ndarray  # [G, P, C]
    pairs: np.ndarray  # [N, 2]: (row of ids, row of features)


def synthetic_candidates(subject: Workload) -> Candidates:
    rng = np.random.default_rng(0)
    t = subject.config.model.text_tokens
    lengths = np.linspace(max(SHORTEST, t / 3), t, SCORED_TEXTS).round().astype(int)
    ids = _texts(rng, lengths, t, vocabulary_size(subject.config))
    grid = np.meshgrid(np.arange(SCORED_TEXTS), np.arange(SCORED_IMAGES), indexing="ij")
    return Candidates(ids, _features(rng, (SCORED_IMAGES,), subject.network), np.stack(grid, axis=-1).reshape(-1, 2))


def _texts(rng, lengths: np.ndarray, num_columns: int, vocabulary: int) -> np.ndarray:
    """Random pieces [B, num_columns], 0 past each text's length."""
    ids = rng.integers(1, vocabulary, (len(lengths), num_columns), dtype=np.int32)
    return np.where(np.arange(num_columns) < lengths[:, None], ids, 0)


def _features(rng, count: tuple[int, ...], network: PatchNetwork) -> np.ndarray:
    return rng.uniform(0, 3, (*count, network.num_patches, network.feature_size)).astype(np.float16)


def fresh_parameters(subject: Workload) -> dict:
    """FashionBERT's parameters as a run starts with them."""
    return init_state(subject.objective, subject.optimizer, subject.config, subject.mesh).params["fashionbert"]


def scoring(subject: Workload, params: dict, candidates: Candidates) -> Callable[[], np.ndarray]:
    """A contender: the scores [N] of all pairs. `subject` takes cached features; they are embedded here, beforehand."""
    scorer = PairScorer(subject.objective.model, subject.patches, subject.mesh)
    variables = {"fashionbert": params, "patches": {}}
    starts = range(0, len(candidates.features), scorer.batch_size)
    images = scorer.embed_images(variables, [candidates.features[i : i + scorer.batch_size] for i in starts])
    return lambda: scorer.score(variables, candidates.ids, images, candidates.pairs)


def train_flops(subject: Workload, batch: Batch) -> float | None:
    """FLOPs of one step under fixed weights, nothing recomputed; None where XLA does not count."""
    subject = subject.with_model(attention="xla", remat="none")
    config = replace(subject.config, train=replace(subject.config.train, micro_batches=1))
    subject = make_workload(config, subject.network)
    state = abstract_state(subject.objective, subject.optimizer, config, subject.mesh)
    step = _jitted(subject, replace(config.adaptive, method="fixed", every=1), state)
    return _flops(step, state, subject.frozen, batch)


def score_flops(subject: Workload, candidates: Candidates) -> float | None:
    """FLOPs of scoring all pairs, each text at its own length, images embedded already."""
    subject = subject.with_model(attention="xla", remat="none")
    model = subject.objective.model

    def score(params, ids, image):
        def part(*args, method):
            return model.apply({"params": params}, *args, method=method)

        first = jnp.zeros((1, 1), jnp.int32)
        hidden, means = part(part(ids, method="embed_text"), ids != 0, image, first, method="encode_pair")
        return match_score(part(hidden[:, 0], means, method="tia_logits"))

    state = abstract_state(subject.objective, subject.optimizer, subject.config, subject.mesh)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state.params["fashionbert"])
    image = jax.ShapeDtypeStruct((1, model.num_patches, model.shape.width), jnp.float32)
    lengths = (candidates.ids != 0).sum(axis=1)[candidates.pairs[:, 0]]
    lengths, counts = np.unique(lengths, return_counts=True)
    texts = [jax.ShapeDtypeStruct((1, int(length)), jnp.int32) for length in lengths]
    each = [_flops(jax.jit(score), params, text, image) for text in texts]
    return None if None in each else float(np.dot(each, counts))


def _flops(jitted, *arguments) -> float | None:
    return (jitted.lower(*arguments).cost_analysis() or {}).get("flops")
