"""Query alignment: does a query belong to a product, of which the encoder reads title and image with it?

The paper's application continues the pretraining on triples of query, title and image (segments Q, T and I). A run with
this task reads the query in every pair, so that mlm, mpm and tia beside it see it too.
"""

import dataclasses

import jax.numpy as jnp
import optax

from fbjax.config.settings import setting
from fbjax.data.text.wordpiece import PAD_ID
from fbjax.tasks.base import NEGATIVE_QUERY, PAIR, About, register_task
from fbjax.tasks.matching import Matching


@register_task("qta")
@dataclasses.dataclass(frozen=True)
class QueryAlignment(Matching):
    """Cross-entropy of "match" for a query and its product, and of "no match" for another product's query.

    That is one of the same category, and none that the log has for this product. With `labelled` the log itself says
    what matches, and no query is drawn.
    """

    labelled: bool = setting(False, "learn the log's labels (log.label), in place of queries of other products")
    match_weight: float = setting(
        1.0, "weight of matches in the loss, that of mismatches being 1; for labels of which one is rare", "(0, inf)"
    )

    reads_queries = True
    aligns_queries = True
    about = About(
        "Query alignment (qta)",
        "whether a query matches a product",
        "Loss of the question whether a query belongs to a product, of which title and picture are read; .693 is "
        "guessing where both answers are as frequent.",
        guide=0.6931,
    )

    @property
    def views(self):
        return (PAIR,) if self.labelled else (PAIR, NEGATIVE_QUERY)

    @property
    def reads_labels(self):
        return self.labelled

    def check(self, config):
        found = super().check(config)
        if self.labelled and not config.log.label:
            found.append("tasks.qta.labelled true learns labels, and the log has none (set log.label to their column)")
        traced = [name for name, task in config.tasks.items() if task.reads_traces]
        if traced:
            found.append(f"task {', '.join(traced)} has a teacher that reads no queries (leave it out, or qta)")
        return found

    def loss(self, head, views, targets, batch):
        cls, means = views.pairs.cls, views.pairs.means
        means = None if means is None else means.reshape(-1, 2, cls.shape[-1])
        if self.labelled:
            matches, there = batch.batch.label[:, None], jnp.ones((len(cls), 1))
        else:
            other = (batch.batch.negative_query != PAD_ID).any(axis=1)
            matches = jnp.broadcast_to(jnp.array([1, 0]), cls.shape[:2])
            there = jnp.stack([jnp.ones(len(cls)), other.astype(jnp.float32)], axis=1)
        logits = head("match_logits", cls.reshape(-1, cls.shape[-1]), means).reshape(*matches.shape, 2)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, matches)
        weights = there * jnp.where(matches == 1, self.match_weight, 1.0)
        right = ((logits.argmax(axis=-1) == matches) * there).sum(axis=1) / there.sum(axis=1)
        each = (weights * losses).sum(axis=1) / cls.shape[1]
        return batch.weight @ each, {"qta_accuracy": batch.weight @ right}
