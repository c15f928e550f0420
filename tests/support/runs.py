"""A run small enough for a test: 48 fabricated products, pixels as patches, two layers of width 32."""

import shutil
from dataclasses import replace
from pathlib import Path

import flax.traverse_util
import jax
import numpy as np

from fbjax.config.load import freeze, load_config
from fbjax.config.schema import Config
from fbjax.model.backbones.mobilenet import MobileNetV1
from fbjax.training.loop import train
from tests.support.tables import make_products, write_parquet

CONFIG_FILE = """
from fbjax.config import defaults

def get_config():
    c = defaults()
    c.data.train, c.data.validation = {train!r}, {validation!r}
    c.data.columns.text, c.data.columns.group = ("title", "caption"), "group"
    c.data.prepared = {prepared!r}
    c.patches.image_size, c.patches.patch_size, c.patches.patch_input_size = 32, 8, 4
    c.model.vocabulary = "train:200"
    c.model.num_layers, c.model.width, c.model.num_heads, c.model.mlp_dim, c.model.text_tokens = 2, 32, 4, 64, 24
    c.model.hidden_dropout = c.model.attention_dropout = 0.1
    c.train.batch_size, c.train.num_steps, c.train.warmup_steps, c.train.learning_rate = 8, 12, 2, 1e-3
    c.train.log_every, c.train.save_every, c.train.evaluate_products = 2, 4, 16
    return c
"""


def write_config(folder: Path) -> Path:
    """Tables and a config file for them in `folder`; the config's path."""
    write_parquet(folder / "train.parquet", make_products(48, seed=0))
    write_parquet(folder / "validation.parquet", [p | {"group": "v" + p["group"]} for p in make_products(24, seed=1)])
    names = {name: str(folder / f"{name}.parquet") for name in ("train", "validation")}
    path = folder / "tiny.py"
    path.write_text(CONFIG_FILE.format(**names, prepared=str(folder / "prepared")))
    return path


def tiny_config(folder: Path, *overrides: str) -> Config:
    return load_config(write_config(folder) if not (folder / "tiny.py").exists() else folder / "tiny.py", overrides)


def train_towers_and_matcher(folder: Path) -> tuple[Path, Path]:
    """The runs of two towers and of a FashionBERT that started from them, one layer and four steps each."""
    few = ("train.num_steps=4", "train.save_every=4", "model.num_layers=1", "adaptive.method=fixed")
    towers, matcher = folder / "towers", folder / "matcher"
    train(tiny_config(folder, *few, "tasks=itc", "tasks.itc.embedding_dim=16"), towers)
    train(tiny_config(folder, *few, "tasks=tia", f"train.start_from={towers}"), matcher)
    return towers, matcher


def without_steps_after(folder: Path, step: int, to: Path) -> Path:
    """A copy of a finished workdir as a crash after `step`'s checkpoint would have left it."""
    shutil.copytree(folder, to)
    for checkpoint in (to / "checkpoints").iterdir():
        if checkpoint.name.isdigit() and int(checkpoint.name) > step:
            shutil.rmtree(checkpoint)
    return to


def config_without_tables(**model) -> Config:
    """The same run's config with fields of its model changed, and with no tables behind it."""
    space: dict = {}
    exec(CONFIG_FILE.format(train="none.csv", validation="", prepared=""), space)
    config = freeze(space["get_config"]())
    return replace(config, model=replace(config.model, **model))


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def make_one_device_mesh():
    auto = (jax.sharding.AxisType.Auto,) * 3
    return jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), devices=jax.devices()[:1], axis_types=auto)


def write_mobilenet(path: Path) -> None:
    """Random MobileNetV1 weights of width 0.25 that neither die nor saturate."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(MobileNetV1(0.25).init, jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))["params"]
    weights = {}
    for name, leaf in flax.traverse_util.flatten_dict(shapes, sep="/").items():
        values = rng.uniform(0.5, 1, leaf.shape) if "_bn/" in name else rng.normal(0, 0.3, leaf.shape)
        weights[name] = values.astype(np.float32)
    np.savez(path, **weights)
