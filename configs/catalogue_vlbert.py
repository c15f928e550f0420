"""VL-BERT on a catalogue of 35,063 products on a 2-core CPU: every word also carries the whole image's feature.

    fbjax train --config configs/catalogue_vlbert.py --workdir runs/vlbert
    fbjax evaluate --workdir runs/vlbert --protocol candidates,matching

Su et al. 2020 (arXiv 1908.08530), small. Not measured yet. Text layers, dropout, negatives, weights and the optimizer
are those of `configs/catalogue_paper.py`, but for the number of layers. `configs/catalogue_vilbert.py` has the same
features, texts and steps.

Departs from the paper, beside what `fbjax/model/rivals/vlbert.py` says: 49 patches and the whole image stand in for the
boxes of a detector, and a hidden patch's features, made a distribution, for its classes; a matching task, which the
paper leaves out of pretraining, is trained from the start on [CLS]; masks take whole words; no batch is half text
alone; the layers are MiniLM's first two.
"""

from common import adam, dropout, easy_negatives_first, fashion_products, minilm, mobilenet, paper_tasks, steps

from fbjax.config import defaults

STEPS = 5600  # of 16 products: the budget that ViLBERT, VL-BERT and `configs/catalogue_paper.py` share


def get_config():
    c = defaults()
    fashion_products(c)
    mobilenet(c, size=224, patch=32)
    c.patches.whole_image = True
    minilm(c, layers=2, tokens=48)
    dropout(c, 0.0)
    c.model.architecture = "vlbert"
    paper_tasks(c, weights=(0.1, 0.1, 0.8))
    c.tasks.mpm.rate = 0.15
    easy_negatives_first(c, steps=1000)
    steps(c, STEPS, products=16, rate=2e-4, warmup=200, save_every=500, log_every=50)
    adam(c)
    c.train.evaluate_products = 512
    return c
