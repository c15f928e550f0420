"""The base of the ablations on a real catalogue: a short run in which all of the paper's parts take part.

    LISTS=../shared/data/catalogue/validation-101.jsonl
    python launch/sweep.py weights,tasks,mismatched,layers,networks --lists $LISTS --rank 10 --out runs/sweep
    python launch/sweep.py patches --steps 100 --lists $LISTS --rank 10 --out runs/patches

From MiniLM, on a third of the training products, 5 to 9 minutes a run on one CPU core. What came of it is in
docs/results.md.

Departs from the paper: the contrast of the towers (itc) is trained beside its three tasks, and TIA also reads the
cosine of the two modalities' means, without which alignment would not leave its plateau in so short a time
(docs/recipe.md); 4 x 4 patches of one pass over 256 pixels (the photographs have 60 x 80), two layers, 32 text tokens.
"""

from fbjax.config import defaults


def get_config():
    config = defaults()

    config.data.train = "../shared/data/catalogue/train-0000[01]-*.parquet"
    config.data.validation = "../shared/data/catalogue/validation-*.parquet"
    config.data.columns.text = ("title", "caption")
    config.data.columns.category = "subcategory"
    config.data.columns.group = "group"

    config.patches.network = "mobilenet_v1"
    config.patches.weights = "../shared/weights/mobilenet_v1_0.75_224.npz"
    config.patches.geometry = "feature_map"
    config.patches.image_size, config.patches.patch_size = 256, 64
    config.patches.cached = True

    config.model.pretrained = "minilm"
    config.model.vocabulary = "used"
    config.model.num_layers = 2
    config.model.width, config.model.num_heads, config.model.mlp_dim = 384, 12, 1536
    config.model.text_tokens = config.model.text_bucket = 32  # one length: compiled once
    config.model.embedding_dim = 256
    config.model.tia_reads = "modalities"
    config.model.hidden_dropout, config.model.attention_dropout = 0.1, 0.0

    config.tasks.names = ("mlm", "mpm", "tia", "itc")
    config.tasks.mask_negatives = False

    config.adaptive.method = "fixed"
    config.adaptive.fixed = (0.1, 0.1, 0.4, 0.4)

    config.train.batch_size = 32
    config.train.num_steps = 200
    config.train.learning_rate = 4e-4
    config.train.warmup_steps = 20
    config.train.beta1, config.train.beta2, config.train.weight_decay = 0.9, 0.98, 0.01
    config.train.log_every = 25
    config.train.save_every = 200
    config.train.evaluate_products = 128
    return config
