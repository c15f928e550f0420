"""Search towers: a bag of word pieces for a query, the same bag and patch features for a product, from a click log.

    fbjax draw-log --config configs/catalogue.py --attributes colour,article_type,gender,brand,usage \\
        --out clicks.parquet
    fbjax train --config configs/catalogue_queries.py --workdir runs/queries
    fbjax evaluate --workdir runs/queries --protocol log

The first command makes a synthetic log, for a catalogue without a real one. Pieces of words match where words are
mistyped. Starting from the towers of `configs/catalogue.py` was no better. Results and costs: docs/lab/shops.md.
"""

from catalogue import get_config as catalogue
from common import linear_towers, steps


def get_config():
    c = catalogue()
    linear_towers(c, size=1024, tokens=128, feature_dropout=0.5, task="qpc")
    c.tasks.qpc.ngrams_of = "pieces"
    c.log.table, c.log.count = "clicks.parquet", "count"
    c.train.column_dropout = 0.5
    steps(c, 200, products=1024, rate=1e-3, warmup=0, save_every=100, log_every=25)
    return c
