"""A CLIP or SigLIP of Hugging Face or open_clip as a run: its image tower is the patch network, its text tower a head.

The run has the task itc with branches 'dual', so that it can be evaluated, indexed and trained on as any other.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import flax.traverse_util
import numpy as np

from fbjax.config.checks import contradictions
from fbjax.config.load import absolute
from fbjax.config.schema import TASKS, AdaptiveConfig, Config, LoraConfig, ModelConfig, PatchConfig
from fbjax.core.atomic_folder import fresh_folder
from fbjax.data.text.tower_tokenizers import read_clip_tokenizer, read_siglip_tokenizer
from fbjax.export.source_model import one_device
from fbjax.model.backbones.registry import load_network
from fbjax.model.towers.weights import TextSizes, take_dual_encoder, text_sizes
from fbjax.model.weights.clip_folder import OPEN_CLIP, Description
from fbjax.model.weights.files import read_arrays
from fbjax.runs.loaded import write_params
from fbjax.runs.run import PATCH_WEIGHTS, VOCABULARY, Run

TOKENIZERS = {"clip": read_clip_tokenizer, "siglip": read_siglip_tokenizer}
OF_OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # best first
OF_BOTH = ("model.safetensors", "pytorch_model.bin")
TEXT_TOWERS = {
    ("clip", "quick_gelu"): "clip",
    ("clip", "gelu"): "clip_gelu",
    ("siglip", "gelu_tanh"): "siglip",
    ("siglip", "gelu"): "siglip_gelu",
}
EPSILON = {"clip": 1e-5, "siglip": 1e-6}
FITS = {"clip": "crop", "siglip": "squash"}
IMAGE_WEIGHT = 9.0  # of .9 image + .1 text, as Marqo's benchmark makes a product's vector


def import_towers(found: Description, folder: Path, workdir: Path, config: Config, say: Callable[[str], None]) -> None:
    """Makes `workdir` a run of the model in `folder`, with tables, columns and settings of training of `config`.

    Raises FileNotFoundError where the folder lacks weights or tokenizer, ValueError where these do not fit together.
    """
    weights = _weight_file(found, folder)
    arrays = read_arrays(weights)
    vocabulary, own_pieces = TOKENIZERS[found.kind](folder)
    sizes = text_sizes(arrays, found.kind)
    config = _config_of(config, found, sizes, weights, workdir)
    task = config.tasks["itc"]
    with fresh_folder("--workdir", workdir) as partial:
        run = Run.build(config, vocabulary, weights)
        params = take_dual_encoder(
            arrays,
            task.text_tower,
            sizes,
            num_heads=config.model.num_heads,
            image_width=run.patches.feature_size,
            rows=vocabulary.size,
            own=own_pieces,
            pad=found.pad_id if found.kind == "siglip" else 0,
        )
        write_params(run, {"fashionbert": _by_modules(params)}, partial, one_device())
    towers = f"{config.patches.network} reads images, {task.text_tower} texts"
    say(f"{weights}: a {found.kind}, {towers}; step 0 of {workdir}")


def _by_modules(params: dict[str, np.ndarray]) -> dict:
    """The parameters of a `FashionBert`, from those of its dual encoder and the temperature by name."""
    scalars = ("log_scale", "logit_bias")
    named = {name if name in scalars else f"dual/{name}": array for name, array in params.items()}
    return flax.traverse_util.unflatten_dict(named, sep="/")


def _weight_file(found: Description, folder: Path) -> Path:
    names = (*OF_OPEN_CLIP, *OF_BOTH) if found.path.name == OPEN_CLIP else OF_BOTH
    there = [folder / name for name in names if (folder / name).is_file()]
    if not there:
        raise FileNotFoundError(f"{folder} has no weights: put one of {', '.join(names)} there, in one file")
    return there[0]


def _config_of(config: Config, found: Description, sizes: TextSizes, weights: Path, workdir: Path) -> Config:
    """`config` with the sections that a model decides. Weights and tokenizer are those that the workdir will hold."""
    image, _ = load_network(found.network, weights)
    patches = PatchConfig(
        weights=absolute(str(workdir / PATCH_WEIGHTS)),
        network=found.network,
        geometry="feature_map",
        image_size=image.patch * image.grid,
        patch_size=image.patch * image.grid,
        fit=found.fit or FITS[found.kind],
        whole_image=True,
    )
    model = ModelConfig(
        vocabulary=absolute(str(workdir / VOCABULARY)),
        num_layers=sizes.num_layers,
        width=sizes.width,
        num_heads=found.text.num_heads or max(1, sizes.width // 64),
        mlp_dim=sizes.mlp_dim,
        text_tokens=sizes.num_tokens,
    )
    task = TASKS["itc"](
        embedding_dim=sizes.size,
        branches="dual",
        text_tower=_text_tower(found),
        form="sigmoid" if found.kind == "siglip" else "softmax",
        image_weight=IMAGE_WEIGHT,
    )
    changed = dataclasses.replace(
        config,
        patches=patches,
        model=model,
        tasks={"itc": task},
        adaptive=AdaptiveConfig(method="fixed"),
        train=dataclasses.replace(config.train, start_from="", half=""),
        groups={},
        lora=LoraConfig(),
    )
    if problems := contradictions(changed):
        raise ValueError("\n  ".join([f"--config does not go with {found.path}:", *problems]))
    return changed


def _text_tower(found: Description) -> str:
    """The form of the text tower. Raises ValueError for an activation or an epsilon that no such tower has."""
    text = found.text
    if (found.kind, text.activation) not in TEXT_TOWERS:
        raise ValueError(f"{found.path} has the activation {text.activation!r} for texts: no {found.kind} has it here")
    if text.epsilon is not None and not np.isclose(text.epsilon, EPSILON[found.kind], rtol=1e-3):
        raise ValueError(
            f"{found.path} has norms with epsilon {text.epsilon} for texts, a {found.kind} here {EPSILON[found.kind]}: "
            "it cannot be read"
        )
    return TEXT_TOWERS[found.kind, text.activation]
