"""The analytic adaptive loss (paper, section 3.5, Algorithm 1): weights for K task losses, solved inside the step.

Knows only that there are K losses, each a head over what trunks compute; which tasks they are is not its business. One
forward pass; the weighted gradient ``sum_i w_i grad l_i`` needs no backward pass beyond those that the weights need.

Sources differ, and so do the methods:

* ``gradient``: ``w_i = (K - s_i)^-1 / sum_k (K - s_k)^-1`` (Eq. 6) with ``s_i`` the squared norm of task i's
  gradient, scaled into ``[0, domain K)``, domain < 1. The paper does not say how it scales; see
  `AdaptiveConfig.scaling`. With ``every: n`` solved in every n-th step, the weights held in between.
* ``estimate``: Eq. 6 on the gradients with respect to what the heads read, which cost no pass through the trunks.
* ``loss_softmax``: Eq. 6 with ``s_i = softmax(l)_i^2`` (the authors' release, which uses no gradient).
* ``fixed``: constants.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from fbjax.tasks.branches import Branches, merged


@flax.struct.dataclass
class Weighted:
    """K losses, the weights solved for them, and the gradient of the weighted loss."""

    losses: jax.Array  # [K]
    weights: jax.Array  # [K], sum 1
    estimated: jax.Array  # [K]: the weights that `estimate` gives, whatever the method
    gradient_norms: jax.Array  # [K], over the shared parameters; NaN where this step did not need them
    gradient: Any  # like the parameters
    metrics: dict


class _Pulled(NamedTuple):
    losses: jax.Array  # [K]
    squared_outputs: jax.Array  # [K]: squared norms of the gradients with respect to what the heads read
    gradient: Any  # like the parameters, or K of those
    metrics: dict


def eq6(scaled: jax.Array) -> jax.Array:
    """``w_i = (K - s_i)^-1 / sum_k (K - s_k)^-1`` for s in [0, K): [K] -> [K] (Eq. 6)."""
    inverse = 1.0 / (len(scaled) - scaled)
    return inverse / inverse.sum()


def scale_norms(squared_norms: jax.Array, scaling: str, domain: float) -> jax.Array:
    """Squared gradient norms [K] scaled into [0, domain K).

    `share`: each task's share of their sum, so that the weights ignore the gradients' common size. `squash`:
    ``n / (1 + n)``, which keeps it.
    """
    if scaling == "share":
        fraction = squared_norms / jnp.maximum(squared_norms.sum(), jnp.finfo(jnp.float32).tiny)
    else:
        fraction = squared_norms / (1.0 + squared_norms)
    return domain * len(squared_norms) * fraction


def loss_softmax_weights(losses: jax.Array) -> jax.Array:
    """The release's weights: Eq. 6 on ``softmax(losses)^2``, for K = 3 always in (2/7, 3/7); 1 for K = 1."""
    return eq6(jax.nn.softmax(losses) ** 2) if len(losses) > 1 else jnp.ones_like(losses)


def weighted_gradient(
    branches: Callable[[Any], Branches],
    micro_batches: Any,
    params: Any,
    config,
    is_shared: Callable[[Any], Any],
    step: jax.Array | int = 0,
    held: jax.Array | None = None,
    scatter: Callable[[Any], Any] = lambda gradient: gradient,
) -> Weighted:
    """Losses, weights and the weighted gradient over all micro-batches, whose leaves are [M, ...].

    `is_shared` picks the shared part of a gradient, over which norms are taken (task heads excluded). `held` are the
    weights [K] between two solves, where ``config.every`` is above 1. `scatter` places each of the K gradients on the
    devices; the weighted one lies as they do.
    """
    over_batch = partial(_sum_over, micro_batches=micro_batches)
    num_micro_batches = jax.tree.leaves(micro_batches)[0].shape[0]

    def each() -> _Pulled:
        return over_batch(lambda examples: _pull_each(branches(examples), params, scatter))

    def solved() -> Weighted:
        pulled = each()
        squared = jnp.stack([_squared_norm(is_shared(gradient)) for gradient in pulled.gradient])
        weights = eq6(scale_norms(squared, config.scaling, config.domain))
        gradient = _combined(weights, pulled.gradient)
        estimated = _estimated(pulled, config)
        return Weighted(pulled.losses, weights, estimated, jnp.sqrt(squared), gradient, pulled.metrics)

    def weighed(weigh) -> Weighted:
        """In one pull-back: `weigh` gives the weights, and the derivative of the weighted loss by each loss."""
        if num_micro_batches > 1 and config.method in ("estimate", "loss_softmax"):
            pulled = each()  # the whole batch's weights are not known before its last part
            gradient = _combined(weigh(pulled)[1], pulled.gradient)
        else:
            pulled = over_batch(lambda examples: _pull_once(branches(examples), params, lambda p: weigh(p)[1]))
            gradient = pulled.gradient
        weights, unknown = weigh(pulled)[0], jnp.full(len(pulled.losses), jnp.nan)
        return Weighted(pulled.losses, weights, _estimated(pulled, config), unknown, gradient, pulled.metrics)

    if config.method != "gradient":
        return weighed(partial(_cheap_weights, config=config))
    if held is None:
        return solved()
    return jax.lax.cond(step % config.every == 0, solved, lambda: weighed(lambda pulled: (held, held)))


def _cheap_weights(pulled: _Pulled, config) -> tuple[jax.Array, jax.Array]:
    """Weights [K], and the derivative [K] of the weighted loss by each loss, where no trunk gradient is needed."""
    if config.method == "loss_softmax":
        weights = loss_softmax_weights(pulled.losses)
        if config.stop_gradient:
            return weights, weights
        return weights, jax.grad(lambda losses: loss_softmax_weights(losses) @ losses)(pulled.losses)
    if config.method == "estimate":
        weights = _estimated(pulled, config)
    else:
        weights = jnp.asarray(config.fixed, jnp.float32)
    return weights, weights


def _estimated(pulled: _Pulled, config) -> jax.Array:
    """Eq. 6 on the shares of gradients by outputs: their size is not that of gradients by parameters."""
    return eq6(scale_norms(pulled.squared_outputs, "share", config.domain))


def _sum_over(pull: Callable[[Any], _Pulled], micro_batches: Any) -> _Pulled:
    """`pull` of every micro-batch, one after another, added up."""
    first, rest = (jax.tree.map(lambda x, at=at: x[at], micro_batches) for at in (0, slice(1, None)))
    total = pull(first)
    if not jax.tree.leaves(rest)[0].shape[0]:
        return total
    add = lambda total, examples: (jax.tree.map(jnp.add, total, pull(examples)), None)  # noqa: E731
    return jax.lax.scan(add, total, rest)[0]


def _forward(branches: Branches, params: Any):
    """Pull-backs of the trunks, and of each head its loss, metrics and gradients by parameters and outputs."""
    outputs, pull_trunks = zip(*(jax.vjp(trunk, params) for trunk in branches.trunks), strict=True)
    losses, metrics, direct, into = [], [], [], []
    for head in branches.heads:
        loss, pull, metric = jax.vjp(head.loss, params, *(outputs[i] for i in head.reads), has_aux=True)
        by_params, *by_outputs = pull(jnp.ones_like(loss))
        losses.append(loss)
        metrics.append(metric)
        direct.append(by_params)
        into.append(dict(zip(head.reads, by_outputs, strict=True)))
    squared = jnp.stack([_squared_norm(by_outputs) for by_outputs in into])
    return pull_trunks, direct, into, _Pulled(jnp.stack(losses), squared, None, merged(metrics))


def _pull_once(branches: Branches, params: Any, derivatives: Callable[[_Pulled], jax.Array]) -> _Pulled:
    """The gradient of ``derivatives(..) @ losses``, in one pull-back through each trunk."""
    pull_trunks, direct, into, pulled = _forward(branches, params)
    by_loss = derivatives(pulled)
    gradient = _combined(by_loss, direct)
    for i, pull in enumerate(pull_trunks):
        reading = [k for k in range(len(into)) if i in into[k]]
        (through,) = pull(_combined(by_loss[jnp.array(reading)], [into[k][i] for k in reading]))
        gradient = jax.tree.map(jnp.add, gradient, through)
    return pulled._replace(gradient=gradient)


def _pull_each(branches: Branches, params: Any, scatter: Callable[[Any], Any]) -> _Pulled:
    """K gradients, one of each loss: through each trunk the tasks that read it go in one batch."""
    pull_trunks, gradients, into, pulled = _forward(branches, params)
    for i, pull in enumerate(pull_trunks):
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
    """In float32."""
    return sum(jnp.square(x.astype(jnp.float32)).sum() for x in jax.tree.leaves(tree))
