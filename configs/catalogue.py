"""FashionBERT on a catalogue of 35,063 products on a 2-core CPU, from the weights of its own two towers.

    fbjax train --config configs/catalogue_towers.py --workdir runs/towers
    fbjax train --config configs/catalogue.py --workdir runs/catalogue --config.train.start_from=runs/towers
    fbjax evaluate --workdir runs/catalogue --candidates ../shared/data/catalogue/validation-101.jsonl

The second half of `launch/catalogue.sh`. One run, seed 0, 2 CPU cores: records 12 seconds, patch features 9 minutes,
towers some 29, this 23 (58 pairs/s, 4.3 GiB). Rank@1 of 53.6 % image to text and 50.9 % text to image, AUC .979; the
towers alone come to 52.0 %, 51.7 % and .977. The README has the intervals and the gallery, docs/recipe.md what the
recipe rests on and what holds it back.

Departs from the paper: text and image are aligned first (`configs/catalogue_towers.py`), and their contrast is trained
along in place of MLM and MPM; TIA also reads the cosine of the two modalities' means; each modality attends to the
other by a share that is learned from .1; beside a 2 x 2 grid of one pass over 224 pixels stands a token of the whole
image (the photographs have 60 x 80); two layers, 64 text tokens (the towers' 32 leave out more), fixed task weights.
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
    config.model.text_tokens = 64
    config.model.embedding_dim = 256
    config.model.tia_reads = "modalities"
    config.model.cross_attention, config.model.gate_start = "gated", 0.1
    config.model.hidden_dropout, config.model.attention_dropout = 0.1, 0.0

    config.tasks.names = ("tia", "itc")
    config.tasks.mask_negatives = False

    config.adaptive.method = "fixed"
    config.adaptive.fixed = (0.5, 0.5)  # tia, itc

    config.train.start_from = "runs/towers"
    config.train.batch_size = 64
    config.train.num_steps = 600
    config.train.learning_rate = 2e-4
    config.train.warmup_steps = 50
    config.train.beta1, config.train.beta2, config.train.weight_decay = 0.9, 0.98, 0.01
    config.train.log_every = 25
    config.train.save_every = 200
    config.train.evaluate_products = 512
    return config
