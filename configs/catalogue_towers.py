"""The two towers of a catalogue of 35,063 products on a 2-core CPU, from MiniLM's first two layers.

    fbjax train --config configs/catalogue_towers.py --workdir runs/towers
    fbjax evaluate --workdir runs/towers --protocol candidates,matching,full

The first half of `launch/fashionbert.sh`; `configs/catalogue_fashionbert.py` is the second. Text alone and image alone
go through one encoder, and every text of a batch is contrasted with every image. Results: docs/lab/results.md.
"""

from common import adam, fashion_products, minilm, mobilenet, steps

from fbjax.config import defaults


def get_config():
    c = defaults()
    fashion_products(c)
    mobilenet(c, size=224, patch=112)
    c.patches.whole_image = True
    minilm(c, layers=2, tokens=32)
    c.tasks = {"itc": {}}
    c.adaptive.method = "fixed"
    steps(c, 2000, products=128, rate=4e-4, warmup=50, save_every=400, log_every=50)
    adam(c)
    c.train.evaluate_products = 512
    return c
