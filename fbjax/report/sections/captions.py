"""Captions beside pictures and texts: those of the last evaluation, if it was of this checkpoint and these products."""

import random
from pathlib import Path

from fbjax.data.batches.split import Split
from fbjax.evaluation.captions.captioning import with_interval
from fbjax.evaluation.captions.figures import NAMES
from fbjax.report.page import picture
from fbjax.runs.stored_evaluation import read_captions

SHOWN, SEED = 8, 0


def captions(workdir: Path, step: int, records: Split) -> dict | None:
    """Rows of figures, and `SHOWN` products drawn by `SEED`; None where there is nothing to show."""
    stored = read_captions(workdir)
    if not stored or (stored["checkpoint_step"], stored["records_sha256"]) != (step, records.digest):
        return None
    figures, told = stored["figures"], stored["captions"]
    drawn = sorted(random.Random(SEED).sample(range(len(told)), min(SHOWN, len(told))))
    products = records.products(records.rows([told[row][0] for row in drawn]))
    rows = {"captions of this run": figures, "the text of another product": figures["another"]}
    return {
        "figures": figures,
        "names": list(NAMES.values()),
        "rows": {title: [with_interval(of, name) for name in NAMES] for title, of in rows.items()},
        "shown": [
            {"id": product.id, "picture": picture(product.image), "text": told[row][1], "caption": told[row][2]}
            for row, product in zip(drawn, products, strict=True)
        ],
    }
