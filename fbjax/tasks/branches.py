"""How an objective hands over its K losses: heads over what trunks compute, all functions of the parameters.

A task's gradient costs a pull-back through the trunks that its head reads, and no other.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Head(NamedTuple):
    """A task: ``loss(params, *outputs) -> (scalar, {metric: scalar})`` of the trunks that it reads.

    Each scalar is the part of a mean over the global batch that these examples make up: over micro-batches they add up.
    """

    reads: tuple[int, ...]
    loss: Callable[..., tuple[jax.Array, dict]]


class Branches(NamedTuple):
    """K losses of some examples as functions of the parameters. A task costs a pull-back through its trunks alone."""

    trunks: tuple[Callable[[Any], Any], ...]  # params -> output
    heads: tuple[Head, ...]  # K

    def losses(self, params: Any) -> tuple[jax.Array, dict]:
        """Losses [K] and metrics."""
        outputs = [trunk(params) for trunk in self.trunks]
        pairs = [head.loss(params, *(outputs[i] for i in head.reads)) for head in self.heads]
        return jnp.stack([loss for loss, _ in pairs]), merged(metrics for _, metrics in pairs)


def merged(metrics: Iterable[dict]) -> dict:
    """The metrics of all tasks in one."""
    return {name: value for of_task in metrics for name, value in of_task.items()}
