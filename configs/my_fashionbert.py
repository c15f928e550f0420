"""FashionBERT on a catalogue of your own, from pixels and a vocabulary of its own: nothing to download.

    fbjax prepare --check products.csv
    fbjax train --config my_fashionbert --workdir runs/mine --config.data.train=products.csv
    fbjax evaluate --workdir runs/mine --queries 100 --out metrics.json

The single stream with the paper's three tasks, small. `configs/my_catalogue.py` retrieves better.
"""

from common import adam, easy_negatives_first, narrow_bert, own_table, paper_tasks, pixels, steps

from fbjax.config import defaults


def get_config():
    c = defaults()
    own_table(c)
    pixels(c, size=96, patch=24)
    narrow_bert(c, width=192, heads=6, tokens=48, vocabulary="train:8000", deviation=0.05)
    paper_tasks(c, weights=(0.2, 0.1, 0.7))
    easy_negatives_first(c, steps=3000, end=0.15)  # end=0 where nobody searches across categories
    steps(c, 8000, products=16, rate=7e-4, warmup=400, save_every=1000, log_every=200)
    adam(c, beta2=0.999)
    c.train.evaluate_products = 500
    return c
