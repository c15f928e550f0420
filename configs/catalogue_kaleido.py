"""Kaleido-BERT on a catalogue of 35,063 products on a 2-core CPU: patches of five scales, and a task for each.

    fbjax train --config configs/catalogue_kaleido.py --workdir runs/kaleido
    fbjax evaluate --workdir runs/kaleido --protocol candidates,matching

Zhuge et al. 2021 (arXiv 2103.16110), small. Not measured yet. Texts, layers, negatives and the optimizer are those of
`configs/catalogue_vlbert.py`, and so is the number of steps.

Departs from the paper, beside what `fbjax/model/rivals/kaleido.py` says: no foreground box, the whole picture is cut;
words are masked at random; fixed weights below 1 for all but matching; the layers are MiniLM's first two; the patch
network is MobileNetV1, and its features are cached.
"""

from common import adam, dropout, easy_negatives_first, fashion_products, kaleido, minilm, mobilenet, steps

from fbjax.config import defaults


def get_config():
    c = defaults()
    fashion_products(c)
    mobilenet(c, size=160, patch=32)
    minilm(c, layers=2, tokens=48)
    dropout(c, 0.0)
    kaleido(c, weight=0.1)
    c.tasks.mlm.weight, c.tasks.tia.weight = 0.1, 0.8
    easy_negatives_first(c, steps=1000)
    steps(c, 5600, products=16, rate=2e-4, warmup=200, save_every=500, log_every=50)
    adam(c)
    c.train.evaluate_products = 512
    return c
