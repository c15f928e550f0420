"""The train state and the one jitted step: patch features, transformer, task losses, Eq. 6, update."""

from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import optax

from fbjax.config.schema import Config
from fbjax.data.batches.batch import Batch
from fbjax.parallel.mesh import RULES, by_example, replicated, scatter_shards, shardings_of
from fbjax.runs.state import TrainState
from fbjax.training.task_weights import weighted_gradient


def make_step(objective, optimizer: optax.GradientTransformation, config: Config, mesh, state: TrainState):
    """``step(state, frozen, batch) -> (state, metrics)``, jitted, the state donated and placed as `state` is.

    The random key is ``fold_in(train.seed, step)``. Metrics are scalars: per task loss, weight, the weight that
    `estimate` would give, and gradient norm; and the text pieces of the batch, padding left out.
    """

    where = shardings_of(state)
    shards = scatter_shards(mesh, state.params)

    def scatter(gradient):
        """K gradients in shards: added up across devices in one place each, weighed there, and gathered once."""
        return jax.lax.with_sharding_constraint(gradient, shards)

    def step(state: TrainState, frozen: Any, batch: Batch):
        key_masks, key_dropout = step_keys(config, state.step)
        masked = objective.draw_masks(batch, key_masks)
        micro_batches = _split(masked, config.train.micro_batches)
        keys = jax.random.split(key_dropout, config.train.micro_batches)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(RULES):
            weighted = weighted_gradient(
                lambda micro_batch: objective.losses_of(frozen, *micro_batch),
                (micro_batches, keys),
                state.params,
                config.adaptive,
                [task.weight for task in objective.tasks],
                objective.shared,
                state.step,
                state.task_weights,
                scatter,
            )
        gradient = jax.lax.with_sharding_constraint(weighted.gradient, where.params)
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
        return TrainState(state.step + 1, params, opt_state, held), metrics | weighted.metrics

    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(where, replicated(mesh), by_example(mesh)),
        out_shardings=(where, replicated(mesh)),
    )


def step_keys(config: Config, step: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """The random keys of a step: of targets and augmentation, and of dropout."""
    key_masks, key_dropout = jax.random.split(jax.random.fold_in(jax.random.key(config.train.seed), step))
    return key_masks, key_dropout


def compiled(step, state: TrainState, frozen: Any, batches: Iterable[Batch]) -> Callable:
    """The jitted `step`, compiled for the shape of each of `batches`, and for no other: nothing compiles later on.

    Arrays or their shapes will do. A batch of another shape raises KeyError.
    """
    by_length = {batch.ids.shape[1]: step.lower(state, frozen, batch).compile() for batch in batches}
    return lambda state, frozen, batch: by_length[batch.ids.shape[1]](state, frozen, batch)


def _split(examples: Any, parts: int) -> Any:
    """[B, ...] -> [parts, B / parts, ...]: every part takes its share of each device's examples."""
    return jax.tree.map(lambda x: x.reshape(len(x) // parts, parts, *x.shape[1:]).swapaxes(0, 1), examples)
