"""The train state: its optimizer, which parameters train, how it is initialised and sharded, the shapes of a batch."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
import optax

from fbjax.config.schema import Config, ParameterGroup, TrainConfig
from fbjax.data.batches.batch import Batch
from fbjax.model.lora import FACTORS, SCALE, flat_params, make_factors, merged
from fbjax.parallel.mesh import replicated_params, shardings
from fbjax.tasks.alignment.guide import num_grids

TOWER_SIZE = 512  # of the vectors of towers, where none are opened: a plan, a benchmark
LOWEST = ("patches", "fashionbert/text_embeddings", "fashionbert/image_embeddings")  # below the encoder's layers


@flax.struct.dataclass
class TrainState:
    """All that a step needs and changes. A checkpoint holds it without its `base`, which no step changes."""

    step: jax.Array  # int32: updates done, and with that the position in the data
    params: Any  # what trains: parameters of the model and of a patch network, and low-rank factors
    opt_state: Any
    task_weights: jax.Array | None = None  # [K], held between two solves; None where every step solves its own
    base: Any = flax.struct.field(default_factory=dict)  # parameters that do not train

    @property
    def all_params(self) -> dict:
        """Those of the whole model, {"fashionbert": .., and "patches" where the run has them among its parameters}."""
        return merged(self.base, self.params)

    def with_all(self, params: dict, base: bool = True) -> "TrainState":
        """The state with values from `params`, which are like `all_params`; factors stay. Without `base`: that too."""
        params = flat_params(params)

        def taken(ours: dict) -> dict:
            kept = {path: params.get(path, old) for path, old in flat_params(ours).items()}
            return flax.traverse_util.unflatten_dict(kept)

        return self.replace(params=taken(self.params), base=taken(self.base) if base else self.base)


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
    config: TrainConfig, groups: Mapping[str, ParameterGroup] = {}, num_layers: int = 0
) -> optax.GradientTransformation:
    """AdamW after clipping by the global norm; no decay on biases and LayerNorm (every parameter of one axis).

    A group of `groups` holds the parameters whose names ("patches/network/..") begin with its own; of several that fit
    the longest counts. It has a rate and a decay of its own. `num_layers` of the encoder are what
    ``config.layer_decay`` counts.
    """
    updates = _adamw(config, ParameterGroup())
    if groups:
        kinds = {name: _adamw(config, group) for name, group in groups.items() if not group.frozen} | {"": updates}
        updates = optax.multi_transform(kinds, lambda params: group_labels(params, groups))
    steps = [clip_by_global_norm(config.clip_norm), updates]
    if config.layer_decay < 1:
        steps.append(decay_by_layer(config.layer_decay, num_layers))
    return optax.chain(*steps)


def decay_by_layer(decay: float, num_layers: int) -> optax.GradientTransformation:
    """``update decay^n``, n layers below the heads: of `num_layers` the top one has n = 1 (as in BEiT, Bao et al. 2021,
    arXiv 2106.08254)."""

    def scaled(path, update):
        return update * decay ** (num_layers + 1 - _layer_of(_name(path), num_layers))

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(scaled, updates))


def _layer_of(name: str, num_layers: int) -> int:
    """Of a parameter: 0 for embeddings and patch network, 1 for the encoder's first layer, its factors included."""
    if name.startswith(LOWEST):
        return 0
    _, inside, rest = name.partition("/encoder/layer_")
    return 1 + int(rest.split("/")[0]) if inside else num_layers + 1


def group_labels(params: Any, groups: Iterable[str]) -> Any:
    """For each parameter the name of its group, "" for none."""

    def label(path, _) -> str:
        fitting = [group for group in groups if _is_in(_name(path), group)]
        return max(fitting, key=len, default="")

    return jax.tree_util.tree_map_with_path(label, params)


def _name(path) -> str:
    return "/".join(key.key for key in path if isinstance(key, jax.tree_util.DictKey))


def _is_in(name: str, group: str) -> bool:
    return name == group or name.startswith(f"{group}/")


def divide(params: dict, config: Config, fixed: Sequence[str] = ()) -> tuple[dict, dict]:
    """``(base, trained)``: the parameters that do not train, and those that do.

    A group says whether its parameters train. Of those in no group, all do, or under LoRA its factors alone. Parameters
    under the names `fixed` never do. Raises ValueError where a group has no parameter, and where nothing trains.
    """
    flat = {"/".join(path): x for path, x in flat_params(params).items()}
    for group in config.groups:
        if not any(_is_in(name, group) for name in flat):
            heads = sorted(f"{part}/{name}" for part in params for name in params[part])
            raise ValueError(f"groups.{group} names no parameter; names begin with {', '.join(heads)}")

    def trains(name: str) -> bool:
        group = max((group for group in config.groups if _is_in(name, group)), key=len, default=None)
        if any(_is_in(name, prefix) for prefix in fixed):
            return False
        return not config.groups[group].frozen if group else not config.lora.layers or _is_in(name, FACTORS)

    base, trained = ({name: x for name, x in flat.items() if trains(name) == wanted} for wanted in (False, True))
    if not trained:
        raise ValueError(f"groups {', '.join(config.groups)} freeze all parameters: there is nothing to train")
    return tuple(flax.traverse_util.unflatten_dict(part, sep="/") for part in (base, trained))


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
        if config.lora.layers:
            params[FACTORS] = make_factors(jax.random.fold_in(key, 1), params["fashionbert"], config.lora)
        base, params = divide(params, config, patches.fixed)
        if config.lora.layers:
            base[FACTORS] = {SCALE: jnp.float32(config.lora.alpha / config.lora.rank)}
        held = jnp.zeros(len(objective.tasks)) if config.adaptive.every > 1 else None
        return TrainState(jnp.int32(0), params, _without_empty_boxes(optimizer.init(params)), held, base)

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
        image = jax.ShapeDtypeStruct((b, patches.num_rows, patches.feature_size), jnp.float16)
    else:
        image = jax.ShapeDtypeStruct((b, size, size, 3), jnp.uint8)
    number = jax.ShapeDtypeStruct((b,), jnp.int32)
    towers = jax.ShapeDtypeStruct((b, 2, tower_size), jnp.float32) if config.towers else None
    linked = (b, config.model.text_tokens, num_grids(config.patches.scales))
    query = jax.ShapeDtypeStruct((b, config.log.query_tokens), jnp.int32) if config.reads_queries else None
    product = Batch(number, number, text, text, image, None)
    return product._replace(
        negative_query=query if config.draws_queries else None,
        label=number if config.reads_labels else None,
        negative=image if config.needs_negative else None,
        towers=towers,
        links=jax.ShapeDtypeStruct(linked, jnp.int16) if config.train.guided_masks else None,
        attributes=jax.ShapeDtypeStruct((b, len(config.attributes)), jnp.int32) if config.attributes else None,
        query=query,
        partner=product if config.reads_partners else None,
    )
