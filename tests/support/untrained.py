"""Runs that nobody has trained: any config at tiny sizes, every parameter random, as training would have left it."""

from pathlib import Path

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np

from fbjax.config.load import load_config
from fbjax.config.schema import Config
from fbjax.data.text.wordpiece import Vocabulary
from fbjax.export.source_model import SourceModel
from fbjax.model.backbones.registry import BACKBONES
from fbjax.model.ngrams import make_ngrams, piece_kinds
from fbjax.model.patch_features import abstract_patch_network
from fbjax.model.weights.files import write_npz
from fbjax.parallel.mesh import shardings_of
from fbjax.runs.checkpoints import Checkpoints
from fbjax.runs.run import Run, write_run
from fbjax.runs.state import init_state
from tests.support.runs import make_one_device_mesh, write_mobilenet
from tests.support.tables import make_products

CONFIGS = Path(__file__).parents[2] / "configs"
STEP = 3
IMAGE_TOWERS = ("clip_vit", "clip_vit_gelu", "siglip_vit", "siglip_vit_gelu")  # whose sizes only a file tells
SIZES = {
    "model.pretrained": "",
    "model.vocabulary": "train:160",
    "model.num_layers": 2,
    "model.width": 32,
    "model.num_heads": 4,
    "model.mlp_dim": 64,
    "model.text_tokens": 24,
    "data.train": "nowhere.parquet",
    "data.validation": "",
    "train.start_from": "",
    "train.batch_size": 8,
}
PIXELS = {"patches.image_size": 32, "patches.patch_size": 8, "patches.patch_input_size": 4}
NETWORK = {"patches.image_size": 64, "patches.patch_size": 32, "patches.patch_input_size": 48}


def silent(message: str) -> None:
    """What an export says, to nobody."""


def tiny(name: str, folder: Path, **changes) -> Config:
    """The project's config `name` at tiny sizes, with ``section__field=value`` changed; weights go to `folder`."""
    config = load_config(CONFIGS / f"{name}.py", [f"{key}={value}" for key, value in SIZES.items()])
    sizes = PIXELS if config.patches.network == "pixels" else NETWORK
    weights = folder / f"{config.patches.network.replace('+', '_')}.npz"  # + stands between several files
    sizes = sizes | {"patches.weights": weights}
    if config.patches.scales:
        sizes |= {"patches.image_size": 160}  # five cells a side
    sizes |= {f"tasks.{name}.embedding_dim": 16 for name, task in config.tasks.items() if task.embeds}
    sizes |= {key.replace("__", "."): value for key, value in changes.items()}
    if sizes.get("patches.network", config.patches.network) != config.patches.network:  # which blocks it has is unknown
        sizes = {"patches.levels": (), "patches.frozen_blocks": 0} | sizes
    overrides = [f"{key}={value}" for key, value in (SIZES | sizes).items()]
    config = load_config(CONFIGS / f"{name}.py", overrides)
    networks = [name for name in config.patches.network.split("+") if name in BACKBONES]
    if any(BACKBONES[name].needs_weights for name in networks) and not weights.is_file():
        write_weights(config.patches, weights)
    return config


def random_images(size, count=3):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def parameters(workdir):
    params = SourceModel.open(workdir, None, with_heads=False).params
    return flax.traverse_util.flatten_dict(params, sep="/")


def write_weights(patches, path: Path) -> None:
    """Random weights of a patch network that neither die nor explode."""
    if patches.network == "mobilenet_v1":
        return write_mobilenet(path)
    if patches.network in IMAGE_TOWERS:
        tower = BACKBONES[patches.network].make(64, 2, 1, 96, 16, 2)
        image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
        return write_npz(path, randomised(nn.unbox(jax.eval_shape(tower.init, jax.random.key(0), image)["params"])))
    write_npz(path, randomised(abstract_patch_network(patches).params["network"]))


def randomised(tree, seed: int = 0):
    """Arrays of the shapes in `tree`, kernels by their fan-in, everything else about 0 or, if it scales, 1."""
    rng = np.random.default_rng(seed)
    flat = flax.traverse_util.flatten_dict(tree, sep="/")
    made = {}
    for name, leaf in flat.items():
        noise = rng.standard_normal(leaf.shape, np.float32)
        if len(leaf.shape) > 1:
            made[name] = noise * np.sqrt(2 / np.prod(leaf.shape[:-1])) if len(leaf.shape) > 2 else 0.2 * noise
        elif name.endswith(("gamma", "moving_variance", "scale", "deviation")):
            made[name] = 0.7 + 0.1 * np.tanh(noise)
        else:
            made[name] = 0.1 * noise
        made[name] = np.asarray(made[name], np.float32)
    return flax.traverse_util.unflatten_dict(made, sep="/")


def write_untrained(config: Config, workdir: Path, mesh=None, seed: int = 0) -> Path:
    """A run's workdir with a checkpoint of `STEP`, as the devices of `mesh` write it (default: one)."""
    size = int(config.model.vocabulary.removeprefix("train:"))
    texts = [f"{p['title']} {p['caption']}" for p in make_products(48)]
    vocabulary, ngrams = Vocabulary.train(texts, size), {}
    if any(task.reads_bags for task in config.tasks.values()):
        ngrams = make_ngrams([vocabulary.encode(texts, 24)], piece_kinds(vocabulary.rows, unit="words"))
    run = Run.build(config, vocabulary, None, ngrams)
    workdir.mkdir(parents=True)
    write_run(run, workdir)
    state = init_state(run.objective, run.optimizer, config, mesh or make_one_device_mesh())
    params = state.all_params | {"fashionbert": randomised(state.all_params["fashionbert"], seed)}
    state = state.with_all(jax.device_put(params, shardings_of(state.all_params)))
    with Checkpoints(workdir, keep_last=1) as checkpoints:
        checkpoints.save_base(state.base)
        checkpoints.save(STEP, state)
    return workdir
