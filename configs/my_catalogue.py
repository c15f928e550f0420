"""A catalogue of your own: the towers of `configs/catalogue.py`, and a vocabulary trained on your texts.

    fbjax prepare --check products.csv
    fbjax train --config my_catalogue --workdir runs/mine --config.data.train=products.csv
    fbjax evaluate --workdir runs/mine --queries 100 --out metrics.json
    fbjax report --workdir runs/mine

The first command proposes the columns of `own_table` in configs/common.py; docs/guides/your-catalogue.md explains each.
With several text columns, `train.column_dropout` of .3 also reads each of them alone, as a query is short.
"""

from common import adam, linear_towers, own_table, steps, two_efficientnets

from fbjax.config import defaults


def get_config():
    c = defaults()
    own_table(c)
    two_efficientnets(c, size=224, patch=112)
    c.patches.whole_image = True
    linear_towers(c, size=512, tokens=128, feature_dropout=0.5)
    c.model.vocabulary = "train:16000"
    steps(c, 500, products=512, rate=2e-3, warmup=0, save_every=100, log_every=25)  # 15 passes over 17,000 products
    adam(c)
    c.train.evaluate_products = 500
    return c
