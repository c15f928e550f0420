"""The two towers of a catalogue of 35,063 products on a 2-core CPU, from MiniLM's first two layers.

    fbjax train --config configs/catalogue_towers.py --workdir runs/towers
    fbjax evaluate --workdir runs/towers --protocol candidates,matching,full

The first half of `launch/catalogue.sh`; `configs/catalogue.py` is the second, and gives cost and result of both.
Text alone and image alone go through one encoder, and every text of a batch is told from every image.
"""

from fbjax.config import defaults


def get_config():
    config = defaults()

    config.data.train = "../shared/data/catalogue/train-*.parquet"
    config.data.validation = "../shared/data/catalogue/validation-*.parquet"
    config.data.columns.text = ("title", "caption")
    config.data.columns.category = "subcategory"
    config.data.columns.group = "group"

    config.patches.network = "mobilenet_v1"
    config.patches.weights = "../shared/weights/mobilenet_v1_0.75_224.npz"
    config.patches.geometry = "feature_map"
    config.patches.image_size, config.patches.patch_size = 224, 112
    config.patches.whole_image = True
    config.patches.cached = True

    config.model.pretrained = "minilm"
    config.model.vocabulary = "used"
    config.model.num_layers = 2
    config.model.width, config.model.num_heads, config.model.mlp_dim = 384, 12, 1536
    config.model.text_tokens = 32
    config.model.embedding_dim = 256
    config.model.hidden_dropout, config.model.attention_dropout = 0.1, 0.0

    config.tasks.names = ("itc",)

    config.adaptive.method = "fixed"
    config.adaptive.fixed = (1.0,)

    config.train.batch_size = 128
    config.train.num_steps = 2000
    config.train.learning_rate = 4e-4
    config.train.warmup_steps = 50
    config.train.beta1, config.train.beta2, config.train.weight_decay = 0.9, 0.98, 0.01
    config.train.log_every = 50
    config.train.save_every = 400
    config.train.evaluate_products = 512
    return config
