"""The analytic adaptive loss (paper, section 3.5, Algorithm 1): weights for K task losses, solved inside the step.

Knows only that there are K losses of the same parameters; which tasks they are is not its business. One forward pass;
the weighted gradient is ``sum_i w_i grad l_i`` over the pull-backs, never a further backward pass.

Sources differ, and so do the methods:

* ``gradient``: ``w_i = (K - s_i)^-1 / sum_k (K - s_k)^-1`` (Eq. 6) with ``s_i`` the squared norm of task i's
  gradient, scaled into ``[0, domain)``, domain < K. The paper does not say how it scales; see
  `AdaptiveConfig.scaling`.
* ``loss_softmax``: Eq. 6 with ``s_i = softmax(l)_i^2`` (the authors' release, which uses no gradient).
* ``fixed``: constants.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Weighted:
    """K losses, the weights solved for them, and the gradient of the weighted loss."""

    losses: jax.Array  # [K]
    weights: jax.Array  # [K], positive, sum 1
    gradient_norms: jax.Array  # [K], over the shared parameters; NaN where the method does not need them
    gradient: Any  # like the parameters
    aux: Any


def eq6(scaled: jax.Array) -> jax.Array:
    """``w_i = (K - s_i)^-1 / sum_k (K - s_k)^-1`` for s in [0, K): [K] -> [K] (Eq. 6)."""
    inverse = 1.0 / (len(scaled) - scaled)
    return inverse / inverse.sum()


def scale_norms(squared_norms: jax.Array, scaling: str, domain: float) -> jax.Array:
    """Squared gradient norms [K] scaled into [0, domain).

    `share`: each task's share of their sum, so that the weights ignore the gradients' common size. `squash`:
    ``n / (1 + n)``, which keeps it.
    """
    if scaling == "share":
        fraction = squared_norms / jnp.maximum(squared_norms.sum(), jnp.finfo(jnp.float32).tiny)
    else:
        fraction = squared_norms / (1.0 + squared_norms)
    return domain * fraction


def loss_softmax_weights(losses: jax.Array) -> jax.Array:
    """The release's weights: Eq. 6 on ``softmax(losses)^2``, for K = 3 always in (2/7, 3/7)."""
    return eq6(jax.nn.softmax(losses) ** 2)


def weighted_gradient(
    loss_fn: Callable[[Any], tuple[jax.Array, Any]], params: Any, config, is_shared: Callable[[Any], Any]
) -> Weighted:
    """Losses, weights and the weighted gradient of ``loss_fn(params) -> (losses [K], aux)``.

    `is_shared` picks the shared part of a gradient, over which norms are taken (task heads excluded).
    """
    losses, pull_back, aux = jax.vjp(loss_fn, params, has_aux=True)
    num_tasks = len(losses)
    unknown = jnp.full(num_tasks, jnp.nan)

    if config.method == "gradient":
        (per_task,) = jax.vmap(pull_back)(jnp.eye(num_tasks))  # K pull-backs in one batch
        squared = _squared_norms(is_shared(per_task), num_tasks)
        weights = eq6(scale_norms(squared, config.scaling, config.domain))
        gradient = jax.tree.map(lambda g: jnp.einsum("k,k...->...", weights, g), per_task)
        return Weighted(losses, weights, jnp.sqrt(squared), gradient, aux)

    if config.method == "loss_softmax":
        weights = loss_softmax_weights(losses)
        held = loss_softmax_weights(jax.lax.stop_gradient(losses))
        pull = held if config.stop_gradient else jax.grad(lambda l: loss_softmax_weights(l) @ l)(losses)
    else:
        weights = pull = jnp.asarray(config.fixed, jnp.float32)
    (gradient,) = pull_back(pull)
    return Weighted(losses, weights, unknown, gradient, aux)


def _squared_norms(per_task: Any, num_tasks: int) -> jax.Array:
    """Squared norms in float32, [K], of gradients stacked along their first axis."""
    squares = [jnp.square(g.astype(jnp.float32)).reshape(num_tasks, -1).sum(axis=1) for g in jax.tree.leaves(per_task)]
    return sum(squares)
