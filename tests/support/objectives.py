"""An objective of the tasks on a model of two layers of width 24, and batches for it."""

import jax
import numpy as np

from fbjax.config.schema import PAPER_TASKS, TASKS, Config, ModelConfig, PatchConfig, TrainConfig
from fbjax.data.batches.batch import Batch
from fbjax.model.fashionbert import build_model
from fbjax.model.patch_features import build_patch_network
from fbjax.runs.state import init_state, make_optimizer
from fbjax.tasks.objective import Objective
from tests.support.runs import make_one_device_mesh

B, T, V = 16, 16, 60
PATCHES = PatchConfig(network="pixels", image_size=16, patch_size=4, patch_input_size=4)
MODEL = ModelConfig(
    num_layers=2, width=24, num_heads=4, mlp_dim=48, text_tokens=T, hidden_dropout=0.0, attention_dropout=0.0
)
TRAIN = TrainConfig(batch_size=B, num_steps=10, warmup_steps=2, learning_rate=1e-2)


def make_tasks(*names, **settings):
    """{name: task}: the `names` (default: the paper's), with ``name={setting: value}`` where they differ."""
    return {
        name: TASKS[name](**settings.get(name, {}))
        for name in names or (*PAPER_TASKS, *settings.keys() - {*PAPER_TASKS})
    }


CONFIG = Config(patches=PATCHES, model=MODEL, tasks=make_tasks(), train=TRAIN)
COSINE = {"tia": {"head": "cls+cosine"}, "itc": {"embedding_dim": 8}}  # what tia may read beside [CLS]


def make_batch(seed=0, text_tokens=T):
    rng = np.random.default_rng(seed)
    ids, word_ids = np.zeros((B, text_tokens), np.int32), np.full((B, text_tokens), -1, np.int32)
    for b in range(B):
        n = rng.integers(4, T - 2)
        ids[b, : n + 2] = [2, *rng.integers(5, V, n), 3]
        word_ids[b, 1 : n + 1] = np.sort(rng.integers(0, n, n))
        word_ids[b, 1 : n + 1] = np.unique(word_ids[b, 1 : n + 1], return_inverse=True)[1]
    images = rng.integers(0, 255, (2, B, 16, 16, 3), dtype=np.uint8)
    index = rng.permutation(1000)[:B].astype(np.int32)
    return Batch(index, index // 2, ids, word_ids, images[0], images[1])


def make_events(seed=0):
    """`make_batch`, and what events have beside: two have one query, and one has no negative query."""
    batch, partner = make_batch(seed), make_batch(seed + 100)
    query, negative = np.array(batch.ids[:, :8]), np.array(partner.ids[:, :8])
    query[3], negative[5] = query[9], 0
    events = {"query": query, "negative_query": negative, "label": np.arange(B, dtype=np.int32) % 3 // 2}
    return batch._replace(partner=partner._replace(negative=None, group=batch.group), **events)


def make_tower_vectors(seed=1):
    """[B, 2, 8]: a text times an image is a logit."""
    return np.random.default_rng(seed).normal(size=(B, 2, 8)).astype(np.float32)


def make_objective(model=MODEL, tasks=None, patches=PATCHES):
    network, tasks = build_patch_network(patches), tuple((tasks or make_tasks()).values())
    return Objective(build_model(model, tasks, network, V, mask_id=4), network, tasks)


def make_state(objective, config=CONFIG, mesh=None):
    state = init_state(objective, make_optimizer(config.train), config, mesh or make_one_device_mesh())
    # heads and biases away from their bland start, so that every path shows in the losses
    keys = iter(jax.random.split(jax.random.key(7), 1000))
    return state.replace(params=jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape), state.params))
