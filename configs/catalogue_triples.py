"""Triples of query, title and image: FashionBERT's pretraining, continued on a click log.

    fbjax train --config configs/catalogue_triples.py --workdir runs/plain \\
        --config.tasks=mlm,mpm,tia --config.log.table= --config.train.start_from=
    fbjax train --config configs/catalogue_triples.py --workdir runs/triples
    fbjax evaluate --workdir runs/triples --protocol log --queries 1000

The first command makes the FashionBERT that the second one goes on from. The encoder then reads title, query and image;
masked words and patches stay tasks beside the alignment of the query. Results and costs: docs/lab/shops.md.
"""

from catalogue import get_config as catalogue
from common import adam, minilm, steps, two_efficientnets


def get_config():
    c = catalogue()
    two_efficientnets(c, size=224, patch=112)
    minilm(c, layers=2, tokens=32)
    c.model.text_bucket = 16
    c.data.columns.text = ("title",)
    c.tasks = {"mlm": {}, "mpm": {}, "qta": {}}
    c.adaptive.method = "gradient"
    c.log.table, c.log.count = "clicks.parquet", "count"
    c.train.start_from, c.train.column_dropout = "runs/plain", 0.0
    steps(c, 300, products=128, rate=1e-4, warmup=30, save_every=100, log_every=25)
    adam(c)
    return c
