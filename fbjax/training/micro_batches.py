"""Micro-batches: shares of a batch that a step takes one after another, to save memory.

A loss that spans the batch, as a contrast does, still spans all of it: gradient caching (GradCache, Gao et al. 2021,
arXiv 2101.06983). The passes that it reads run twice: first without a gradient, for the outputs of the whole batch and
the gradient by these; then with one, for a micro-batch at a time. The result is exact, dropout included: both runs of a
micro-batch have the same random key. Of the first run only these outputs are kept.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fbjax.tasks.objective import Losses, TaskHead


class MicroBatches(NamedTuple):
    """M shares of a batch, and what the losses that span it gave already."""

    losses_of: Callable[[Any], Losses]  # of one share; a head that spans the batch gives its part of the known loss
    examples: Any  # leaves [M, ..]
    direct: dict[int, Any]  # head -> gradient of a loss that spans the batch by the parameters of the head itself

    def sum_over(self, pull: Callable[[Losses], Any]) -> Any:
        """`pull` of the losses of every share, one after another, added up."""
        first, rest = (jax.tree.map(lambda x, at=at: x[at], self.examples) for at in (0, slice(1, None)))
        total = pull(self.losses_of(first))
        if not jax.tree.leaves(rest)[0].shape[0]:
            return total
        add = lambda total, share: (jax.tree.map(jnp.add, total, pull(self.losses_of(share))), None)  # noqa: E731
        return jax.lax.scan(add, total, rest)[0]


def split(examples: Any, parts: int) -> Any:
    """[B, ..] -> [parts, B / parts, ..]: every part takes its share of each device's examples."""
    return jax.tree.map(lambda x: x.reshape(len(x) // parts, parts, *x.shape[1:]).swapaxes(0, 1), examples)


def join(examples: Any) -> Any:
    """[parts, B / parts, ..] -> [B, ..], in the order before `split`."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), examples)


def micro_batches_of(
    losses_of: Callable[[Any], Losses], examples: Any, params: Any, whole: Losses | None
) -> MicroBatches:
    """The shares `examples` [M, ..] that `split` made. `whole`: the losses of the batch, whose passes do not run.

    Where M is above 1, losses that span the batch are computed here. Outputs of passes may be any tree of arrays that
    have the examples on axis 0. Raises ValueError where losses span the batch and `whole` is None.
    """
    num_parts = jax.tree.leaves(examples)[0].shape[0]
    if num_parts > 1 and whole is None:
        return MicroBatches(partial(_none_spans, losses_of), examples, {})
    spanning = {k: head for k, head in enumerate(whole.heads if whole else ()) if head.whole_batch}
    if num_parts == 1 or not spanning:
        return MicroBatches(losses_of, examples, {})
    read = sorted({i for head in spanning.values() for i in head.reads})

    def forward(share: Any) -> dict[int, Any]:
        passes = losses_of(share).passes
        return {i: passes[i](params) for i in read}

    outputs = join(jax.lax.map(forward, examples))
    shares, direct, by_outputs = {}, {}, {}
    for k, head in spanning.items():
        loss, pull, metrics = jax.vjp(head.loss, params, *(outputs[i] for i in head.reads), has_aux=True)
        direct[k], *through = pull(jnp.ones_like(loss))
        shares[k] = jax.tree.map(lambda x: x / num_parts, (loss, metrics))
        by_outputs[k] = split(through, num_parts)

    def known_losses_of(share: Any) -> Losses:
        share, gradients = share
        losses = losses_of(share)
        heads = list(losses.heads)
        for k, known in shares.items():
            heads[k] = _known(heads[k], *known, gradients[k])
        return losses._replace(heads=tuple(heads))

    return MicroBatches(known_losses_of, (examples, by_outputs), direct)


def _none_spans(losses_of: Callable[[Any], Losses], share: Any) -> Losses:
    losses = losses_of(share)
    if any(head.whole_batch for head in losses.heads):
        raise ValueError("a loss spans the batch: give the losses of the `whole` batch beside its micro-batches")
    return losses


def _known(head: TaskHead, loss: jax.Array, metrics: dict, by_outputs: list) -> TaskHead:
    """A head whose value is `loss` and whose gradient by the outputs that it reads is `by_outputs`."""

    def value(params: Any, *outputs: Any) -> tuple[jax.Array, dict]:
        zeros = jax.tree.map(lambda g, x: (g * (x - jax.lax.stop_gradient(x))).sum(), by_outputs, list(outputs))
        return loss + sum(jax.tree.leaves(zeros)), metrics

    return head._replace(loss=value)
