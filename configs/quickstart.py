"""The drawn catalogue from random weights, in minutes on two CPU cores: `make quickstart` runs all of this.

    fbjax draw --out quickstart/drawn --products 6000 --seed 1
    fbjax train --config configs/quickstart.py --workdir quickstart/garments
    fbjax evaluate --workdir quickstart/garments --queries 500

One run, seed 0, 2 CPU cores: drawing 90 seconds, training 5 minutes at 900 pairs/s (2.2 GiB), evaluation 25 seconds.
Rank@1 of 47.4 % image to text and 46.2 % text to image among 101 of the same sub-category; intervals are in the README.

Departs from the paper: nothing is pretrained, and the patches are raw pixels; two narrow layers, BERT's initialisation
widened for them; fixed task weights; negatives that go from any category to the same sub-category in the
first 2,000 steps. How the recipe came about: docs/choices.md.
"""

from fbjax.config import defaults


def get_config():
    config = defaults()

    config.data.train = "quickstart/drawn/train.parquet"
    config.data.validation = "quickstart/drawn/validation.parquet"
    config.data.prepared = "quickstart/prepared"
    config.data.columns.text = ("title", "caption")
    config.data.columns.category = "subcategory"
    config.data.columns.group = "group"

    config.patches.network = "pixels"
    config.patches.image_size, config.patches.patch_size, config.patches.patch_input_size = 96, 24, 24
    config.patches.cached = True  # 330 MB; two cores have no time to decode two images a product in every step

    config.model.vocabulary = "train:1000"
    config.model.num_layers = 2
    config.model.width, config.model.num_heads, config.model.mlp_dim = 128, 4, 512
    config.model.initializer_range = 0.06
    config.model.text_tokens = 32
    config.model.hidden_dropout = config.model.attention_dropout = 0.0

    config.tasks.mask_negatives = False
    config.tasks.random_negatives_start, config.tasks.random_negatives_end, config.tasks.random_negatives_steps = (
        1.0,
        0.0,
        2000,
    )

    config.adaptive.method = "fixed"  # faster than "gradient", which serves masked words first
    config.adaptive.fixed = (0.2, 0.1, 0.7)  # mlm, mpm, tia

    config.train.batch_size = 16
    config.train.num_steps = 8000
    config.train.learning_rate = 8e-4
    config.train.warmup_steps = 400
    config.train.beta1, config.train.beta2, config.train.weight_decay = 0.9, 0.999, 0.01
    config.train.log_every = 200
    config.train.save_every = 1000
    config.train.evaluate_products = 1000
    return config
