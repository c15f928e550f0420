"""A run adapted by low-rank factors: its workdir, resumed, exported, and mixed with the run that it started from."""

import math
import re
import shutil

import flax.traverse_util
import jax
import numpy as np
import pytest

from fbjax.cli.main import main
from fbjax.config.load import config_to_json
from fbjax.export.importing import import_checkpoint
from fbjax.export.interpolation import interpolate
from fbjax.export.package import export
from fbjax.inference.model import Model
from fbjax.runs.checkpoints import BASE, Checkpoints
from fbjax.runs.loaded import LoadedRun, newest_step
from fbjax.training.loop import train
from tests.support.runs import same, tiny_config, without_steps_after
from tests.support.untrained import silent

pytestmark = pytest.mark.slow  # whole trainings

FEW = ("train.num_steps=4", "train.save_every=2", "train.warmup_steps=1", "model.num_layers=1")
FEW += ("tasks=tia,itc", "tasks.itc.embedding_dim=16", "tasks.tia.head=cls+cosine", "train.keep_last=9")
LORA = ("lora.layers=query,key,value,out,mlp_in,mlp_out", "lora.rank=2", "train.seed=5")
TEXTS = ["A red cotton dress", "a blue bag of leather"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, trains_on_one_device):
    """Workdirs: "base", trained whole, and "lora", adapted from it."""
    folder = tmp_path_factory.mktemp("adapted")
    train(tiny_config(folder, *FEW), folder / "base")
    train(adapted_config(folder), folder / "lora")
    yield folder
    shutil.rmtree(folder)


def adapted_config(folder, *overrides):
    return tiny_config(folder, *FEW, *LORA, f"train.start_from={folder / 'base'}", *overrides)


def flat(params):
    return {name: np.asarray(x) for name, x in flax.traverse_util.flatten_dict(params, sep="/").items()}


def test_its_base_is_the_run_that_it_started_from_bit_for_bit_and_stays(folder):
    began = flat(LoadedRun.load(folder / "base", newest_step(folder / "base")).params)
    with np.load(folder / "lora" / BASE) as base:
        assert {*base} == {*began, "lora/scale"} and base["lora/scale"] == np.float32(16 / 2)
        assert all(np.array_equal(base[name], array) for name, array in began.items())
    after = flat(LoadedRun.load(folder / "lora", 4).params)
    moved = {name for name, array in after.items() if not np.array_equal(array, began[name])}
    assert after.keys() == began.keys()
    assert moved == {name for name in began if "/encoder/" in name and name.endswith("kernel")} and len(moved) == 6


def test_its_checkpoint_holds_the_factors_and_their_moments_alone(folder):
    stored = {}
    for run in ("base", "lora"):
        with Checkpoints(folder / run) as checkpoints:
            state = checkpoints._orbax.metadata(4).metadata
        stored[run] = sum(math.prod(x.shape) for x in jax.tree.leaves(state) if hasattr(x, "shape"))
        assert ({"lora"} == state["params"].keys()) == (run == "lora") and state["base"] is None
    factors = 2 * (4 * (32 + 32) + 2 * (32 + 64))  # rank 2: of four kernels of attention, and of two of the MLP
    assert 3 * factors <= stored["lora"] < 3 * factors + 10 < stored["base"] / 10


def test_interrupted_it_ends_bit_for_bit_the_same(folder, tmp_path, capfd):
    workdir = without_steps_after(folder / "lora", 2, tmp_path / "lora")
    resumed = train(adapted_config(folder), workdir)
    assert "resuming at step 2 of 4" in capfd.readouterr().err
    with Checkpoints(folder / "lora") as checkpoints:
        step, state = checkpoints.restore_newest(resumed)
    assert step == 4 and same(state, resumed)


def test_it_needs_the_other_run_no_more(folder, tmp_path):
    scores = Model.load(folder / "lora").score(TEXTS, photographs())
    (folder / "base").rename(tmp_path / "gone")
    try:
        np.testing.assert_array_equal(Model.load(folder / "lora").score(TEXTS, photographs()), scores)
    finally:
        (tmp_path / "gone").rename(folder / "base")


def photographs():
    return list(np.random.default_rng(0).integers(0, 255, (len(TEXTS), 32, 32, 3), dtype=np.uint8))


DIGEST = "[0-9a-f]{12}"


@pytest.mark.parametrize("fault, found", [("flipped", DIGEST), ("replaced", DIGEST), ("gone", "nothing")])
def test_another_base_is_refused_in_one_line(folder, tmp_path, fault, found):
    workdir = shutil.copytree(folder / "lora", tmp_path / "lora")
    whole = (workdir / BASE).read_bytes()
    if fault == "flipped":
        (workdir / BASE).write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    elif fault == "replaced":
        with np.load(workdir / BASE) as arrays:
            np.savez(workdir / BASE, **{name: array + 1 for name, array in arrays.items()})
    else:
        (workdir / BASE).unlink()
    message = rf"base.npz is not the base that checkpoint 4 was trained on \(SHA-256 \w+.., found {found}\): copy that"
    with pytest.raises(ValueError, match=message):
        LoadedRun.load(workdir, 4)
    with pytest.raises(ValueError, match=message):
        train(adapted_config(folder), workdir)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "4"]  # none is set aside


def test_its_export_scores_as_it_does_and_comes_back_with_the_factors_merged(folder, tmp_path):
    pytest.importorskip("torch")
    export(folder / "lora", "hf", tmp_path / "hf", step=4, say=silent)  # raises where it differs from the live model
    assert "of factors of rank 2 (LoRA) of query, key" in (tmp_path / "hf" / "README.md").read_text()
    import_checkpoint(tmp_path / "hf", tmp_path / "back", say=silent)
    live, back = Model.load(folder / "lora", 4), Model.load(tmp_path / "back")
    assert back.run.config.lora.layers == () and same(live.params, back.params)
    np.testing.assert_array_equal(*(model.score(TEXTS, photographs()) for model in (live, back)))


def test_parameters_that_nothing_gives_would_stay_random_and_are_named(folder, tmp_path):
    few = [setting for setting in FEW if not setting.startswith("tasks=")]
    lora = (*LORA, f"train.start_from={folder / 'base'}", "tasks=tia,itc,mpm")
    with pytest.raises(
        ValueError, match=r"at random values, .*: fashionbert/mpm.*config.groups.fashionbert/mpm.rate=1"
    ):
        train(tiny_config(folder, *few, *lora), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_checkpoint_of_an_older_version_holds_what_is_frozen_itself(folder, tmp_path):
    """A base that no checkpoint notes is read from the checkpoint."""
    run = LoadedRun.load(folder / "base", 4)
    workdir = shutil.copytree(folder / "base", tmp_path / "base")
    config = tiny_config(folder, *FEW, "groups.fashionbert/encoder.frozen=true")
    (workdir / "config.json").write_text(config_to_json(config))
    assert same(flat(LoadedRun.load(workdir, 4).params), flat(run.params))


def test_the_ends_of_an_interpolation_are_the_runs_and_its_middle_their_mean(folder, tmp_path, capsys):
    found = interpolate(folder / "base", folder / "lora", (0.0, 0.25, 1.0), tmp_path / "mixed", silent)
    base = LoadedRun.load(folder / "base", newest_step(folder / "base"))
    tuned, runs = LoadedRun.load(folder / "lora"), {share: LoadedRun.load(path) for share, path in found.items()}
    assert [path.name for path in found.values()] == ["0.0", "0.25", "1.0"]
    assert same(flat(runs[0.0].params), flat(base.params)) and same(flat(runs[1.0].params), flat(tuned.params))
    for name, array in flat(runs[0.25].params).items():
        mean = 0.75 * flat(base.params)[name].astype(np.float64) + 0.25 * flat(tuned.params)[name]
        np.testing.assert_allclose(array, mean, rtol=1e-6, atol=1e-9)
    config = runs[0.25].run.config
    assert config.train.starts == (str(folder / "base"), str(folder / "lora")) and not config.lora.layers
    flags = ["interpolate", str(folder / "base"), str(folder / "lora"), "--out", str(tmp_path / "half")]
    assert main(flags) == 0 and main(["evaluate", "--workdir", str(tmp_path / "half"), "--queries", "4"]) == 0
    assert main(flags) == 1 and "is not empty" in capsys.readouterr().err


def test_runs_without_weights_in_between_are_told_apart(folder, tmp_path, capsys):
    for share in ("1.5", "nan", "half"):
        flags = ["interpolate", str(folder / "base"), str(folder / "lora"), "--out", str(tmp_path / "x")]
        assert main([*flags, "--share", share]) == 1
        assert re.search(r"--share \S+: give .* from 0 to 1", capsys.readouterr().err)
    other = shutil.copytree(folder / "base", tmp_path / "other")
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace('"num_heads": 4', '"num_heads": 2'))
    with pytest.raises(ValueError, match=r"no weights in between:\n  model.num_heads is 2 in .*other, 4 in .*lora"):
        interpolate(other, folder / "lora", (0.5,), tmp_path / "x", silent)
    assert not (tmp_path / "x").exists()
