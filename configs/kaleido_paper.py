"""Kaleido-BERT on Fashion-Gen (Zhuge et al. 2021, arXiv 2103.16110): 260,480 photos, BERT-base, all tasks.

    fbjax prepare --config configs/kaleido_paper.py
    fbjax train --config configs/kaleido_paper.py --workdir runs/kaleido_paper
    fbjax evaluate --workdir runs/kaleido_paper --out runs/kaleido_paper/metrics.json

Not measured yet: Fashion-Gen is given out by its owners only. Batch, number of epochs and warm-up are the release's (64
a device on four, 25, a tenth of all steps); learning rate 2e-5 and weight decay 1e-4 are the paper's (the release: 1e-4
and 0).

Departs from the paper, beside what `fbjax/model/rivals/kaleido.py` says: masks are random unless `train.guided_masks`
names a run that aligns words and patches; the picture tasks read true pairs alone.
"""

from common import adam, fashiongen_cells, kaleido, steps

from fbjax.config import defaults

PHOTOS, EPOCHS, PRODUCTS = 260_480, 25, 256


def get_config():
    c = defaults()
    fashiongen_cells(c)
    kaleido(c, weight=1.0)
    c.train.micro_batches = 4
    num_steps = PHOTOS * EPOCHS // PRODUCTS
    steps(c, num_steps, PRODUCTS, rate=2e-5, warmup=num_steps // 10, save_every=2_000, log_every=50)
    adam(c, 0.9, 0.999, weight_decay=1e-4)
    c.train.evaluate_products = 1_000
    return c
