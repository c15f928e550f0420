"""FashionBERT on a catalogue of 35,063 products on a 2-core CPU, from the weights of its own two towers.

    fbjax train --config configs/catalogue_towers.py --workdir runs/towers
    fbjax train --config configs/catalogue_fashionbert.py --workdir runs/fbert --config.train.start_from=runs/towers
    fbjax evaluate --workdir runs/fbert --candidates ../shared/data/catalogue/validation-101.jsonl

The second half of `launch/fashionbert.sh`. Results and costs: docs/lab/results.md; why this recipe: docs/lab/recipe.md.

Departs from the paper: text and image are aligned first (`configs/catalogue_towers.py`), and their contrast is trained
in place of MLM and MPM; TIA also reads the cosine of the two modalities' means; each modality attends to the other by a
share that each head learns; a token of the whole image comes before a 2 x 2 grid of one pass over 224 pixels (the
photographs have 60 x 80); two layers, 64 text tokens (the towers' 32 leave out more), fixed task weights.
"""

from catalogue_towers import get_config as towers
from common import steps


def get_config():
    c = towers()
    c.model.text_tokens, c.model.cross_attention = 64, "gated"
    c.tasks = {"tia": {"head": "cls+cosine"}, "itc": {}}
    c.train.start_from = "runs/towers"
    steps(c, 600, products=64, rate=2e-4, warmup=50, save_every=200, log_every=25)
    return c
