"""Each config, task and patch network of the project as a tiny workload, and its train step."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from fbjax.config.schema import TASKS, Config
from fbjax.model.backbones.registry import BACKBONES
from fbjax.model.patch_features import abstract_patch_network, build_patch_network
from fbjax.runs.state import abstract_state, init_state
from fbjax.tasks.pictures.scales import PictureTask
from fbjax.tools.bench.workload import make_workload, synthetic_batch
from fbjax.training.step import make_step, with_seed
from tests.support.untrained import tiny

SCALES = {  # what the tasks of Kaleido-BERT read
    "model__architecture": "kaleido",
    "patches__geometry": "feature_map",
    "patches__scales": (1, 2, 3, 4, 5),
    "patches__variants": True,
    "patches__image_size": 40,
    "patches__patch_size": 8,
}
# tasks whose heads or negatives another one reads
BESIDE = {"distillation": ("tia",), "tower_distillation": ("itc",), "tpa": ("tia",)}


def of_config(name: str, folder: Path) -> Config:
    return tiny(name, folder, model__num_layers=1)


def of_task(name: str, folder: Path) -> Config:
    """A config of the one task `name` with its defaults, on pixels; and of the task that it reads, if there is one."""
    several = SCALES if issubclass(TASKS[name], PictureTask) else {}
    config = tiny(
        "my_fashionbert", folder, model__num_layers=1, patches__network="pixels", patches__mode="frozen", **several
    )
    return dataclasses.replace(config, tasks={name: TASKS[name]() for name in (name, *BESIDE.get(name, ()))})


def of_network(name: str, folder: Path) -> Config:
    """A config whose step computes the features of the patch network `name`."""
    multiple = BACKBONES[name].multiple
    smallest = -(-max(32, BACKBONES[name].smallest) // multiple) * multiple
    sizes = {"patches__image_size": smallest // 16 * 16 + 16, "patches__patch_size": 16}
    sizes |= {"patches__geometry": "per_patch", "patches__patch_input_size": smallest, "patches__whole_image": False}
    changes = {"patches__network": name, "patches__mode": "frozen", "train__batch_size": 2, "model__num_layers": 1}
    return tiny("catalogue_towers", folder, **sizes, **changes)


def traced_losses(config: Config) -> set[str]:
    """The tasks with a loss in the step of `config`; nothing is compiled."""
    workload = make_workload(config, abstract_patch_network(config.patches), jax.devices()[:1])
    state = abstract_state(workload.objective, workload.optimizer, config, workload.mesh)
    step = make_step(workload.objective, workload.optimizer, config, workload.mesh, state)
    batch = synthetic_batch(workload, config.model.text_tokens)
    after, metrics = jax.eval_shape(step, state, with_seed(workload.frozen, config), batch)
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)
    return {name.removesuffix("/loss") for name in metrics if name.endswith("/loss")}


def assert_trains(config: Config) -> None:
    """Two steps, the first of which has a learning rate of 0: finite losses of all tasks, and parameters that move."""
    workload = make_workload(config, build_patch_network(config.patches), jax.devices()[:1])
    state = init_state(workload.objective, workload.optimizer, config, workload.mesh)
    step = make_step(workload.objective, workload.optimizer, config, workload.mesh, state)
    batch, before = synthetic_batch(workload, config.model.text_tokens), jax.device_get(state.params)
    with jax.set_mesh(workload.mesh):
        for _ in range(2):
            state, metrics = step(state, with_seed(workload.frozen, config), batch)
    losses = [metrics[f"{name}/loss"] for name in config.tasks]
    assert all(np.isfinite(value).all() for value in jax.tree.leaves((losses, state.params)))
    moved = jax.tree.map(lambda old, new: np.abs(old - new).max() > 0, before, jax.device_get(state.params))
    assert any(jax.tree.leaves(moved)) and int(state.step) == 2
