"""Query-product contrast: each query of a batch against all products, and each product against all queries.

The retrieval towers of the paper's application (FashionBERT, section 5): the query online, the product's text and image
offline, all parameters shared. A query is read in a segment of its own.
"""

import dataclasses

from fbjax.tasks.base import PRODUCT, QUERY, About, register_task
from fbjax.tasks.towers import contrast
from fbjax.tasks.towers.embedding import Embedding


@register_task("qpc")
@dataclasses.dataclass(frozen=True)
class QueryProductContrast(Embedding):
    """A contrast over the events of a log; products of one group, and of the same query, are no negatives."""

    reads_queries = True
    about = About(
        "Contrast of queries and products (qpc)",
        "vectors of queries and of products, for a shop's search",
        "Each query's own product against those of its batch, and the other way round. As a cross-entropy (form "
        "softmax), guessing among {batch_size:,} products would cost {log_batch:.1f}.",
    )

    @property
    def views(self):
        return (QUERY, PRODUCT)

    def loss(self, head, views, targets, batch):
        cosines = contrast.cosine_matrix(head("vector", views.query), head("vector", views.product))
        negatives = contrast.valid_negatives(batch.batch.group, batch.batch.query)
        losses, hits = self.contrasted(head("pair_logits", cosines), negatives, batch.step)
        return batch.weight @ losses, {"qpc_accuracy": batch.weight @ hits}
