"""Towers on a drawn catalogue, a minute of training on two CPU cores: `make quickstart` runs all of this.

    fbjax draw --out quickstart/drawn --products 6000 --seed 1
    fbjax train --config quickstart --workdir quickstart/garments
    fbjax evaluate --workdir quickstart/garments --queries 500

The recipe of `configs/catalogue.py`, small: a bag of words and word pairs against features of EfficientNet-Lite0.
`configs/quickstart_fashionbert.py` trains the single stream on the same garments. Results: docs/lab/winning.md.
"""

from common import adam, drawn_garments, efficientnet, linear_towers, steps

from fbjax.config import defaults


def get_config():
    c = defaults()
    drawn_garments(c)
    efficientnet(c, size=160, patch=40, levels=(2, 4, 10))
    c.patches.whole_image = True
    linear_towers(c, size=256, tokens=48, feature_dropout=0.3)
    c.model.vocabulary = "train:1000"
    steps(c, 300, products=256, rate=2e-3, warmup=0, save_every=100, log_every=50)
    adam(c)
    c.train.evaluate_products = 1000
    return c
