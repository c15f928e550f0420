"""FashionBERT on the catalogue that `make quickstart` has drawn, from random weights, in minutes on two CPU cores.

    fbjax train --config quickstart_fashionbert --workdir quickstart/fashionbert
    fbjax evaluate --workdir quickstart/fashionbert --queries 500

Departs from the paper: nothing is pretrained, the patches are raw pixels, two narrow layers, fixed task weights, and
negatives that go from any category to the same sub-category. Results: docs/lab/results.md; why: docs/lab/choices.md.
"""

from common import adam, drawn_garments, easy_negatives_first, narrow_bert, paper_tasks, pixels, steps

from fbjax.config import defaults


def get_config():
    c = defaults()
    drawn_garments(c)
    pixels(c, size=96, patch=24)
    c.patches.mode = "cached"  # 330 MB; two cores have no time to decode two images a product in every step
    narrow_bert(c, width=128, heads=4, tokens=32, vocabulary="train:1000", deviation=0.06)
    paper_tasks(c, weights=(0.2, 0.1, 0.7))
    easy_negatives_first(c, steps=2000)
    steps(c, 8000, products=16, rate=8e-4, warmup=400, save_every=1000, log_every=200)
    adam(c, beta2=0.999)
    c.train.evaluate_products = 1000
    return c
