"""Same-style towers: the towers of `configs/catalogue.py`, trained on with pairs of products of one group.

    fbjax train --config configs/catalogue_style.py --workdir runs/style
    fbjax evaluate --workdir runs/style --protocol log

An image, a text, or both find products of the same style. Name a table of pairs in `log.table` where there is one
(clicked after, bought with), with its columns in `log.product` and `log.other`. Results and costs: docs/lab/shops.md.
"""

from catalogue import get_config as catalogue
from common import linear_towers, steps


def get_config():
    c = catalogue()
    linear_towers(c, size=512, tokens=128, feature_dropout=0.5, task="style")
    c.log.table = "groups"
    c.train.start_from = "runs/catalogue"
    c.train.column_dropout = 0.0
    steps(c, 60, products=1024, rate=1e-3, warmup=0, save_every=20, log_every=10)
    return c
