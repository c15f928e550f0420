"""A catalogue of your own, from pixels and a vocabulary of its own: nothing to download.

    fbjax prepare --check products.csv
    fbjax train --config my_catalogue --workdir runs/mine --config.data.train=products.csv
    fbjax evaluate --workdir runs/mine --queries 100 --out metrics.json
    fbjax report --workdir runs/mine

The first command proposes the columns below; docs/guides/your-catalogue.md explains each. With the extra `minilm` and
the weights of a patch network, `configs/catalogue_towers.py` and `configs/catalogue.py` are better patterns.
"""

from common import adam, easy_negatives_first, narrow_bert, paper_tasks, pixels, steps

from fbjax.config import defaults


def get_config():
    c = defaults()
    c.data.train = "products.csv"  # .parquet, .csv, .tsv or .jsonl; a glob for several files
    c.data.validation = ""  # a table of its own, or "": a share of the groups is held out
    c.data.holdout = 0.05
    c.data.image_root = ""  # the folder that image paths are relative to, if not the table's
    c.data.columns.id = "id"  # all different
    c.data.columns.text = ("title",)  # one or more columns, joined by a space
    c.data.columns.image = "image"  # a path, or embedded bytes
    c.data.columns.category = "category"  # negatives and candidates come from the same one
    c.data.columns.group = ""  # what joins variants of one product, if there is such a column

    pixels(c, size=96, patch=24)
    narrow_bert(c, width=192, heads=6, tokens=48, vocabulary="train:8000", deviation=0.05)
    paper_tasks(c, weights=(0.2, 0.1, 0.7))
    easy_negatives_first(c, steps=3000, end=0.15)  # end=0 where nobody searches across categories
    steps(c, 8000, products=16, rate=7e-4, warmup=400, save_every=1000, log_every=200)
    adam(c, beta2=0.999)
    c.train.evaluate_products = 500
    return c
