"""Kaleido-BERT on a catalogue of 35,063 products on a 2-core CPU: patches of five scales, and a task for each.

    fbjax train --config configs/catalogue_kaleido.py --workdir runs/kaleido
    fbjax evaluate --workdir runs/kaleido --protocol candidates,matching

Zhuge et al. 2021 (arXiv 2103.16110), small. Not measured yet. Texts, layers, negatives and the optimizer are those of
`configs/catalogue_vlbert.py`, and so is the number of steps.

Masks that follow an alignment of words and patches, as the paper's do, need a run that has learned one:

    fbjax train --config configs/catalogue_alignment.py --workdir runs/alignment \\
        --config.patches.fit=foreground --config.model.vocabulary=used
    fbjax train --config configs/catalogue_kaleido.py --workdir runs/kaleido_guided \\
        --config.train.guided_masks=runs/alignment

Departs from the paper, beside what `fbjax/model/rivals/kaleido.py` says: masks are random unless they are guided; fixed
weights below 1 for all but matching; the layers are MiniLM's first two; the patch network is MobileNetV1, and its
features are cached.
"""

from catalogue_vlbert import get_config as vlbert
from common import easy_negatives_first, kaleido, mobilenet


def get_config():
    c = vlbert()
    mobilenet(c, size=160, patch=32)
    c.patches.whole_image = False
    kaleido(c, weight=0.1)
    c.tasks.mlm.weight, c.tasks.tia.weight = 0.1, 0.8
    easy_negatives_first(c, steps=1000)
    return c
