"""Category, colour and the like of a catalogue of 35,063 products, on a 2-core CPU, from FashionBERT's weights.

    fbjax train --config configs/catalogue_attributes.py --workdir runs/attributes --config.train.start_from=runs/fbert
    fbjax evaluate --workdir runs/attributes --protocol attributes

`runs/fbert` is a run of `configs/catalogue_fashionbert.py`. Titles and captions name most categories and many colours:
`--config.tasks.attributes.reads=image` predicts from the picture alone. Not measured yet.

Departs from the paper: five columns are learned together, with a linear layer on [CLS]; alignment and the contrast are
trained on beside them, by a fifth of the weight each, so that the run still ranks.
"""

from catalogue_fashionbert import get_config as fashionbert
from common import steps


def get_config():
    c = fashionbert()
    c.tasks = {"attributes": {}, "tia": {"head": "cls+cosine"}, "itc": {}}
    c.tasks.attributes.columns = ("category", "subcategory", "article_type", "colour", "gender")
    c.tasks.attributes.weight, c.tasks.tia.weight, c.tasks.itc.weight = 0.6, 0.2, 0.2
    c.train.start_from = "runs/fbert"
    steps(c, 400, products=64, rate=2e-4, warmup=40, save_every=400, log_every=25)
    return c
