"""The attributes of a run: figures of each column, its most frequent mistakes, and predictions by a fixed rule."""

import random
from pathlib import Path

from fbjax.core.console import say
from fbjax.data.batches.split import Split
from fbjax.data.sources.base import Product
from fbjax.evaluation.evaluate import evaluate
from fbjax.evaluation.recognition.attributes import SOURCES
from fbjax.inference.model import Model
from fbjax.report.page import picture
from fbjax.runs.stored_evaluation import read_attributes

NUM_EACH, SEED = 3, 0  # of right and of wrong predictions of a column
NUM_CONFUSIONS = 5
RULE = (
    f"Up to {NUM_EACH} right and {NUM_EACH} wrong predictions of each column, drawn (seed {SEED}), not picked by hand."
)


def attributes(workdir: Path, model: Model, validation: Split) -> dict | None:
    """The values of the section on attributes; None where the run predicts none, or they could not be evaluated.

    Takes the evaluation that the workdir keeps of the model's checkpoint, or evaluates all validation products.
    """
    if model.run.classes is None:
        return None
    stored, records = _stored(workdir, model, validation)
    if not stored:
        say(f"the attributes of checkpoint {model.step} have not been evaluated yet: all validation products")
        try:
            evaluate(workdir, protocols=("attributes",), step=model.step)
        except ValueError as error:  # such as a column without a value
            say(f"NOTE: the report has no attributes: {error}")
            return None
        stored, records = read_attributes(workdir), validation
    drawn = {name: draw(predictions) for name, predictions in stored["predictions"].items()}
    shown = list(dict.fromkeys(row[0] for rows in drawn.values() for row in rows))
    products = dict(zip(shown, records.products(records.rows(shown)), strict=True))
    columns = {
        name: of
        | {"confusions": of["confusions"][:NUM_CONFUSIONS], "examples": [_view(row, products) for row in drawn[name]]}
        for name, of in stored["figures"]["columns"].items()
    }
    data = ", ".join(data) if isinstance(data := stored["data"], list) else data
    return {"columns": columns, "reads": SOURCES[stored["figures"]["reads"]], "rule": RULE, "data": data}


def draw(predictions: list[list]) -> list[list]:
    """Some right, then some wrong ones of a column's ``[id, true value, predicted value, its probability]``."""
    chooser, kinds = random.Random(SEED), {True: [], False: []}
    for row in predictions:
        kinds[row[1] == row[2]].append(row)
    return [row for rows in kinds.values() for row in chooser.sample(rows, min(NUM_EACH, len(rows)))]


def _stored(workdir: Path, model: Model, validation: Split) -> tuple[dict | None, Split]:
    """The evaluation that the workdir keeps, if it is of this checkpoint and of the products as they are, and these."""
    stored = read_attributes(workdir)
    if not stored or stored["checkpoint_step"] != model.step:
        return None, validation
    records = model.records(stored["data"]) if stored["data"] else validation
    return (stored if stored["records_sha256"] == records.digest else None), records


def _view(row: list, products: dict[str, Product]) -> dict:
    identity, true, predicted, probability = row
    product = products[identity]
    found = {"product": product, "picture": picture(product.image), "true": true, "predicted": predicted}
    return found | {"probability": probability, "right": true == predicted}
