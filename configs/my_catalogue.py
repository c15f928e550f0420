"""A catalogue of your own, from pixels and a vocabulary of its own: nothing to download.

    fbjax prepare --check products.csv
    fbjax train --config configs/my_catalogue.py --workdir runs/mine --config.data.train=products.csv
    fbjax evaluate --workdir runs/mine --queries 100 --out metrics.json
    fbjax report --workdir runs/mine

The first command proposes the columns below. docs/your-catalogue.md walks through all of them. With the `minilm` extra
and weights of a patch network, take `configs/catalogue_towers.py` and `configs/catalogue.py` for a pattern instead.
"""

from fbjax.config import defaults


def get_config():
    config = defaults()

    config.data.train = "products.csv"  # .parquet, .csv, .tsv or .jsonl; a glob for several files
    config.data.validation = ""  # a table of its own, or "": a share of the groups is held out
    config.data.holdout = 0.05
    config.data.image_root = ""  # the folder that image paths are relative to, if not the table's
    config.data.columns.id = "id"  # all different
    config.data.columns.text = ("title",)  # one or more columns, joined by a space
    config.data.columns.image = "image"  # a path, or embedded bytes
    config.data.columns.category = "category"  # negative pairs and candidates come from the same one
    config.data.columns.group = ""  # what joins variants of one product, if there is such a column

    config.patches.network = "pixels"
    config.patches.image_size, config.patches.patch_size, config.patches.patch_input_size = 96, 24, 24

    config.model.vocabulary = "train:8000"
    config.model.num_layers = 2
    config.model.width, config.model.num_heads, config.model.mlp_dim = 192, 6, 768
    config.model.initializer_range = 0.05
    config.model.text_tokens = 48
    config.model.hidden_dropout = config.model.attention_dropout = 0.0

    config.tasks.mask_negatives = False
    config.tasks.random_negatives_start, config.tasks.random_negatives_steps = 1.0, 3000
    config.tasks.random_negatives_end = 0.15  # 0 where nobody searches across categories

    config.adaptive.method = "fixed"  # .6 of the time of "gradient", which serves masked words first
    config.adaptive.fixed = (0.2, 0.1, 0.7)  # mlm, mpm, tia

    config.train.batch_size = 16
    config.train.num_steps = 8000
    config.train.learning_rate = 7e-4
    config.train.warmup_steps = 400
    config.train.beta1, config.train.beta2, config.train.weight_decay = 0.9, 0.999, 0.01
    config.train.log_every = 200
    config.train.save_every = 1000
    config.train.evaluate_products = 500
    return config
