"""Optimal transport from the words of a text to the patches of an image: how much of each word goes to each patch.

IPOT, the inexact proximal point method (Xie et al. 2020, arXiv 1802.04307), in log space. Its plan comes nearer to the
exact one with every step. A fixed step size is enough for that, where Sinkhorn's has to become small.

Axis legend: T text tokens, P patches.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp


def transport_plan(cost: jax.Array, word_mask: jax.Array, step_size: float, num_steps: int) -> jax.Array:
    """``cost [.., T, P], word_mask [.., T] -> plan [.., T, P]`` float32, without a gradient.

    ``T_0 = 1;  T_{s+1} = diag(a) (T_s * exp(-cost / step_size)) diag(b)``, one scaling a, then one b, in each step.
    The words of `word_mask` weigh alike, and so do the patches: columns sum to 1 / P, rows to 1 over the number of
    words as the steps go on. Tokens that are no words take no part: rows of 0. Without any word the plan is 0.
    """
    cost = jax.lax.stop_gradient(cost.astype(jnp.float32))
    is_word = word_mask[..., None]
    num_words = is_word.sum(axis=-2, keepdims=True)
    kernel = jnp.where(is_word, -cost / step_size, -jnp.inf)
    log_word, log_patch = -jnp.log(jnp.maximum(num_words, 1.0)), -jnp.log(cost.shape[-1])
    total = partial(logsumexp, keepdims=True)

    def step(_, state):
        log_plan, by_patch = state
        nearer = log_plan + kernel
        by_word = jnp.where(is_word, log_word - total(nearer + by_patch, axis=-1), 0.0)
        by_patch = jnp.where(num_words > 0, log_patch - total(nearer + by_word, axis=-2), 0.0)
        return nearer + by_word + by_patch, by_patch

    start = jnp.where(is_word, jnp.zeros_like(cost), -jnp.inf), jnp.zeros_like(cost[..., :1, :])
    return jnp.exp(jax.lax.fori_loop(0, num_steps, step, start)[0])


def transport_distance(cost: jax.Array, plan: jax.Array) -> jax.Array:
    """``sum of cost * plan``: ``[.., T, P], [.., T, P] -> [..]``."""
    return (cost * plan).sum(axis=(-2, -1))
