"""The analytic adaptive loss (paper, section 3.5, Algorithm 1): weights for K task losses, solved inside the step.

Knows only that there are K losses, each a head over what forward passes compute, of some examples or of the whole
batch, not which tasks they are. One forward pass; the weighted gradient ``sum_i w_i grad l_i`` needs no backward pass
beyond those that the weights need.

Sources differ, and so do the methods:

* ``gradient``: ``w_i = (K - s_i)^-1 / sum_k (K - s_k)^-1`` (Eq. 6) with ``s_i`` the squared norm of task i's
  gradient, scaled into ``[0, domain K)``, domain < 1, by `norm_shares`. With ``every: n`` solved in every n-th step,
  the weights held in between.
* ``estimate``: Eq. 6 on the gradients with respect to what the heads read, which need no backward pass.
* ``loss_softmax``: Eq. 6 with ``s_i = softmax(l)_i^2`` (the authors' release, which uses no gradient).
* ``fixed``: constants.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from fbjax.config.schema import AdaptiveConfig
from fbjax.tasks.objective import Losses, merged
from fbjax.training.micro_batches import micro_batches_of


@flax.struct.dataclass
class Weighted:
    """K losses, the weights solved for them, and the gradient of the weighted loss."""

    losses: jax.Array  # [K]
    weights: jax.Array  # [K], sum 1
    estimated: jax.Array  # [K]: the weights that `estimate` gives, under every method
    gradient_norms: jax.Array  # [K], over the shared parameters; NaN where this step did not need them
    gradient: Any  # like the parameters
    metrics: dict


class _Pulled(NamedTuple):
    losses: jax.Array  # [K]
    squared_outputs: jax.Array  # [K]: squared norms of the gradients with respect to what the heads read
    gradient: Any  # like the parameters, or K of those
    metrics: dict


def solve_weights(scaled: jax.Array) -> jax.Array:
    """``w_i = (K - s_i)^-1 / sum_k (K - s_k)^-1`` for s in [0, K): [K] -> [K] (Eq. 6)."""
    inverse = 1.0 / (len(scaled) - scaled)
    return inverse / inverse.sum()


def norm_shares(squared_norms: jax.Array, domain: float) -> jax.Array:
    """Each task's share of the squared gradient norms [K], scaled into [0, domain K).

    The weights so ignore the gradients' common size; the paper does not say how it scales.
    """
    total = jnp.maximum(squared_norms.sum(), jnp.finfo(jnp.float32).tiny)
    return domain * len(squared_norms) * (squared_norms / total)


def loss_softmax_weights(losses: jax.Array) -> jax.Array:
    """The release's weights: Eq. 6 on ``softmax(losses)^2``, for K = 3 always in (2/7, 3/7); 1 for K = 1."""
    return solve_weights(jax.nn.softmax(losses) ** 2) if len(losses) > 1 else jnp.ones_like(losses)


def weighted_gradient(
    losses_of: Callable[[Any], Losses],
    micro_batches: Any,
    params: Any,
    config: AdaptiveConfig,
    fixed: Sequence[float],
    shared: Callable[[Any], Any],
    step: jax.Array | int = 0,
    held: jax.Array | None = None,
    scatter: Callable[[Any], Any] = lambda gradient: gradient,
    whole: Losses | None = None,
) -> Weighted:
    """Losses, weights and the weighted gradient over all micro-batches, whose leaves are [M, ...].

    `fixed` [K]: the weights of method "fixed", up to a factor. `shared` picks the shared part of a gradient, over which
    norms are taken (task heads excluded). `held` are the weights [K] between two solves, where ``config.every`` is
    above 1. `scatter` places each of the K gradients on the devices; the weighted one gets the same
    sharding. `whole` are the losses of the whole batch, for heads that span it; the micro-batches are then those that
    `fbjax.training.micro_batches.split` makes of it.
    """
    num_micro_batches = jax.tree.leaves(micro_batches)[0].shape[0]
    micro_batches = micro_batches_of(losses_of, micro_batches, params, whole)

    def each() -> _Pulled:
        pulled = micro_batches.sum_over(lambda losses: _pull_each(losses, params, scatter))
        gradients = list(pulled.gradient)
        for k, direct in micro_batches.direct.items():
            gradients[k] = jax.tree.map(jnp.add, gradients[k], scatter(direct))
        return pulled._replace(gradient=tuple(gradients))

    def once(derivatives: Callable[[_Pulled], jax.Array]) -> _Pulled:
        pulled = micro_batches.sum_over(lambda losses: _pull_once(losses, params, derivatives))
        gradient, by_loss = pulled.gradient, derivatives(pulled)
        for k, direct in micro_batches.direct.items():
            gradient = jax.tree.map(lambda g, d, k=k: g + by_loss[k] * d, gradient, direct)
        return pulled._replace(gradient=gradient)

    def solved() -> Weighted:
        pulled = each()
        with jax.named_scope("solve"):
            squared = jnp.stack([_squared_norm(shared(gradient)) for gradient in pulled.gradient])
            weights = solve_weights(norm_shares(squared, config.domain))
            gradient = _combined(weights, pulled.gradient)
        estimated = _estimated(pulled, config)
        return Weighted(pulled.losses, weights, estimated, jnp.sqrt(squared), gradient, pulled.metrics)

    def single_backward(weigh) -> Weighted:
        """In one pull-back: `weigh` gives the weights, and the derivative of the weighted loss by each loss."""
        if num_micro_batches > 1 and config.method in ("estimate", "loss_softmax"):
            pulled = each()  # the whole batch's weights are not known before its last part
            gradient = _combined(weigh(pulled)[1], pulled.gradient)
        else:
            pulled = once(lambda pulled: weigh(pulled)[1])
            gradient = pulled.gradient
        weights, unknown = weigh(pulled)[0], jnp.full(len(pulled.losses), jnp.nan)
        return Weighted(pulled.losses, weights, _estimated(pulled, config), unknown, gradient, pulled.metrics)

    if config.method != "gradient":
        return single_backward(partial(_cheap_weights, config=config, fixed=fixed))
    if held is None:
        return solved()
    return jax.lax.cond(step % config.every == 0, solved, lambda: single_backward(lambda pulled: (held, held)))


def _cheap_weights(pulled: _Pulled, config: AdaptiveConfig, fixed: Sequence[float]) -> tuple[jax.Array, jax.Array]:
    """Weights [K], and the derivative [K] of the weighted loss by each loss, that need no gradient of a pass."""
    if config.method == "loss_softmax":
        weights = loss_softmax_weights(pulled.losses)
        return weights, jax.grad(lambda losses: loss_softmax_weights(losses) @ losses)(pulled.losses)
    if config.method == "estimate":
        weights = _estimated(pulled, config)
    else:
        weights = jnp.asarray(fixed, jnp.float32) / sum(fixed)
    return weights, weights


def _estimated(pulled: _Pulled, config: AdaptiveConfig) -> jax.Array:
    """Eq. 6 on the shares of gradients by outputs: their size is not that of gradients by parameters."""
    with jax.named_scope("solve"):
        return solve_weights(norm_shares(pulled.squared_outputs, config.domain))


def _forward(losses: Losses, params: Any):
    """Pull-backs of the passes, and of each head its loss, metrics and gradients by parameters and outputs."""
    outputs, pull_passes = zip(*(jax.vjp(forward, params) for forward in losses.passes), strict=True)
    values, metrics, direct, into = [], [], [], []
    for head in losses.heads:
        loss, pull, metric = jax.vjp(head.loss, params, *(outputs[i] for i in head.reads), has_aux=True)
        by_params, *by_outputs = pull(jnp.ones_like(loss))
        values.append(loss)
        metrics.append(metric)
        direct.append(by_params)
        into.append(dict(zip(head.reads, by_outputs, strict=True)))
    squared = jnp.stack([_squared_norm(by_outputs) for by_outputs in into])
    return pull_passes, direct, into, _Pulled(jnp.stack(values), squared, None, merged(metrics))


def _pull_once(losses: Losses, params: Any, derivatives: Callable[[_Pulled], jax.Array]) -> _Pulled:
    """The gradient of ``derivatives(..) @ losses``, in one pull-back through each forward pass."""
    pull_passes, direct, into, pulled = _forward(losses, params)
    by_loss = derivatives(pulled)
    gradient = _combined(by_loss, direct)
    for i, pull in enumerate(pull_passes):
        reading = [k for k in range(len(into)) if i in into[k]]
        (through,) = pull(_combined(by_loss[jnp.array(reading)], [into[k][i] for k in reading]))
        gradient = jax.tree.map(jnp.add, gradient, through)
    return pulled._replace(gradient=gradient)


def _pull_each(losses: Losses, params: Any, scatter: Callable[[Any], Any]) -> _Pulled:
    """K gradients, one of each loss: through each forward pass the tasks that read it go in one batch."""
    pull_passes, gradients, into, pulled = _forward(losses, params)
    for i, pull in enumerate(pull_passes):
        reading = [k for k in range(len(into)) if i in into[k]]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *(into[k][i] for k in reading))
        (through,) = jax.vmap(lambda outputs, pull=pull: tuple(map(scatter, pull(outputs))))(stacked)
        for place, k in enumerate(reading):
            gradients[k] = jax.tree.map(lambda g, t, place=place: g + t[place], gradients[k], through)
    return pulled._replace(gradient=tuple(map(scatter, gradients)))


def _combined(weights: jax.Array, trees) -> Any:
    """``sum_i weights[i] trees[i]``."""
    return jax.tree.map(lambda *leaves: sum(w * x for w, x in zip(weights, leaves, strict=True)), *trees)


def _squared_norm(tree: Any) -> jax.Array:
    """In float32; 0 of a tree without arrays, as the shared part is where only heads train."""
    return sum((jnp.square(x.astype(jnp.float32)).sum() for x in jax.tree.leaves(tree)), jnp.float32(0))
