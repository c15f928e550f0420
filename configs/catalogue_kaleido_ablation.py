"""The base of Kaleido-BERT's ablation on a real catalogue: what each of its picture tasks is worth in a short run.

    CONFIG=configs/catalogue_kaleido_ablation.py LISTS=../shared/data/catalogue/validation-101.jsonl
    python launch/sweep.py pictures --config $CONFIG --rank 10 --lists $LISTS --out runs/pictures

`configs/catalogue_ablation.py` with Kaleido-BERT's patches and tasks in place of FashionBERT's. Not measured yet.

Departs from the paper: the contrast of the towers (itc) is trained beside, and TIA also reads the cosine of the two
modalities' means, as in FashionBERT's ablation; scales 1 to 5 are cells of one pass over 160 pixels.
"""

from catalogue_ablation import get_config as fashionbert
from common import kaleido, mobilenet


def get_config():
    c = fashionbert()
    mobilenet(c, size=160, patch=32)
    kaleido(c, weight=0.1)
    c.tasks.mlm.weight, c.tasks.tia.weight, c.tasks.tia.head = 0.1, 0.4, "cls+cosine"
    c.tasks = c.tasks.to_dict() | {"itc": {"weight": 0.4}}
    return c
