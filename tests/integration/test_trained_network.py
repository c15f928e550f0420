"""A run that trains its patch network on augmented pictures: resumed, explained, exported, imported, reported."""

import dataclasses
import shutil

import flax.traverse_util
import jax
import numpy as np
import pytest

import fbjax
from fbjax.export.importing import import_checkpoint
from fbjax.export.package import export
from fbjax.inference.explain import explain
from fbjax.model.backbones.registry import BACKBONES, shapes_of
from fbjax.model.backbones.resnet import ResNet
from fbjax.report.sections.augmented import augmented
from fbjax.runs.loaded import LoadedRun
from fbjax.training.loop import train
from tests.support.runs import same, tiny_config

pytestmark = pytest.mark.slow  # whole trainings

SETTINGS = ("mode=trained", "network=short_resnet", "geometry=feature_map", "image_size=32", "patch_size=32")
SETTINGS += ("frozen_blocks=2", "augment.flip=true", "augment.crop=0.7", "augment.brightness=0.2")
TEXT = "A red cotton dress"


@pytest.fixture(scope="module")
def run(tmp_path_factory, trains_on_one_device):
    """(config, workdir) of four steps."""
    folder = tmp_path_factory.mktemp("trained")
    short = dataclasses.replace(BACKBONES["resnet50"], make=lambda: ResNet((1, 1), bottleneck=8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES._things, "short_resnet", short)
        yield _run(folder, short)


def _run(folder, short):
    rng, shapes = np.random.default_rng(0), shapes_of(short.build({}), 32)
    draw = lambda name, shape: rng.uniform(0.5, 1, shape) if "/bn/" in name else rng.normal(0, 0.1, shape)  # noqa: E731
    np.savez(folder / "weights.npz", **{name: draw(name, shape).astype(np.float32) for name, shape in shapes.items()})
    patches = [f"patches.{setting}" for setting in (*SETTINGS, f"weights={folder / 'weights.npz'}")]
    steps = ("train.num_steps=4", "train.save_every=2", "train.warmup_steps=1", "train.weight_decay=0.1")
    tasks = ("tasks=tia", "adaptive.method=fixed", "model.num_layers=1", "groups.patches.rate=0.5")
    config = tiny_config(folder, *patches, *steps, *tasks)
    train(config, folder / "run")
    return config, folder / "run"


def test_its_frozen_blocks_are_those_of_the_file_and_the_others_have_moved(run):
    loaded = LoadedRun.load(run[1], step=4)
    before, after = loaded.run.patches.params["network"], loaded.params["patches"]["network"]
    moved = {name for name in after if not same(before[name], after[name])}
    assert after.keys() == {"stem", "stage1_block1", "stage2_block1"} and moved == {"stage2_block1"}


def test_interrupted_it_ends_bit_for_bit_the_same(run, tmp_path):
    config, workdir = run
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    train(config, tmp_path / "run")
    assert same(LoadedRun.load(tmp_path / "run", step=4).params, LoadedRun.load(workdir, step=4).params)


def test_an_explanation_is_of_the_trained_network(run):
    model = fbjax.load(run[1])
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    np.testing.assert_allclose(explain(model, TEXT, image).score, model.score([TEXT], [image])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["stablehlo", "hf"])
def test_its_export_proves_equal_and_comes_back(run, tmp_path, form):
    if form == "hf":
        pytest.importorskip("torch")
    export(run[1], form, tmp_path / form, say=lambda text: None)  # raises where it differs from the live model
    if form == "stablehlo":
        return
    import_checkpoint(tmp_path / form, tmp_path / "back", say=lambda text: None)
    live, back = (
        flax.traverse_util.flatten_dict(LoadedRun.load(w).params, sep="/") for w in (run[1], tmp_path / "back")
    )
    assert live.keys() == back.keys() and all(np.array_equal(live[name], back[name]) for name in live)


def test_a_report_shows_pictures_as_the_first_steps_saw_them(run):
    loaded = LoadedRun.load(run[1])
    rows = augmented(loaded.run, loaded.run.splits()["train"])
    assert [len(row) for row in rows] == [6] * 4 and all(len(set(row)) == 6 for row in rows)
    assert jax.tree.leaves(rows)[0].startswith("data:image/jpeg")
