"""The workload that a config describes, to be timed: model, compiled steps, synthetic batches, FLOPs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from fbjax.config.schema import PAPER_TASKS, TASKS, AdaptiveConfig, Augment, Config, PatchConfig
from fbjax.data.batches.batch import Batch
from fbjax.inference.pair_scorer import PairScorer, match_logits
from fbjax.model.fashionbert import FashionBert, build_model
from fbjax.model.grids.pictures import several
from fbjax.model.lora import merged
from fbjax.model.ngrams import Ngrams, num_rows, random_ngrams
from fbjax.model.patch_features import PatchNetwork, abstract_patch_network
from fbjax.monitoring.flops import program_flops, step_flops
from fbjax.parallel.mesh import make_mesh, put_batch, replicated
from fbjax.runs.state import TOWER_SIZE, TrainState, abstract_state, make_optimizer
from fbjax.tasks.objective import Objective
from fbjax.tasks.teacher import Teacher
from fbjax.training.memory import available_memory, bytes_of, check_memory, peak_bytes
from fbjax.training.step import make_step, with_seed

VOCABULARY_SIZE = 30_522  # BERT's, where the config gives no number of pieces
MASK_ID = 103
SHORTEST = 8  # text pieces
TEACHER_LAYERS = 12
NUM_NGRAMS = 80_000  # of the real catalogue of docs/lab/winning.md
NUM_CLASSES = 40  # of each attribute
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
        teacher, constants = self.objective.teacher, {"ngrams": self.ngrams} if self.ngrams else {}
        if teacher:
            constants["teacher"] = random_parameters(teacher.shapes(), self.config.model.initializer_range)
        return self.network.frozen(self.config.patches.mode) | constants

    def with_model(self, **settings) -> "Workload":
        """The same with other settings of `ModelConfig`."""
        return self._with(model=replace(self.config.model, **settings))

    def as_in_the_paper(self) -> "Workload":
        """The same with the paper's model and three tasks, one softmax over text and image, and no embedder."""
        tasks = {name: TASKS[name]() for name in PAPER_TASKS}
        model = replace(self.config.model, architecture="fashionbert", cross_attention="joint")
        return self._with(model=model, tasks=tasks)

    def with_cached_features(self) -> "Workload":
        return self._with(patches=replace(self.config.patches, mode="cached", augment=Augment()))

    def _with(self, **sections) -> "Workload":
        return make_workload(replace(self.config, **sections), self.network)


def make_workload(config: Config, network: PatchNetwork, devices: Sequence[jax.Device] | None = None) -> Workload:
    """`config` on `devices`, by default all of them."""
    network = several(network, config.data.max_images)
    patches = network.feature_input(config.patches.mode)
    size = vocabulary_size(config)
    tasks = tuple(config.tasks.values())
    ngrams = random_ngrams(size, NUM_NGRAMS) if any(task.reads_bags for task in tasks) else {}
    counts = num_rows(ngrams), (NUM_CLASSES,) * len(config.attributes)
    model = build_model(config.model, tasks, network, size, min(MASK_ID, size - 1), *counts)
    objective, mesh = Objective(model, patches, tasks, config.patches.augment), make_mesh(config.mesh, devices)
    optimizer = make_optimizer(config.train, config.groups, config.model.num_layers)
    objective = replace(objective, teacher=_stand_in(model, objective))
    return Workload(config, mesh, network, patches, objective, optimizer, ngrams)


def _stand_in(model: FashionBert, objective: Objective) -> Teacher | None:
    """A teacher of BERT-base's depth and random weights, where a task has one: no workdir is read."""
    if not any(task.reads_traces or task.asks_teacher for task in objective.tasks):
        return None
    deep = replace(model.config, num_layers=max(model.config.num_layers, TEACHER_LAYERS))
    return Teacher.of(model.clone(config=deep, tasks=(TASKS["tia"](),)))


def vocabulary_size(config: Config) -> int:
    name = config.model.vocabulary
    return int(name.removeprefix("train:")) if name.startswith("train:") else VOCABULARY_SIZE


class Steps:
    """Compiled train steps that run in turn on one state; each consumes the state and returns the next."""

    def __init__(self, workload: Workload):
        self.workload, self._compiled = workload, {}
        config = replace(workload.config, adaptive=replace(workload.config.adaptive, every=1))
        self._state = random_state(workload, config)
        k = len(workload.objective.tasks)
        self._held = jax.device_put(np.full(k, 1 / k, np.float32), replicated(workload.mesh))
        self._frozen = jax.device_put(with_seed(workload.frozen, config), replicated(workload.mesh))
        self.state_bytes = bytes_of((self._state, self._frozen))

    def compile(self, adaptive: AdaptiveConfig, batch: Batch) -> jax.stages.Compiled:
        """The step for `adaptive` and the shapes of `batch`, compiled once."""
        key = adaptive, batch.ids.shape
        if key not in self._compiled:
            state = self._state.replace(task_weights=self._held if adaptive.every > 1 else None)
            step = jitted_step(self.workload, adaptive, state)
            self._compiled[key] = step.lower(state, self._frozen, batch).compile()
        return self._compiled[key]

    def check_memory(self, adaptive: AdaptiveConfig, batch: Batch) -> None:
        """Raises ValueError, with the remedy, where the step needs more memory than a device has."""
        mesh, config = self.workload.mesh, replace(self.workload.config, adaptive=adaptive)
        programs = {batch.ids.shape[1]: self.compile(adaptive, batch)}
        check_memory(programs, self._state, config, mesh, available_memory(mesh))

    def step_bytes(self, adaptive: AdaptiveConfig, batch: Batch) -> int:
        """Bytes of a device at the step's peak, without the state."""
        return peak_bytes(self.compile(adaptive, batch)) - self.state_bytes

    def candidate(self, adaptive: AdaptiveConfig, batch: Batch, at: int = 0) -> "Candidate":
        """Launches the step on `batch`; where `adaptive` holds weights, each time as step number `at`.

        Raises ValueError where it does not fit.
        """
        self.check_memory(adaptive, batch)
        compiled, holds = self.compile(adaptive, batch), adaptive.every > 1
        sharding = self._state.step.sharding

        def launch() -> None:
            state = self._state.replace(task_weights=self._held if holds else None)
            if holds:
                state = state.replace(step=jax.device_put(np.int32(at), sharding))
            self._state, self._metrics = compiled(state, self._frozen, batch)
            self._held = self._state.task_weights if holds else self._held

        return Candidate(launch, lambda: jax.block_until_ready((self._state, self._metrics)))


class Candidate(NamedTuple):
    """Work to be timed: `launch` starts it once, `wait` returns when all of it is done."""

    launch: Callable[[], Any]
    wait: Callable[[], Any]


def repeated(function: Callable[[], Any]) -> Candidate:
    """A candidate that launches `function`, whose result is an array on a device."""
    last: list = [None]

    def launch() -> None:
        last[0] = function()

    return Candidate(launch, lambda: jax.block_until_ready(last[0]))


def jitted_step(workload: Workload, adaptive: AdaptiveConfig, state):
    config = replace(workload.config, adaptive=adaptive)
    return make_step(workload.objective, workload.optimizer, config, workload.mesh, state)


def random_state(workload: Workload, config: Config) -> TrainState:
    """A state of random numbers: as good as a fresh one here, and no initialiser has to be compiled."""
    shapes = abstract_state(workload.objective, workload.optimizer, config, workload.mesh)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    params, base = (random_parameters(part, config.model.initializer_range) for part in (shapes.params, shapes.base))
    state = zeros.replace(params=params, base=base).with_all({"patches": workload.network.params})
    return jax.tree.map(lambda x, shape: jax.device_put(x, shape.sharding), state, shapes)


def random_parameters(shapes: dict, deviation: float, seed: int = 0) -> dict:
    """Parameters, NumPy: normal numbers of that `deviation`, around 1 where they scale a LayerNorm."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        centre = np.float32(path[-1].key == "scale")
        return centre + np.float32(deviation) * rng.standard_normal(shape.shape, np.float32)

    return jax.tree.map_with_path(draw, shapes)


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
    ids = texts(rng, lengths, length, vocabulary_size(config))
    columns = np.arange(length, dtype=np.int32)
    word_ids = np.where((columns > 0) & (columns < lengths[:, None] - 1), columns - 1, -1).astype(np.int32)
    if config.patches.mode == "cached":
        images = features(rng, (2, b), network)
    else:
        images = rng.integers(0, 255, (2, b, size, size, 3), dtype=np.uint8)
    number = np.arange(b, dtype=np.int32)
    negative = images[1] if config.needs_negative else None
    towers = rng.normal(size=(b, 2, TOWER_SIZE)).astype(np.float32) if config.towers else None
    batch = Batch(number, number, ids, word_ids, images[0], negative, towers=towers)
    if config.attributes:
        batch = batch._replace(attributes=rng.integers(-1, NUM_CLASSES, (b, len(config.attributes)), np.int32))
    if config.reads_queries:
        query, label = _queries(rng, config), number % 2 if config.reads_labels else None
        batch = batch._replace(query=query, negative_query=query[::-1] if config.draws_queries else None, label=label)
    if config.reads_partners:
        batch = batch._replace(partner=Batch(number, number, ids, word_ids, images[1], None))
    return put_batch(batch, workload.mesh)


def padded_lengths(config: Config, most: int) -> list[int]:
    """The padded lengths of batches, ascending; at most `most` of them, evenly spaced, the longest included."""
    model = config.model
    lengths = [n for n in range(model.text_bucket, model.text_tokens, model.text_bucket) if n >= SHORTEST]
    lengths.append(model.text_tokens)
    picked = np.linspace(len(lengths) - 1, 0, min(most, len(lengths))).round().astype(int)
    return [lengths[i] for i in sorted(set(picked.tolist()))]


@dataclass(frozen=True)
class ScoredPairs:
    """The pairs to score: each of Q texts with each of G images."""

    ids: np.ndarray  # [Q, T], lengths even from T / 3 to T
    features: np.ndarray  # [G, P, C]
    pairs: np.ndarray  # [N, 2]: (row of ids, row of features)


def synthetic_pairs(workload: Workload) -> ScoredPairs:
    rng = np.random.default_rng(0)
    t = workload.config.model.text_tokens
    lengths = np.linspace(max(SHORTEST, t / 3), t, SCORED_TEXTS).round().astype(int)
    ids = texts(rng, lengths, t, vocabulary_size(workload.config))
    grid = np.meshgrid(np.arange(SCORED_TEXTS), np.arange(SCORED_IMAGES), indexing="ij")
    return ScoredPairs(ids, features(rng, (SCORED_IMAGES,), workload.network), np.stack(grid, axis=-1).reshape(-1, 2))


def texts(rng, lengths: np.ndarray, num_columns: int, vocabulary: int) -> np.ndarray:
    """Random piece ids [B, num_columns], 0 past each text's length."""
    ids = rng.integers(1, vocabulary, (len(lengths), num_columns), dtype=np.int32)
    return np.where(np.arange(num_columns) < lengths[:, None], ids, 0)


def _queries(rng, config: Config) -> np.ndarray:
    num_tokens = config.log.query_tokens
    return texts(rng, np.full(config.train.batch_size, num_tokens), num_tokens, vocabulary_size(config))


def features(rng, count: tuple[int, ...], network: PatchNetwork) -> np.ndarray:
    return rng.uniform(0, 3, (*count, network.num_rows, network.feature_size)).astype(np.float16)


def random_network(patches: PatchConfig) -> PatchNetwork:
    """The patch network of a config with random kernels, and 1 for the rest; no file is read."""
    network, rng = abstract_patch_network(patches), np.random.default_rng(0)

    def draw(x):
        return 0.02 * rng.standard_normal(x.shape, np.float32) if x.ndim > 1 else np.ones(x.shape, x.dtype)

    return replace(network, params=jax.tree.map(draw, network.params))


def parameter_shapes(workload: Workload) -> dict:
    """Shapes of FashionBERT's parameters."""
    state = abstract_state(workload.objective, workload.optimizer, workload.config, workload.mesh)
    return jax.eval_shape(merged, state.base, state.params)["fashionbert"]


def scoring(workload: Workload, params: dict, pairs: ScoredPairs) -> Callable[[], np.ndarray]:
    """A function that scores all pairs, [N]. `workload` takes cached features, which are embedded here, beforehand."""
    scorer = PairScorer(workload.objective.model, workload.patches, workload.mesh)
    variables = jax.device_put({"fashionbert": params, "patches": {}}, replicated(workload.mesh))
    starts = range(0, len(pairs.features), scorer.batch_size)
    images = scorer.embed_images(variables, [pairs.features[i : i + scorer.batch_size] for i in starts])
    return lambda: scorer.score(variables, pairs.ids, images, pairs.pairs)


def train_flops(workload: Workload, batch: Batch) -> float:
    """Model FLOPs of one step (`fbjax.monitoring.flops`)."""
    state = abstract_state(workload.objective, workload.optimizer, workload.config, workload.mesh)
    return step_flops(workload.objective, state.params, with_seed(workload.frozen, workload.config), batch, state.base)


def score_flops(workload: Workload, pairs: ScoredPairs) -> float:
    """FLOPs of scoring all pairs, each text at its own length, without the embedding of images."""
    workload = workload.with_model(attention="xla", remat="none")
    model, params = workload.objective.model, parameter_shapes(workload)
    image = jax.ShapeDtypeStruct((1, model.spec.num_patches, model.config.width), np.float32)
    lengths = (pairs.ids != 0).sum(axis=1)[pairs.pairs[:, 0]]
    lengths, counts = np.unique(lengths, return_counts=True)
    texts = [jax.ShapeDtypeStruct((1, int(length)), np.int32) for length in lengths]
    score = jax.make_jaxpr(partial(match_logits, model))
    return float(np.dot([program_flops(score(params, text, image)) for text in texts], counts))
