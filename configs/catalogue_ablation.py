"""The base of the ablations on a real catalogue: a short run in which all of the paper's parts take part.

    LISTS=../shared/data/catalogue/validation-101.jsonl
    python launch/sweep.py weights,tasks,negatives,layers,networks --lists $LISTS --rank 10 --out runs/sweep

From MiniLM, on a third of the training products. Results and costs: docs/lab/results.md.

Departs from the paper: the contrast of the towers (itc) is trained with its three tasks, and TIA also reads the
cosine of the two modalities' means, without which alignment does not leave its plateau in so short a time; 4 x 4
patches of one pass over 256 pixels (the photographs have 60 x 80), two layers, 32 text tokens.
"""

from common import adam, fashion_products, minilm, mobilenet, paper_tasks, steps

from fbjax.config import defaults


def get_config():
    c = defaults()
    fashion_products(c, train="train-0000[01]-*")
    mobilenet(c, size=256, patch=64)
    minilm(c, layers=2, tokens=32)
    c.model.text_bucket = 32  # one length: compiled once
    paper_tasks(c, weights=(0.1, 0.1, 0.4))
    c.tasks.tia.head = "cls+cosine"
    c.tasks = c.tasks.to_dict() | {"itc": {"weight": 0.4}}
    steps(c, 200, products=32, rate=4e-4, warmup=20, save_every=200, log_every=25)
    adam(c)
    c.train.evaluate_products = 128
    return c
