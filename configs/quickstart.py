"""The drawn catalogue from random weights, in minutes on two CPU cores: `make quickstart` runs all of this.

    fbjax draw --out quickstart/drawn --products 6000 --seed 1
    fbjax train --config quickstart --workdir quickstart/garments
    fbjax evaluate --workdir quickstart/garments --queries 500

Departs from the paper: nothing is pretrained, the patches are raw pixels, two narrow layers, fixed task weights, and
negatives that go from any category to the same sub-category. Results: docs/lab/results.md; why: docs/lab/choices.md.
"""

from common import adam, easy_negatives_first, narrow_bert, paper_tasks, pixels, products_with_captions, steps

from fbjax.config import defaults


def get_config():
    c = defaults()
    c.data.train, c.data.validation = "quickstart/drawn/train.parquet", "quickstart/drawn/validation.parquet"
    c.data.prepared = "quickstart/prepared"
    products_with_captions(c)
    pixels(c, size=96, patch=24)
    c.patches.mode = "cached"  # 330 MB; two cores have no time to decode two images a product in every step
    narrow_bert(c, width=128, heads=4, tokens=32, vocabulary="train:1000", deviation=0.06)
    paper_tasks(c, weights=(0.2, 0.1, 0.7))
    easy_negatives_first(c, steps=2000)
    steps(c, 8000, products=16, rate=8e-4, warmup=400, save_every=1000, log_every=200)
    adam(c, beta2=0.999)
    c.train.evaluate_products = 1000
    return c
