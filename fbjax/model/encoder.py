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


class LayerNorm(nn.Module):
    """``scale (x - mean) / sqrt(variance + epsilon) + bias`` over the last axis, computed and returned in float32.

    The backward pass keeps the normalised x alone, in `dtype`; flax's own keeps three float32 arrays.
    """

    dtype: str
    start: float = 1.0  # the scale's

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        boxed = lambda initializer: nn.with_logical_partitioning(initializer, ("norm",))  # noqa: E731
        scale = self.param("scale", boxed(nn.initializers.constant(self.start)), x.shape[-1:])
        bias = self.param("bias", boxed(zeros), x.shape[-1:])
        return _scaled_norm(x.astype(jnp.float32), scale, bias, jnp.dtype(self.dtype))


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _scaled_norm(x, scale, bias, kept_dtype):
    return _normalised(x)[0] * scale + bias


def _norm_forward(x, scale, bias, kept_dtype):
    normalised, inverse = _normalised(x)
    return normalised * scale + bias, (normalised.astype(kept_dtype), inverse, scale)


def _norm_backward(kept_dtype, kept, gradient):
    normalised, inverse, scale = kept
    normalised, rows = normalised.astype(jnp.float32), tuple(range(gradient.ndim - 1))
    by_scale, by_bias = (gradient * normalised).sum(axis=rows), gradient.sum(axis=rows)
    gradient = gradient * scale
    along = (gradient * normalised).mean(axis=-1, keepdims=True)
    return inverse * (gradient - gradient.mean(axis=-1, keepdims=True) - normalised * along), by_scale, by_bias


_scaled_norm.defvjp(_norm_forward, _norm_backward)


def _normalised(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x with mean 0 and variance 1 along the last axis, and the inverse of its deviation [.., 1]."""
    mean = x.mean(axis=-1, keepdims=True)
    variance = jnp.maximum(0.0, jnp.square(x).mean(axis=-1, keepdims=True) - jnp.square(mean))
    inverse = jax.lax.rsqrt(variance + NORM_EPSILON)
    return (x - mean) * inverse, inverse


class Attention(nn.Module):
    """Multi-head attention of `queries` [B, R, D] over `keys` [B, L, D] where `mask`, [B, L] or [B, R, L].

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

            def kept(weights: jax.Array) -> jax.Array:
                self.sow("intermediates", "weights", weights)  # for a caller that asks: nothing otherwise
                return drop(weights)

            mixed = attend(q, k, v, mask, kept, crosses, gate)
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
    """``softmax(q k^T / sqrt H) v`` where `mask`, [B, L] or [B, R, L]: q [B, R, N, H], k and v [B, L, N, H]
    -> [B, R, N, H].

    With a `gate` [N] the softmax is over the keys where `crosses` [1 or B, R, L] is False, and `gate` times that over
    the others is added, nothing for a query whose mask has none of them.

    Heads are put before positions first. `jax.nn.dot_product_attention` leaves that to XLA: with its projections,
    forward and back, it took 1.27 times as long (32 x 64 positions, 12 heads of 32, 2 CPU cores).
    """
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    logits = jnp.einsum("bnrh,bnlh->bnrl", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    whole, mask = mask.ndim == 2, _by_head(mask)
    if gate is None:
        weights = softmax(logits, mask, v.dtype)
    else:
        crosses = crosses[:, None]
        across = gate[:, None, None] * softmax(logits, mask & crosses, v.dtype)
        across = across if whole else jnp.where(mask & crosses, across, 0.0)  # a softmax over nothing is uniform
        weights = softmax(logits, mask & ~crosses, v.dtype) + across
    return jnp.einsum("bnrl,bnlh->bnrh", drop(weights).astype(v.dtype), v).swapaxes(1, 2)


def _by_head(mask: jax.Array) -> jax.Array:
    """``[B, L]`` or ``[B, R, L]`` as ``[B, 1, 1 or R, L]``."""
    return mask[:, None, None] if mask.ndim == 2 else mask[:, None]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def softmax(logits: jax.Array, mask: jax.Array, dtype) -> jax.Array:
    """Softmax of float32 `logits` over the last axis where `mask`, in `dtype`: all that the backward pass keeps."""
    return jax.nn.softmax(jnp.where(mask, logits, jnp.finfo(jnp.float32).min)).astype(dtype)


def _softmax_forward(logits, mask, dtype):
    weights = softmax(logits, mask, dtype)
    return weights, weights


def _softmax_backward(dtype, weights, gradient):
    weights = weights.astype(jnp.float32)
    # weights * (gradient - sum) is the same, but XLA 0.10.2 has it wrong by .2 % for several pull-backs on 8 devices
    product = weights * gradient.astype(jnp.float32)
    return product - weights * product.sum(axis=-1, keepdims=True), None


softmax.defvjp(_softmax_forward, _softmax_backward)


def _flash_takes(q: jax.Array, k: jax.Array) -> bool:
    """On an NVIDIA GPU with as many queries as keys, an even number: cuDNN takes no others with a mask."""
    return jax.default_backend() == "gpu" and q.shape == k.shape and q.shape[1] % 2 == 0


@jax.custom_vjp
def flash(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """`attend` by cuDNN's flash attention, in bfloat16, without dropout.

    Its gradient may be pulled back for several tasks at once, which JAX's own cannot (0.10.2 takes the size of that
    batch from the queries, which have none); they go one after another, and share one forward pass.
    """
    return _cudnn(q, k, v, mask)


def _cudnn(q, k, v, mask):
    mask = jnp.broadcast_to(_by_head(mask), (q.shape[0], 1, q.shape[1], k.shape[1]))
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")


@jax.custom_batching.sequential_vmap
def _pull(pull, gradient):
    return pull(gradient)


# the pull-back itself is what the backward pass keeps: a pytree of cuDNN's residuals
flash.defvjp(
    lambda q, k, v, mask: jax.vjp(lambda q, k, v: _cudnn(q, k, v, mask), q, k, v),
    lambda pull, gradient: (*_pull(pull, gradient), None),
)


class Layer(nn.Module):
    """Attention and MLP, each followed by a residual and a LayerNorm.

    With `positions` [B, R] only those rows are computed past the keys and values: [B, R, D] comes out. With `others`
    [B, K, D] keys and values are those of another stream, where `mask` [B, K].
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
        others: jax.Array | None = None,
    ) -> jax.Array:
        drop = nn.Dropout(self.config.hidden_dropout)
        rows, crosses = x, None
        if positions is not None:
            rows = jnp.take_along_axis(x, positions[..., None], axis=1)
            mask = mask if mask.ndim == 2 else jnp.take_along_axis(mask, positions[..., None], axis=1)
        if kinds is not None:
            crosses = (kinds[None] if positions is None else kinds[positions])[..., None] != kinds
        keys = x if others is None else others
        attended = Attention(self.config, name="attention")(rows, keys, mask, deterministic, crosses)
        rows = LayerNorm(self.config.dtype, name="attention_norm")(rows + drop(attended, deterministic))
        with jax.named_scope("feed_forward"):
            hidden = gelu(dense(self.config, self.config.mlp_dim, ("embed", "mlp"), name="mlp_in")(rows))
            hidden = dense(self.config, self.config.width, ("mlp", "embed"), name="mlp_out")(hidden)
            return by_example(LayerNorm(self.config.dtype, name="mlp_norm")(rows + drop(hidden, deterministic)))


def by_example(x: jax.Array) -> jax.Array:
    """`x` [B, L, D] with examples shared out to the devices, where a step is made for a mesh; left to itself XLA would
    rather cut up D, as the weights of a mesh with ``fsdp`` are."""
    return nn.with_logical_constraint(x, ("batch", None, None))


class Encoder(nn.Module):
    """``x [B, L, D], mask [B, L] -> [B, L, D]``, or with `positions` [B, R] ``-> [B, R, D]``: those rows alone.

    A `mask` [B, L, L] says for each position (axis 1) which ones it attends to.
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
        layer, x = rematerialised(self.config.remat), by_example(x)
        self.sow("intermediates", "hidden", x)
        for i in range(self.config.num_layers):
            last = i == self.config.num_layers - 1
            x = layer(self.config, name=f"layer_{i}")(x, mask, positions if last else None, deterministic, kinds)
            self.sow("intermediates", "hidden", x)
        return x


def rematerialised(what: str) -> type[nn.Module]:
    """`Layer`, of which the backward pass keeps everything, its products of weights ("dots"), or its input alone."""
    if what == "none":
        return Layer
    keep = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "layers": None}[what]
    return nn.remat(Layer, static_argnums=(4,), policy=keep)  # deterministic; self is 0
