"""The paper's recipe on a catalogue of 35,063 products: FashionBERT alone, from MiniLM, no towers before it.

    fbjax train --config configs/catalogue_paper.py --workdir runs/paper
    fbjax evaluate --workdir runs/paper --step 5600 --candidates ../shared/data/catalogue/validation-101.jsonl

Results and costs: docs/lab/results.md.

Departs from the paper, for the sake of an hour on two cores: a 4 x 4 grid of one pass over 128 pixels (the photographs
have 60 x 80), three layers, 48 text tokens, fixed task weights (a step with the adaptive `gradient` takes 1.6
times as long), and negatives that go from any category to the same sub-category in the first 1,000 steps.
"""

from common import adam, dropout, easy_negatives_first, fashion_products, minilm, mobilenet, paper_tasks, steps

from fbjax.config import defaults


def get_config():
    c = defaults()
    fashion_products(c)
    mobilenet(c, size=128, patch=32)
    minilm(c, layers=3, tokens=48, vocabulary="")
    dropout(c, 0.0)  # under three epochs, negatives redrawn in each
    paper_tasks(c, weights=(0.1, 0.1, 0.8))
    easy_negatives_first(c, steps=1000)
    steps(c, 5600, products=16, rate=2e-4, warmup=200, save_every=500, log_every=50)
    adam(c)
    c.train.evaluate_products = 512
    return c
