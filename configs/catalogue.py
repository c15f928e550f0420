"""The recipe for a catalogue on 2 CPU cores: towers that retrieve, 35,063 products in half an hour.

    fbjax train --config configs/catalogue.py --workdir runs/catalogue
    fbjax evaluate --workdir runs/catalogue --candidates LISTS.jsonl --protocol candidates,matching,full

`launch/catalogue.sh` runs all of it. Results and costs: docs/lab/winning.md.

Departs from the paper: no single stream. A text is a bag of its words and word pairs, which reads all of it; an image
is the last maps of EfficientNet-Lite0 and -Lite2 side by side, the whole and its four quarters, with maps of two
earlier blocks of each. The networks are frozen. Some texts are read as their title alone, as a query is.
"""

from common import adam, fashion_products, linear_towers, steps, two_efficientnets

from fbjax.config import defaults


def get_config():
    c = defaults()
    fashion_products(c)
    two_efficientnets(c, size=224, patch=112)
    c.patches.whole_image = True
    c.model.pretrained, c.model.vocabulary = "minilm", "used"  # of MiniLM: the pieces of words alone
    linear_towers(c, size=512, tokens=128, feature_dropout=0.5)
    c.train.column_dropout = 0.3
    steps(c, 500, products=1024, rate=2e-3, warmup=0, save_every=125, log_every=25)
    adam(c)
    c.train.evaluate_products = 512
    return c
