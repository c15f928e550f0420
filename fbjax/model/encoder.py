"""The BERT encoder: post-LayerNorm transformer layers over embeddings that are given (Devlin et al. 2019).

Knows nothing of modalities or tasks. Every parameter is boxed with logical axis names, mapped to a mesh by
`fbjax.parallel.mesh`.
"""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from fbjax.config.schema import ModelConfig

NORM_EPSILON = 1e-12
GATE_START = 0.1  # the share of the other modality that heads start with, under gated cross-attention
GATE_UNIT = 10.0  # Adam moves a number by its learning rate a step: too little for one to come from 0 to some tenths


def table(config: ModelConfig, axes: tuple[str | None, ...]):
    """An initializer of weights that carry the logical `axes`."""
    return nn.with_logical_partitioning(nn.initializers.normal(config.initializer_range), axes)


zeros = nn.initializers.zeros


def dense(
    config: ModelConfig,
    features: int,
    axes: tuple[str | None, str | None],
    *,
    use_bias: bool = True,
    name: str,
    initializer: Callable | None = None,
) -> nn.Dense:
    """A dense layer whose kernel carries the logical `axes` (input, output); `initializer`: not the config's."""
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=jnp.dtype(config.dtype),
        dot_general=_flat_dot_general,
        kernel_init=nn.with_logical_partitioning(initializer, axes) if initializer else table(config, axes),
        bias_init=nn.with_logical_partitioning(zeros, axes[1:]),
        name=name,
    )


def _flat_dot_general(x: jax.Array, kernel: jax.Array, dimension_numbers, **options) -> jax.Array:
    """``x [..., D] @ kernel [D, E]`` as one product of matrices.

    Left in three axes, XLA's CPU backend copies operands of the weight gradients into another order first: an MLP
    forward and back took 1.17 times as long (2,048 rows, 384 x 1,536, 2 cores).
    """
    del dimension_numbers  # Dense contracts the last axis
    rows = jax.lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **options)
    return rows.reshape(*x.shape[:-1], -1)


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """``x (1 + erf(x / sqrt 2)) / 2``: BERT's, in float32 to 1e-6. `jax.nn.gelu`, by erfc, costs twice as much.

    The backward pass keeps the slope alone, in x's dtype; left to itself JAX keeps three float32 arrays.
    """
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


@gelu.defjvp
def _gelu_slope(primals, tangents):
    (x,), (change,) = primals, tangents
    wide = x.astype(jnp.float32)
    slope = _normal_cdf(wide) + wide * jnp.exp(-0.5 * jnp.square(wide)) / math.sqrt(2 * math.pi)
    return gelu(x), slope.astype(x.dtype) * change


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def layer_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(
        epsilon=NORM_EPSILON,
        dtype=jnp.float32,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)),
        name=name,
    )


class Attention(nn.Module):
    """Multi-head attention of `queries` [B, R, D] over `keys` [B, L, D] where `mask` [B, L].

    `crosses` [1 or B, R, L] says which of them are of unlike kind, for `ModelConfig.cross_attention` 'gated'.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        queries: jax.Array,
        keys: jax.Array,
        mask: jax.Array,
        deterministic: bool,
        crosses: jax.Array | None = None,
    ) -> jax.Array:
        heads = self.config.num_heads

        def project(x, name):
            x = dense(self.config, self.config.width, ("embed", "heads"), name=name)(x)
            return x.reshape(*x.shape[:2], heads, -1)

        q, k, v = project(queries, "query"), project(keys, "key"), project(keys, "value")
        if self.config.attention == "cudnn" and _flash_takes(q, k):
            mixed = flash(q, k, v, mask)
        else:
            drop = partial(nn.Dropout(self.config.attention_dropout), deterministic=deterministic)
            gate = None
            if crosses is not None:
                start = nn.with_logical_partitioning(nn.initializers.constant(GATE_START / GATE_UNIT), ("heads",))
                gate = GATE_UNIT * self.param("gate", start, (heads,))
            mixed = attend(q, k, v, mask, drop, crosses, gate)
        mixed = mixed.reshape(*queries.shape[:2], -1)
        return dense(self.config, self.config.width, ("heads", "embed"), name="out")(mixed)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    drop=lambda weights: weights,
    crosses: jax.Array | None = None,
    gate: jax.Array | None = None,
) -> jax.Array:
    """``softmax(q k^T / sqrt H) v`` where `mask` [B, L]: q [B, R, N, H], k and v [B, L, N, H] -> [B, R, N, H].

    With a `gate` [N] the softmax is over the keys where `crosses` [1 or B, R, L] is False, and `gate` times that over
    the others is added.

    Heads are put before positions first. `jax.nn.dot_product_attention` leaves that to XLA: with its projections,
    forward and back, it took 1.27 times as long (32 x 64 positions, 12 heads of 32, 2 CPU cores).
    """
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    logits = jnp.einsum("bnrh,bnlh->bnrl", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    mask = mask[:, None, None, :]

    def softmax(mask):
        return jax.nn.softmax(jnp.where(mask, logits, jnp.finfo(jnp.float32).min))

    if gate is None:
        weights = softmax(mask)
    else:
        crosses = crosses[:, None]
        weights = softmax(mask & ~crosses) + gate[:, None, None] * softmax(mask & crosses)
    return jnp.einsum("bnrl,bnlh->bnrh", drop(weights).astype(v.dtype), v).swapaxes(1, 2)


def _flash_takes(q: jax.Array, k: jax.Array) -> bool:
    """On an NVIDIA GPU with as many queries as keys, an even number: cuDNN takes no others with a mask."""
    return jax.default_backend() == "gpu" and q.shape == k.shape and q.shape[1] % 2 == 0


@jax.custom_vjp
def flash(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """`attend` by cuDNN's flash attention, in bfloat16, without dropout.

    Its gradient may be pulled back for several tasks at once, which JAX's own cannot (0.10.2 takes the size of that
    batch from the queries, which have none); they go one after another.
    """
    return _cudnn(q, k, v, mask)


def _cudnn(q, k, v, mask):
    mask = jnp.broadcast_to(mask[:, None, None, :], (q.shape[0], 1, q.shape[1], k.shape[1]))
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")


@jax.custom_batching.sequential_vmap
def _pull_flash(q, k, v, mask, gradient):
    return jax.vjp(lambda q, k, v: _cudnn(q, k, v, mask), q, k, v)[1](gradient)


flash.defvjp(
    lambda q, k, v, mask: (_cudnn(q, k, v, mask), (q, k, v, mask)),
    lambda inputs, gradient: (*_pull_flash(*inputs, gradient), None),
)


class Layer(nn.Module):
    """Attention and MLP, each followed by a residual and a LayerNorm.

    With `positions` [B, R] only those rows are computed past the keys and values: [B, R, D] comes out.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        positions: jax.Array | None,
        deterministic: bool,
        kinds: jax.Array | None,
    ) -> jax.Array:
        drop = nn.Dropout(self.config.hidden_dropout)
        rows = x if positions is None else jnp.take_along_axis(x, positions[..., None], axis=1)
        crosses = None
        if kinds is not None:
            crosses = (kinds[None] if positions is None else kinds[positions])[..., None] != kinds
        attended = Attention(self.config, name="attention")(rows, x, mask, deterministic, crosses)
        rows = layer_norm("attention_norm")(rows + drop(attended, deterministic))
        hidden = gelu(dense(self.config, self.config.mlp_dim, ("embed", "mlp"), name="mlp_in")(rows))
        hidden = dense(self.config, self.config.width, ("mlp", "embed"), name="mlp_out")(hidden)
        return by_example(layer_norm("mlp_norm")(rows + drop(hidden, deterministic)))


def by_example(x: jax.Array) -> jax.Array:
    """`x` [B, L, D] with examples shared out to the devices, where a step is made for a mesh; left to itself XLA would
    rather cut up D, as the weights of a mesh with ``fsdp`` are."""
    return nn.with_logical_constraint(x, ("batch", None, None))


class Encoder(nn.Module):
    """``x [B, L, D], mask [B, L] -> [B, L, D]``, or with `positions` [B, R] ``-> [B, R, D]``: those rows alone.

    The last layer's queries, MLP and norms are computed at `positions` only. `kinds` [L]
    tells positions apart for `ModelConfig.cross_attention` 'gated'.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        positions: jax.Array | None = None,
        deterministic: bool = True,
        kinds: jax.Array | None = None,
    ) -> jax.Array:
        kinds = kinds if self.config.cross_attention == "gated" else None
        layer, x = _rematerialised(self.config.remat), by_example(x)
        for i in range(self.config.num_layers):
            last = i == self.config.num_layers - 1
            x = layer(self.config, name=f"layer_{i}")(x, mask, positions if last else None, deterministic, kinds)
        return x


def _rematerialised(what: str) -> type[nn.Module]:
    """`Layer`, of which the backward pass keeps everything, its products of weights ("dots"), or its input alone."""
    if what == "none":
        return Layer
    keep = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "layers": None}[what]
    return nn.remat(Layer, static_argnums=(4,), policy=keep)  # deterministic; self is 0
