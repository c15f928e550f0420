"""VL-BERT on Fashion-Gen at its published size (Su et al. 2020, arXiv 1908.08530): 260,480 photos, BERT-base.

    fbjax prepare --config configs/vlbert_paper.py
    fbjax train --config configs/vlbert_paper.py --workdir runs/vlbert_paper
    fbjax evaluate --workdir runs/vlbert_paper --out runs/vlbert_paper/metrics.json

Not measured yet: Fashion-Gen is given out by its owners only. Batch (64 a device on four), learning rate (1e-7 an
example), weight decay, clipping, ten epochs and the equal weights of the masked tasks are those of the authors' release
for pretraining without text-only batches, cfgs/pretrain/base_prec_withouttextonly_4x16G_fp32.yaml. Its 8,000 steps of
warm-up are a sixteenth of ten epochs of Conceptual Captions, and so it is a sixteenth here.

Departs from the paper, beside what `fbjax/model/rivals/vlbert.py` says: 64 cells of a ResNet-50's map and the whole
image stand in for a detector's boxes and their ResNet-101; a hidden patch's features, made a distribution, for its
classes; a matching task, which the paper leaves out of pretraining, is trained from the start on [CLS]; masks take
whole words; no batch is text of books and Wikipedia; pictures are not mirrored.
"""

from common import adam, fashiongen_cells, paper_tasks, steps

from fbjax.config import defaults

PHOTOS, EPOCHS, PRODUCTS = 260_480, 10, 256


def get_config():
    c = defaults()
    fashiongen_cells(c)
    c.model.architecture, c.patches.whole_image = "vlbert", True
    paper_tasks(c, weights=(1.0, 1.0, 1.0))
    c.tasks.mpm.rate = 0.15
    c.train.micro_batches = 4
    num_steps = PHOTOS * EPOCHS // PRODUCTS
    steps(c, num_steps, PRODUCTS, rate=1e-7 * PRODUCTS, warmup=num_steps // 16, save_every=1_000, log_every=50)
    adam(c, 0.9, 0.999, weight_decay=1e-4)
    c.train.clip_norm = 10.0
    c.train.evaluate_products = 1_000
    return c
