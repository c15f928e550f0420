"""The train state: its optimizer, how it is initialised, and where each parameter lies on the mesh."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from fbjax.config.schema import TrainConfig
from fbjax.parallel.mesh import replicated_params, shardings


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
            params["patches"] = replicated_params(patch_params)
        held = jnp.zeros(len(objective.tasks)) if config.adaptive.every > 1 else None
        return TrainState(jnp.int32(0), params, optimizer.init(params), held)

    arguments = (jax.random.key(config.train.seed), patches.params)
    return init, arguments, shardings(mesh, jax.eval_shape(init, *arguments))
