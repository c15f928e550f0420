"""FashionBERT's encoder as two towers, on one half of a catalogue's groups: what `catalogue_stacked.py` starts from.

    fbjax train --config configs/catalogue_encoder.py --workdir runs/encoder

The first 48 tokens of a text and five patches go through MiniLM's first two layers, each alone. Text and image are
contrasted over batches of 512. A quarter of an hour on 2 CPU cores.
"""

from catalogue import get_config as linear_towers
from common import minilm, steps


def get_config():
    c = linear_towers()  # whose image tokens it shares
    minilm(c, layers=2, tokens=48)
    c.model.text_bucket = 16
    c.tasks = {"itc": {"embedding_dim": 512}}
    c.train.column_dropout, c.train.half = 0.0, "first"
    steps(c, 240, products=512, rate=6e-4, warmup=20, save_every=120, log_every=10)
    c.train.evaluate_products = 256
    for part in ("encoder", "text_embeddings"):
        c.groups[f"fashionbert/{part}"] = {"rate": 0.33}
    return c
