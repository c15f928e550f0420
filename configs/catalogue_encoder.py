"""FashionBERT's encoder as two towers, on one half of a catalogue's groups: what `catalogue_stacked.py` starts from.

    fbjax train --config configs/catalogue_encoder.py --workdir runs/encoder

The first 48 tokens of a text and five patches go through MiniLM's first two layers, each alone. Text and image are
contrasted over batches of 512. A quarter of an hour on 2 CPU cores.
"""

from common import adam, fashion_products, minilm, steps, two_efficientnets

from fbjax.config import defaults


def get_config():
    c = defaults()
    fashion_products(c)
    two_efficientnets(c, size=224, patch=112)
    c.patches.whole_image = True
    minilm(c, layers=2, tokens=48)
    c.tasks = {"itc": {"embedding_dim": 512}}
    c.adaptive.method = "fixed"
    c.train.half = "first"
    steps(c, 240, products=512, rate=6e-4, warmup=20, save_every=120, log_every=10)
    adam(c)
    for part in ("encoder", "text_embeddings"):
        c.groups[f"fashionbert/{part}"] = {"rate": 0.33}
    return c
