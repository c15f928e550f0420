"""Captions for a catalogue of 35,063 products, on a 2-core CPU, from FashionBERT's weights.

    fbjax train --config configs/catalogue_caption.py --workdir runs/captions --config.train.start_from=runs/fbert
    fbjax evaluate --workdir runs/captions --protocol captioning --queries 1000
    fbjax caption --workdir runs/captions --image photo.jpg

`runs/fbert` is a run of `configs/catalogue_fashionbert.py`. It has no head for pieces, which starts at random here. Not
measured yet.

Departs from the paper: text is written from left to right (`fbjax/tasks/captioning/caption.py`); alignment and the
contrast are trained on beside it, by a tenth of the weight each, so that the run still ranks.
"""

from catalogue_fashionbert import get_config as fashionbert
from common import steps


def get_config():
    c = fashionbert()
    c.tasks = {"caption": {}, "tia": {"head": "cls+cosine"}, "itc": {}}
    c.tasks.caption.weight, c.tasks.tia.weight, c.tasks.itc.weight = 0.8, 0.1, 0.1
    c.train.start_from = "runs/fbert"
    steps(c, 2000, products=64, rate=3e-4, warmup=100, save_every=500, log_every=50)
    return c
