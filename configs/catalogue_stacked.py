"""Linear towers and FashionBERT's encoder side by side, trained on top of what linear towers say of new products.

    fbjax train --config configs/catalogue.py --workdir runs/catalogue
    fbjax train --config configs/catalogue.py --workdir runs/first --config.train.half=first \\
        --config.train.num_steps=250
    fbjax train --config configs/catalogue_encoder.py --workdir runs/encoder
    fbjax train --config configs/catalogue_stacked.py --workdir runs/stacked

The linear towers of `configs/catalogue.py` stay as they are. Beside them an encoder is trained on the second half of
the groups, on logits of linear towers that were trained on the first (cross-fitting): these err on its products as
often as on new ones. Results: docs/lab/winning.md.
"""

from catalogue_encoder import get_config as encoder
from common import steps


def get_config():
    c = encoder()
    c.model.text_tokens = c.model.text_bucket = 128  # the linear towers read them all
    c.tasks = {"itc": {"embedding_dim": 512, "branches": "both", "encoder_tokens": 48, "towers": "runs/first"}}
    c.train.half, c.train.start_from = "second", "runs/encoder+runs/catalogue"
    steps(c, 140, products=512, rate=6e-4, warmup=20, save_every=70, log_every=10)
    for part in ("linear", "log_scale"):
        c.groups[f"fashionbert/{part}"] = {"frozen": True}
    return c
