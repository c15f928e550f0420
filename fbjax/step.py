"""The train state and the one jitted step: patch features, transformer, task losses, Eq. 6, update."""

from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from fbjax.adaptive import weighted_gradient
from fbjax.batch import Batch
from fbjax.config import Config, TrainConfig
from fbjax.mesh import RULES, by_example, placed, replicated, scattered, shardings, whole


@flax.struct.dataclass
class TrainState:
    """All that a checkpoint holds."""

    step: jax.Array  # int32: updates done, and with that the position in the data
    params: Any
    opt_state: Any
    task_weights: jax.Array | None = None  # [K], held between two solves; None where every step solves its own


def make_schedule(config: TrainConfig) -> optax.Schedule:
    """Learning rate: linear warm-up to the peak, then linear decay to 0 at the last step."""
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps),
            optax.linear_schedule(config.learning_rate, 0.0, config.num_steps - config.warmup_steps),
        ],
        [config.warmup_steps],
    )


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """``g min(1, max_norm / |g|)``: optax's divides every element instead, which doubled an update's time on a CPU."""

    def update(updates, state, params=None):
        scale = jnp.minimum(1.0, max_norm / jnp.maximum(optax.tree.norm(updates), jnp.finfo(jnp.float32).tiny))
        return jax.tree.map(lambda g: g * scale, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW after clipping by the global norm; no decay on biases and LayerNorm (every parameter of one axis)."""
    return optax.chain(
        clip_by_global_norm(config.clip_norm),
        optax.adamw(
            make_schedule(config),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )


def init_state(objective, optimizer: optax.GradientTransformation, config, mesh) -> TrainState:
    """A fresh state, each parameter made where its logical axes put it."""
    init, arguments, where = _initialiser(objective, optimizer, config, mesh)
    return jax.jit(lambda *args: nn.unbox(init(*args)), out_shardings=where)(*arguments)


def abstract_state(objective, optimizer: optax.GradientTransformation, config, mesh) -> TrainState:
    """Shapes, dtypes and shardings of that state, nothing allocated: what a checkpoint is restored into."""
    init, arguments, where = _initialiser(objective, optimizer, config, mesh)
    shapes = nn.unbox(jax.eval_shape(init, *arguments))
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where)


def _initialiser(objective, optimizer, config, mesh):
    """A function that makes a boxed state, its arguments, and where each leaf goes."""
    model, patches = objective.model, objective.patches

    def init(key, patch_params):
        ids = jnp.ones((1, model.text_tokens), jnp.int32)
        features = jnp.ones((1, patches.num_patches, patches.feature_size))
        params = {"fashionbert": model.init(key, ids, ids > 0, features)["params"]}
        if config.patches.trainable:
            params["patches"] = whole(patch_params)
        held = jnp.zeros(len(objective.tasks)) if config.adaptive.every > 1 else None
        return TrainState(jnp.int32(0), params, optimizer.init(params), held)

    arguments = (jax.random.key(config.train.seed), patches.params)
    return init, arguments, shardings(mesh, jax.eval_shape(init, *arguments))


def make_step(objective, optimizer: optax.GradientTransformation, config: Config, mesh, state: TrainState):
    """``step(state, frozen, batch) -> (state, metrics)``, jitted, the state donated and placed as `state` is.

    The random key is ``fold_in(train.seed, step)``. Metrics are scalars: per task loss, weight, the weight that
    `estimate` would give, and gradient norm; and the text pieces of the batch, padding left out.
    """

    where = placed(state)
    shards = scattered(mesh, state.params)

    def scatter(gradient):
        """K gradients in shards: added up across devices in one place each, weighed there, and gathered once."""
        return jax.lax.with_sharding_constraint(gradient, shards)

    def step(state: TrainState, frozen: Any, batch: Batch):
        key_masks, key_dropout = jax.random.split(jax.random.fold_in(jax.random.key(config.train.seed), state.step))
        examples = objective.prepare(batch, key_masks)
        micro_batches = _split(examples, config.train.micro_batches)
        keys = jax.random.split(key_dropout, config.train.micro_batches)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(RULES):
            weighted = weighted_gradient(
                lambda micro_batch: objective.branches(frozen, *micro_batch),
                (micro_batches, keys),
                state.params,
                config.adaptive,
                objective.shared,
                state.step,
                state.task_weights,
                scatter,
            )
        gradient = jax.lax.with_sharding_constraint(weighted.gradient, where.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": weighted.weights @ weighted.losses, "gradient_norm": optax.tree.norm(gradient)}
        for i, task in enumerate(objective.tasks):
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


def compiled(step, state: TrainState, frozen: Any, batches: Iterable[Batch]) -> Callable:
    """The jitted `step`, compiled for the shape of each of `batches`, and for no other: nothing compiles later on.

    Arrays or their shapes will do. A batch of another shape raises KeyError.
    """
    by_length = {batch.ids.shape[1]: step.lower(state, frozen, batch).compile() for batch in batches}
    return lambda state, frozen, batch: by_length[batch.ids.shape[1]](state, frozen, batch)


def _split(examples: Any, parts: int) -> Any:
    """[B, ...] -> [parts, B / parts, ...]: every part takes its share of each device's examples."""
    return jax.tree.map(lambda x: x.reshape(len(x) // parts, parts, *x.shape[1:]).swapaxes(0, 1), examples)
