"""A product table of your own, from pixels and a vocabulary of its own: nothing to download.

    fbjax train --config configs/my_table.py --workdir runs/mine --config.data.train=products.csv

The table needs an id, one or more text columns, a category and an image (a path, or embedded bytes in Parquet). With
the `minilm` extra and weights of a patch network, start from `configs/catalogue.py` instead.
"""

from fbjax.config import defaults


def get_config():
    config = defaults()

    config.data.train = "products.csv"  # .parquet, .csv, .tsv or .jsonl; a glob for several files
    config.data.columns.id = "id"
    config.data.columns.text = ("title",)  # several are joined by a space
    config.data.columns.image = "image"
    config.data.columns.category = "category"
    config.data.columns.group = ""  # a column that joins variants of one product, if there is one

    config.patches.network = "pixels"
    config.patches.image_size, config.patches.patch_size, config.patches.enlarge_to = 128, 32, 16

    config.model.vocabulary = "train:8000"
    config.model.num_layers = 4
    config.model.width, config.model.num_heads, config.model.mlp_width = 256, 8, 1024
    config.model.text_tokens = 32

    config.tasks.easy_start, config.tasks.easy_end, config.tasks.easy_steps = 1.0, 0.0, 1000

    config.adaptive.method = "fixed"  # half the time of "gradient", which serves masked words first
    config.adaptive.fixed = (0.1, 0.1, 0.8)  # mlm, mpm, tia

    config.train.batch_size = 16
    config.train.num_steps = 3000
    config.train.learning_rate = 2e-4
    config.train.warmup_steps = 200
    config.train.beta1, config.train.beta2, config.train.weight_decay = 0.9, 0.98, 0.01
    config.train.save_every = 500
    return config
