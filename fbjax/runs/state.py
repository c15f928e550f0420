"""The train state: its optimizer, how it is initialised, the sharding of each parameter, and the shapes of a batch."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from fbjax.config.schema import ParameterGroup, TrainConfig
from fbjax.data.batches.batch import Batch
from fbjax.parallel.mesh import replicated_params, shardings

TOWER_SIZE = 512  # of the vectors of towers, where none are opened: a plan, a benchmark
FIXED = "(fixed)"  # the label of parameters that no group may train


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


def make_optimizer(
    config: TrainConfig, groups: Mapping[str, ParameterGroup] = {}, fixed: Sequence[str] = ()
) -> optax.GradientTransformation:
    """AdamW after clipping by the global norm; no decay on biases and LayerNorm (every parameter of one axis).

    A group of `groups` holds the parameters whose names ("patches/network/..") begin with its own; of several that fit
    the longest counts. It has a rate and a decay of its own, or is frozen. Parameters under the names `fixed` are
    frozen whatever their group.
    """
    if not groups and not fixed:
        return optax.chain(clip_by_global_norm(config.clip_norm), _adamw(config, ParameterGroup()))
    kinds = {name: optax.set_to_zero() if group.frozen else _adamw(config, group) for name, group in groups.items()}
    kinds[""] = _adamw(config, ParameterGroup())
    if fixed:
        kinds[FIXED] = optax.set_to_zero()
    frozen = {FIXED, *(name for name, group in groups.items() if group.frozen)}

    def labels(params):
        held = group_labels(params, fixed)
        return jax.tree.map(lambda group, fixed: FIXED if fixed else group, group_labels(params, groups), held)

    def is_frozen(params):
        return jax.tree.map(lambda label: label in frozen, labels(params))

    return optax.chain(
        optax.masked(optax.set_to_zero(), is_frozen),  # frozen parameters do not count in the norm
        clip_by_global_norm(config.clip_norm),
        optax.multi_transform(kinds, labels),
    )


def group_labels(params: Any, groups: Iterable[str]) -> Any:
    """For each parameter the name of its group, "" for none. Raises ValueError where a group has no parameter."""
    taken = set()

    def label(path, _) -> str:
        name = "/".join(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        fitting = [group for group in groups if name == group or name.startswith(f"{group}/")]
        taken.update(fitting)
        return max(fitting, key=len, default="")

    labels = jax.tree_util.tree_map_with_path(label, params)
    if missing := set(groups) - taken:
        heads = sorted(f"{part}/{name}" for part in params for name in params[part])
        raise ValueError(f"groups.{min(missing)} names no parameter; names begin with {', '.join(heads)}")
    return labels


def _adamw(config: TrainConfig, group: ParameterGroup) -> optax.GradientTransformation:
    schedule, decay = make_schedule(config), group.weight_decay
    return optax.adamw(
        schedule if group.rate == 1 else lambda step: group.rate * schedule(step),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay if decay < 0 else decay,
        mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
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
        ids = jnp.ones((1, model.spec.text_tokens), jnp.int32)
        features = jnp.ones((1, patches.num_patches, patches.feature_size))
        params = {"fashionbert": model.init(key, ids, ids > 0, features)["params"]}
        if config.patches.mode == "trained":
            params["patches"] = replicated_params(patch_params)
        held = jnp.zeros(len(objective.tasks)) if config.adaptive.every > 1 else None
        return TrainState(jnp.int32(0), params, _without_empty_boxes(optimizer.init(params)), held)

    arguments = (jax.random.key(config.train.seed), patches.params)
    return init, arguments, shardings(mesh, jax.eval_shape(init, *arguments))


def _without_empty_boxes(opt_state: Any) -> Any:
    """`opt_state` without boxes around nothing, which optax leaves of parameters that a group's optimizer skips."""
    is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)  # noqa: E731
    empty = lambda x: is_box(x) and isinstance(x.value, optax.MaskedNode)  # noqa: E731
    return jax.tree.map(lambda x: x.value if empty(x) else x, opt_state, is_leaf=is_box)


def batch_shapes(config, patches, text_tokens: int, tower_size: int = TOWER_SIZE) -> Batch:
    """Shapes and dtypes of a global batch, texts padded to `text_tokens`, for a `Config` and its patch network.

    `tower_size`: of the vectors of the towers that a task builds on, if one does.
    """
    b, size = config.train.batch_size, config.patches.image_size
    text = jax.ShapeDtypeStruct((b, text_tokens), jnp.int32)
    if config.patches.mode == "cached":
        image = jax.ShapeDtypeStruct((b, patches.num_patches, patches.feature_size), jnp.float16)
    else:
        image = jax.ShapeDtypeStruct((b, size, size, 3), jnp.uint8)
    number = jax.ShapeDtypeStruct((b,), jnp.int32)
    towers = jax.ShapeDtypeStruct((b, 2, tower_size), jnp.float32) if config.towers else None
    return Batch(number, number, text, text, image, image if config.needs_negative else None, towers=towers)
