"""Encoders built on towers of the other half of the groups: which vectors they are given, and what is refused."""

import numpy as np
import pytest

from fbjax.cli.main import main
from fbjax.data.batches.halves import half_of
from fbjax.inference.catalogue.embed_catalogue import embed
from fbjax.runs.loaded import LoadedRun
from fbjax.training.cross_fitting import check_towers, tower_vectors
from fbjax.training.loop import train
from tests.support.runs import same, tiny_config, without_steps_after

pytestmark = pytest.mark.slow  # whole trainings

FEW = ("train.num_steps=4", "train.save_every=2", "model.num_layers=1", "adaptive.method=fixed")
FEW += ("tasks=itc", "tasks.itc.embedding_dim=16")
LINEAR = "tasks.itc.branches=linear"


def on_towers(folder, towers, *more):
    """The config of both branches on the second half: linear of all groups, and an encoder built on `towers`."""
    starts = f"train.start_from={folder / 'encoder'}+{folder / 'all'}"
    frozen = ("groups.fashionbert/linear.frozen=true", "groups.fashionbert/log_scale.frozen=true")
    both = ("tasks.itc.branches=both", f"tasks.itc.towers={towers}", "train.half=second", "train.seed=1")
    return tiny_config(folder, *FEW, *both, starts, *frozen, *more)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, trains_on_one_device):
    """A folder with linear towers of the first half and of all groups, an encoder, and one built on the first's."""
    folder = tmp_path_factory.mktemp("cross_fitting")
    train(tiny_config(folder, *FEW, LINEAR, "train.half=first"), folder / "first")
    train(tiny_config(folder, *FEW, LINEAR), folder / "all")
    train(tiny_config(folder, *FEW, "train.half=first"), folder / "encoder")
    train(on_towers(folder, folder / "first"), folder / "both")
    return folder


def test_products_of_the_other_half_have_the_vectors_of_the_towers(runs):
    both = LoadedRun.load(runs / "both")
    records = both.records(split="train")
    rows = np.flatnonzero(~half_of(records.groups))
    vectors = tower_vectors(check_towers(both.run, both.mesh), records, rows)
    scale = float(np.exp(LoadedRun.load(runs / "first", 4).params["fashionbert"]["log_scale"]))
    for i, (what, factor) in enumerate((("text", scale), ("image", 1.0))):
        out = embed(runs / "first", runs / f"{what}.npz", units=(what,), split="train", step=4)
        expected = np.load(out)["vectors"]
        np.testing.assert_allclose(vectors[rows, i], factor * expected[rows], rtol=1e-5, atol=1e-6)
    assert not np.delete(vectors, rows, axis=0).any()


def test_both_parts_come_from_their_runs_and_the_encoder_alone_learns(runs):
    both, encoder, linear = (
        LoadedRun.load(runs / name, 4).params["fashionbert"] for name in ("both", "encoder", "all")
    )
    assert same(both["linear"], linear["linear"]) and same(both["log_scale"], linear["log_scale"])
    assert not same(both["encoder"], encoder["encoder"])
    kernel = lambda params: np.asarray(params["encoder"]["layer_0"]["mlp_in"]["kernel"])  # noqa: E731
    assert np.abs(kernel(both) - kernel(encoder)).max() < 0.02 < np.abs(kernel(encoder)).max()  # began there


def test_it_goes_on_bit_for_bit(runs, tmp_path):
    killed = without_steps_after(runs / "both", 2, tmp_path / "killed")
    train(LoadedRun.load(killed).run.config, killed)
    assert same(LoadedRun.load(killed, 4).params, LoadedRun.load(runs / "both", 4).params)


@pytest.mark.parametrize(
    "towers, more, message",
    [
        ("all", (), "tasks.itc.towers needs a run that was trained on half of the groups"),
        ("first", ("train.half=first",), "was trained on the first half of the groups, as this run would be"),
        ("first", ("train.half=",), "and train.half to the half that they were not trained on"),
        ("first", (LINEAR,), "set tasks.itc.branches 'encoder' or 'both'"),
        ("nowhere", (), "nowhere is no workdir"),
    ],
)
def test_other_towers_are_refused_before_anything_is_trained(runs, tmp_path, towers, more, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(on_towers(runs, runs / towers, *more), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_plan_of_memory_needs_no_towers(runs, capsys):
    path = runs / "planned.py"
    path.write_text(
        "from tiny import get_config as tiny\n\n\ndef get_config():\n    c = tiny()\n"
        "    c.tasks = {'itc': {'towers': 'nowhere'}}\n"
        "    c.train.half, c.model.num_layers, c.adaptive.method = 'second', 1, 'fixed'\n    return c\n"
    )
    assert main(["bench", "--config", str(path), "--repeats", "0"]) == 0
    assert "fixed: state" in capsys.readouterr().out
