"""What `fbjax explain` is asked: a text and an image, or a product of a table in place of one or both."""

from pathlib import Path
from typing import Any, NamedTuple

from fbjax.core.console import say
from fbjax.data.sources.base import Product
from fbjax.data.sources.images import encoded
from fbjax.inference.explain import Explanation, explain
from fbjax.inference.known_words import unknown_words
from fbjax.inference.model import Model


class Answer(NamedTuple):
    """An explanation, and what it explains."""

    model: Model
    text: str
    image: Any  # encoded bytes
    explanation: Explanation


def explain_request(
    workdir: str | Path,
    *,
    text: str = "",
    image: str | Path = "",
    id: str = "",
    data: str = "",
    method: str = "gradient",
    step: int | None = None,
) -> Answer:
    """Explains the score of a text with an image by the model in `workdir`.

    The product `id` of `data` (a table or glob; default: the run's validation split) stands in for what is not given.
    Says which words the model does not know.
    """
    if not id and not (text and image):
        raise ValueError("explain takes a text and an image; --id of a product stands in for one or both")
    if id and text and image:
        raise ValueError(f"--id {id} says nothing beside a text and an image: leave one of the three out")
    if data and not id:
        raise ValueError(f"--data {data} needs the --id of one of its products")
    picture = encoded(image) if image else b""  # a missing file is said before the model is read
    model = Model.load(workdir, step)
    if id:
        product = _product(model, id, data)
        text, picture = text or product.text, picture or product.image
    for line in unknown_words(model.run, [text]):
        say(line)
    return Answer(model, text, picture, explain(model, text, picture, method))


def _product(model: Model, id: str, data: str) -> Product:
    records = model.records(data or None)
    if id not in set(records.ids.tolist()):
        where = data or "the run's validation split"
        raise ValueError(f"no product {id!r} among the {len(records):,} of {where}: give --data the table that has it")
    return records.products(records.rows([id]).tolist())[0]
