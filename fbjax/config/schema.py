"""Every setting, its default and its meaning: the only place where a default is written."""

import dataclasses

PATHS = (
    "data.train",
    "data.validation",
    "data.image_root",
    "data.manual_dir",
    "data.prepared",
    "patches.weights",
    "model.vocabulary",
    "train.start_from",
)


FREE = (  # may change when a run is resumed: where things lie (their content is checked), and what is kept and shown
    *("data.train", "data.validation", "data.image_root", "data.manual_dir", "data.prepared"),
    "patches.weights",
    *("train.log_every", "train.keep_last", "mesh.data", "mesh.fsdp", "mesh.tensor"),
    *("model.attention", "model.remat", "train.micro_batches"),  # how it is computed; not what, but for dropout's draws
)


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which column of the product table holds what."""

    id: str = "id"
    text: tuple[str, ...] = ("title",)  # joined by a space
    image: str = "image"  # {bytes, path} structs (Hugging Face convention), bytes, or a path
    category: str = "category"  # negatives and candidates come from the same value
    group: str = ""  # products never to be told apart (variants, duplicates); "": every product on its own


@dataclasses.dataclass(frozen=True)
class DataConfig:
    train: str = ""  # a table or a glob of tables: .parquet, .csv, .tsv, .jsonl, .h5; or "fashiongen:train"; with
    # patches.network "features" a file of the authors' release
    validation: str = ""  # the same for validation; "": hold out part of `train`
    holdout: float = 0.05  # share of the groups held out where there is no validation table
    image_root: str = ""  # folder that image paths are relative to; "": the table's folder
    # folder of Fashion-Gen's HDF5 files, which "fashiongen:train" and "fashiongen:validation" name; "": TFDS's own for
    # such data, $TFDS_DATA_DIR or ~/tensorflow_datasets, + /downloads/manual
    manual_dir: str = ""
    columns: Columns = Columns()
    prepared: str = "prepared"  # folder for prepared records, which may be gs://.., and cached features, which not


@dataclasses.dataclass(frozen=True)
class PatchConfig:
    weights: str = ""  # the network's weights: .npz, .safetensors, .pth (.pt, .bin) or Keras' .h5; pixels has none
    # pixels | mobilenet_v1 | resnet50 (v1.5: torchvision, Hugging Face) | resnet50_v1 (Keras) | resnext101_32x8d (the
    # paper) | inception_v3 | features (ready-made ones, in the release's files); which file goes with which network:
    # docs/patch-networks.md
    network: str = "pixels"
    geometry: str = "per_patch"  # isolated (the paper) | grid (cells of one pass's feature map)
    image_size: int = 256  # pixels; every image is resized to image_size x image_size
    patch_size: int = (
        32  # pixels; P = (image_size / patch_size)^2; `feature_map` averages the cells that a patch touches
    )
    # pixels; `per_patch` resizes each patch to this before the network (the release's maintainers: 224)
    patch_input_size: int = 32
    whole_image: bool = False  # the whole image as a further token before the patches: the mean of its feature map
    trainable: bool = False  # train the network's weights along with FashionBERT
    cached: bool = False  # run the (frozen) network once over all images and keep the features on disk
    feature_size: int = 2048  # C of ready-made features; a network knows its own

    @property
    def ready_made(self) -> tuple[int, int] | None:
        """(P, C) of features that come with the data in place of images, else None."""
        return ((self.image_size // self.patch_size) ** 2, self.feature_size) if self.network == "features" else None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    pretrained: str = ""  # a BERT to start from: "minilm", a folder, or a hub name; "": random weights
    # "": the pretrained BERT's; "used": those of its pieces that the catalogue uses; a path to vocab.txt; "train:8000":
    # trained on the catalogue
    vocabulary: str = ""
    num_layers: int = 12  # the pretrained BERT's first n
    width: int = 768
    num_heads: int = 12
    mlp_dim: int = 3072
    text_tokens: int = 64  # T, [CLS] and [SEP] included
    embedding_dim: int = 0  # E, of the two towers' vectors (64 to 512); 0: no towers
    # what TIA reads: cls (the paper) | modalities ([CLS], and the cosine of the means over text and over image)
    tia_reads: str = "cls"
    # how text and image attend to each other: joint (in one softmax, the paper) | gated (beside the own modality, by a
    # share that each head learns)
    cross_attention: str = "joint"
    gate_start: float = 0.0  # that share to begin with; 0: the single stream starts as the two towers
    text_bucket: int = 16  # shorter texts are padded to the next multiple, the step compiled for each; T: always to T
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    initializer_range: float = 0.02  # deviation of random weights: BERT's, for its width of 768; narrow ones want more
    dtype: str = "float32"  # of matrix products: float32 | bfloat16; parameters stay float32
    attention: str = "xla"  # xla | cudnn (flash attention on NVIDIA GPUs: bfloat16, no attention_dropout)
    # what the backward pass recomputes to save memory: none | dots (all but products with weights) | layers (all)
    remat: str = "none"


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    # which losses, in this order: mlm, mpm, tia (the paper), itc (contrast of the two towers over the batch)
    names: tuple[str, ...] = ("mlm", "mpm", "tia")
    mlm_rate: float = 0.15  # share of text pieces masked, whole words at a time
    mpm_rate: float = 0.10  # share of patches masked
    mask_negatives: bool = True  # MLM and MPM on negative pairs too (the release does; the paper is silent)
    random_negatives_start: float = 0.0  # share of negatives from any category at step 0 ...
    random_negatives_end: float = 0.0  # ... falling linearly to this ...
    random_negatives_steps: int = 0  # ... over so many steps
    mined: float = 0.0  # share of negatives that are among the nearest mistakes of the towers of `train.start_from`
    mined_steps: int = 0  # ... reached linearly over so many steps
    mined_nearest: int = 32  # how many nearest images of a text count as such

    @property
    def mismatched(self) -> bool:
        """Whether a task reads negative pairs."""
        return "tia" in self.names


@dataclasses.dataclass(frozen=True)
class AdaptiveConfig:
    # gradient (the paper, Eq. 6) | estimate (Eq. 6 on gradients at the encoder's output) | loss_softmax (the release) |
    # fixed
    method: str = "gradient"
    every: int = 1  # gradient: steps from one solve to the next; the weights are held in between
    fixed: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3)  # weights of `fixed`, in the order of `tasks.names`; sum 1
    scaling: str = (
        "share"  # of squared gradient norms n_i into [0, domain K): share = n_i / sum n, squash = n_i / (1 + n_i)
    )
    domain: float = 0.9  # in (0, 1), as a share of K: 1/3 for K = 3 holds the ratio of two weights under 3/2
    stop_gradient: bool = False  # loss_softmax: hold the weights constant in the gradient (the release does not)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    batch_size: int = 64  # products in a global batch; each yields two pairs
    micro_batches: int = 1  # parts of a batch computed one after another to save memory; Eq. 6 sees the whole batch
    num_steps: int = 100_000
    learning_rate: float = 2e-5  # peak
    warmup_steps: int = 5_000
    beta1: float = 0.95
    beta2: float = 0.999
    epsilon: float = 1e-6  # Adam's, as in BERT's own code
    weight_decay: float = 1e-4  # not on biases and LayerNorm
    clip_norm: float = 1.0  # of the weighted gradient's global norm
    seed: int = 0
    start_from: str = ""  # another run's workdir whose weights this one begins with; "": see `model.pretrained`
    same_category: int = 1  # products of one category that stand together in a batch: the harder contrast for itc
    log_every: int = 50  # steps
    save_every: int = 1_000  # steps between checkpoints
    evaluate_products: int = 256  # of the validation split, scored at each save; held to 5 % of the wall time
    keep_last: int = 2  # checkpoints; the best by validation AUC is kept besides


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    data: int = -1  # devices along each axis; one of them may be -1: all that are left
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class Config:
    data: DataConfig = DataConfig()
    patches: PatchConfig = PatchConfig()
    model: ModelConfig = ModelConfig()
    tasks: TaskConfig = TaskConfig()
    adaptive: AdaptiveConfig = AdaptiveConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
