"""The train state and the one jitted step: patch features, transformer, task losses, Eq. 6, update."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from fbjax.config.schema import Config
from fbjax.data.batches.batch import Batch
from fbjax.model.lora import merged
from fbjax.parallel.mesh import RULES, by_example, replicated, scatter_shards, shardings_of
from fbjax.runs.state import TrainState
from fbjax.tasks.objective import Losses
from fbjax.training.micro_batches import split
from fbjax.training.task_weights import weighted_gradient


def make_step(objective, optimizer: optax.GradientTransformation, config: Config, mesh, state: TrainState):
    """``step(state, frozen, batch) -> (state, metrics)``, jitted, the state donated and placed as `state` is.

    Gradients are of ``state.params``, what trains; none is computed of ``state.base``.
    `frozen` is what `with_seed` gives; the random key is ``fold_in(frozen["seed"], step)``. Metrics are scalars: per
    task loss, weight, the weight that `estimate` would give, and gradient norm; and the text pieces of the batch,
    padding left out.
    """

    where = shardings_of(state)
    shards = scatter_shards(mesh, state.params)

    def scatter(gradient):
        """K gradients in shards: added up across devices in one place each, weighed there, and gathered once."""
        return jax.lax.with_sharding_constraint(gradient, shards)

    def step(state: TrainState, frozen: Any, batch: Batch):
        batch = _with_images(batch, mesh)
        key_masks, key_dropout = step_keys(frozen["seed"], state.step)
        with jax.named_scope("masks"):
            mined = objective.with_mined(state.all_params, frozen, batch, key_masks)
            masked = objective.draw_masks(mined, key_masks, state.step)

        def losses_of(masked, key) -> Losses:
            return through(objective.losses_of(frozen, masked, key), lambda trained: merged(state.base, trained))

        micro_batches = split(masked, config.train.micro_batches)
        keys = jax.random.split(key_dropout, config.train.micro_batches)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(RULES):
            weighted = weighted_gradient(
                lambda micro_batch: losses_of(*micro_batch),
                (micro_batches, keys),
                state.params,
                config.adaptive,
                [task.weight for task in objective.tasks],
                objective.shared,
                state.step,
                state.task_weights,
                scatter,
                losses_of(masked, key_dropout),
            )
        gradient = jax.lax.with_sharding_constraint(weighted.gradient, where.params)
        with jax.named_scope("update"):
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        metrics = {"loss": weighted.weights @ weighted.losses, "gradient_norm": optax.tree.norm(gradient)}
        for i, task in enumerate(objective.names):
            metrics[f"{task}/loss"] = weighted.losses[i]
            metrics[f"{task}/weight"] = weighted.weights[i]
            metrics[f"{task}/estimated_weight"] = weighted.estimated[i]
            metrics[f"{task}/gradient_norm"] = weighted.gradient_norms[i]
        metrics["text_pieces"] = batch.text_mask.sum()
        held = None if state.task_weights is None else weighted.weights
        state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, task_weights=held)
        return state, metrics | weighted.metrics

    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(where, replicated(mesh), by_example(mesh)),
        out_shardings=(where, replicated(mesh)),
    )


def through(losses: Losses, all_params: Callable[[Any], Any]) -> Losses:
    """`losses` as functions of what trains, of which `all_params` makes the parameters that they take."""
    passes = [lambda trained, forward=forward: forward(all_params(trained)) for forward in losses.passes]
    heads = [
        head._replace(loss=lambda trained, *outputs, loss=head.loss: loss(all_params(trained), *outputs))
        for head in losses.heads
    ]
    return Losses(tuple(passes), tuple(heads))


def step_keys(seed: jax.Array | int, step: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """The random keys of a step: of targets and augmentation, and of dropout."""
    key_masks, key_dropout = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    return key_masks, key_dropout


def with_seed(frozen: dict, config: Config) -> dict:
    """`frozen` with train.seed as int32: data of a step, so that runs of all seeds share one compiled program."""
    return {**frozen, "seed": np.int64(config.train.seed).astype(np.int32)}  # as jax.random.key takes an int


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """``step(state, frozen, batch) -> (state, metrics)`` for the lengths of `programs`; another raises KeyError."""

    programs: Mapping[int, jax.stages.Compiled]  # by text tokens

    def __call__(self, state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, dict]:
        return self.programs[batch.ids.shape[1]](state, frozen, batch)


def compiled(step, state: TrainState, frozen: Any, batches: Iterable[Batch]) -> CompiledStep:
    """The jitted `step`, compiled for the shape of each of `batches`, and for no other: nothing compiles later on.

    Arrays or their shapes will do.
    """
    return CompiledStep({batch.ids.shape[1]: step.lower(state, frozen, batch).compile() for batch in batches})


def _with_images(batch: Batch, mesh) -> Batch:
    """`batch` with images, where it has their rows."""
    if batch.pictures is None:
        return batch
    return jax.lax.with_sharding_constraint(batch.looked_up(), by_example(mesh))
