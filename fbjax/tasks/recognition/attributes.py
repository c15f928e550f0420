"""Attributes: a product's category, colour, brand and the like are predicted, each a column of the product table.

FashionBERT and Kaleido-BERT (Zhuge et al. 2021, arXiv 2103.16110) fine-tune a linear layer on the pair's [CLS] for
category and sub-category. Departs from the papers: the columns are learned together and beside the run's other tasks.
Of a text or an image alone, the layer reads the mean of the encoder's hidden states, as towers do, in place of [CLS].
"""

import dataclasses
import itertools
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from fbjax.config.settings import setting
from fbjax.model.encoder import dense
from fbjax.tasks.base import IMAGE, PAIR, TEXT, About, Task, register_task

VIEWS = {"pair": PAIR, "image": IMAGE, "text": TEXT}


@register_task("attributes")
@dataclasses.dataclass(frozen=True)
class Attributes(Task):
    """Cross-entropy over the values of each column. The loss is a mean over products and columns, 0 where a product
    lacks the attribute or has a value of too few products.
    """

    columns: tuple[str, ...] = setting((), "of the product table, to be predicted; (): data.columns.category alone")
    reads: Literal["pair", "image", "text"] = setting(
        "pair",
        "what predicts: text and image together (pair, the papers), or one of them alone. A text that names the "
        "category, as most titles do, contains the answer",
    )
    fewest_products: int = setting(
        10,
        "training products that a value needs to be a class; rarer values have no loss and are never predicted",
        "[1, inf)",
    )

    owns = ("attributes",)
    predicts_attributes = True
    several_images = True
    about = About(
        "Attributes (attributes)",
        "attributes such as the category",
        "Cross-entropy of the values of each column, the mean over products and columns. It should fall well below "
        "its first values.",
    )

    @property
    def views(self):
        return (VIEWS[self.reads],)

    @property
    def reads_alone(self):
        return self.reads != "pair"

    def check(self, config):
        found = []
        if config.data.source != "tables":
            found.append(
                f"tasks.attributes predicts columns of product tables, which data.source {config.data.source!r} does "
                "not have (use 'tables')"
            )
        if len(set(self.columns)) < len(self.columns) or not all(self.columns):
            found.append(f"tasks.attributes.columns {self.columns} must be different names of columns")
        if config.lora.layers and not any("fashionbert/attributes".startswith(name) for name in config.groups):
            found.append(
                "lora.layers would leave the head of tasks.attributes at random values (train it: "
                "config.groups.fashionbert/attributes.rate=1)"
            )
        return found

    def heads(self, model, spec):
        if not spec.num_classes:  # not counted yet: a run is opened again when they are
            return {}
        full = dataclasses.replace(model, dtype="float32")
        return {"attributes": dense(full, sum(spec.num_classes), ("embed", None), name="attributes")}

    def initialise(self, model, text, image, means):
        if model.spec.num_classes:
            model.attributes(text[:, 0])

    def attribute_logits(self, model, read: jax.Array) -> list[jax.Array]:
        """[CLS] of pairs, or means of texts or images, ``[B, D] -> [B, K]`` float32 of each column."""
        ends = list(itertools.accumulate(model.spec.num_classes))
        return jnp.split(model.attributes(read), ends[:-1], axis=-1)

    def loss(self, head, views, targets, batch):
        read = views.pairs.cls[:, 0] if self.reads == "pair" else getattr(views, self.reads).mean
        labels, losses, right = batch.batch.attributes, 0.0, 0.0
        for place, logits in enumerate(head("attribute_logits", read)):
            label = labels[:, place]
            losses += jnp.where(
                label >= 0, optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(label, 0)), 0.0
            )
            right += logits.argmax(axis=-1) == label
        shares = {"attributes_right": right, "attributes_there": (labels >= 0).sum(axis=1)}
        num_columns = labels.shape[1]
        metrics = {name: batch.weight @ (value / num_columns) for name, value in shares.items()}
        return batch.weight @ (losses / num_columns), metrics

    def note(self, metrics):
        if not metrics.get("attributes_there"):
            return ""
        right, there = metrics["attributes_right"], metrics["attributes_there"]
        said = f"At the end {right / there:.1%} of the training products' values were predicted correctly"
        return said + (f"; {1 - there:.1%} of the values are missing or rare." if there < 0.9995 else ".")
