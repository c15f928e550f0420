"""The loss of masked patch modelling."""

import jax
import jax.numpy as jnp


def patch_divergence(target: jax.Array, prediction: jax.Array) -> jax.Array:
    """``KL(softmax(target) || softmax(prediction))`` over the last axis: ``[..., C] -> [...]``.

    The direction of the authors' release; Eq. 2 prints the arguments the other way round.
    """
    log_target, log_prediction = jax.nn.log_softmax(target), jax.nn.log_softmax(prediction)
    return (jnp.exp(log_target) * (log_target - log_prediction)).sum(axis=-1)
