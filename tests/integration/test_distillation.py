"""Runs with a teacher: trained, resumed, refused; and runs that begin with the first layers of a deeper one."""

import dataclasses

import flax.traverse_util
import numpy as np
import pytest

import fbjax
from fbjax.runs.loaded import LoadedRun
from fbjax.training.loop import train
from tests.support.runs import same, tiny_config, without_steps_after
from tests.support.untrained import write_untrained

pytestmark = pytest.mark.slow  # whole trainings

FEW = ("train.num_steps=4", "train.save_every=2", "train.warmup_steps=1", "adaptive.method=fixed")


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A folder with an untrained teacher of three layers, a student's config, and the student's last state."""
    folder = tmp_path_factory.mktemp("taught")
    teacher = tiny_config(folder, "model.num_layers=3", "tasks=tia", "tasks.tia.head=cls")
    train(dataclasses.replace(teacher, train=dataclasses.replace(teacher.train, num_steps=3)), folder / "teacher")
    student = ("model.num_layers=1", "tasks=tia,distillation", f"tasks.distillation.teacher={folder / 'teacher'}")
    config = tiny_config(folder, *FEW, *student)
    return folder, config, train(config, folder / "student")


def test_a_taught_run_resumes_bit_identical_and_needs_no_teacher_later(taught, tmp_path, capfd):
    folder, config, state = taught
    workdir = without_steps_after(folder / "student", 2, tmp_path / "run")
    assert same(train(config, workdir), state)
    said = capfd.readouterr().err
    assert "taught by" in said and "3 layers, this run 1" in said and "resuming at step 2 of 4" in said
    assert LoadedRun.load(workdir).params["fashionbert"].keys() == {
        *("encoder", "image_embeddings", "text_embeddings", "pooler", "tia")
    }
    (folder / "teacher").rename(folder / "away")
    try:
        product = np.zeros((32, 32, 3), np.uint8)
        assert fbjax.load(workdir).score(["red dress"], [product]).shape == (1,)
    finally:
        (folder / "away").rename(folder / "teacher")


@pytest.mark.parametrize(
    "changes, error, said",
    [
        (
            ("tasks.distillation.teacher={folder}/nowhere",),
            FileNotFoundError,
            "nowhere cannot be used: .* is no workdir",
        ),
        (("model.vocabulary=train:60",), ValueError, "cannot be used: .* has another vocabulary than this one"),
        (("patches.patch_size=16",), ValueError, "cannot be used: .* has other image tokens"),
        (("model.width=64",), ValueError, "has width 32, this run 64 .or set tasks.distillation.hidden to 0"),
        (("model.num_heads=2",), ValueError, "has 4 attention heads, this run 2 .or set tasks.distillation.attention"),
        (("model.num_layers=4",), ValueError, "has 3 layers, this run 4"),
        (("model.text_tokens=32",), ValueError, "reads texts of 24 tokens, this run of 32"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_before_the_data_is_read(
    taught, changes, error, said, tmp_path, monkeypatch
):
    folder, config, _ = taught
    monkeypatch.setattr("fbjax.runs.run.open_splits", None)
    settings = (
        *FEW,
        "model.num_layers=1",
        "tasks=tia,distillation",
        f"tasks.distillation.teacher={folder / 'teacher'}",
    )
    config = tiny_config(folder, *settings, *(change.format(folder=folder) for change in changes))
    with pytest.raises(error, match=said):
        train(config, tmp_path / "run")


def test_a_teacher_that_scores_no_pairs_is_refused(taught, tmp_path):
    folder, config, _ = taught
    towers = write_untrained(tiny_config(folder, "tasks=itc"), tmp_path / "towers")
    task = dataclasses.replace(config.tasks["distillation"], teacher=str(towers))
    with pytest.raises(ValueError, match="another vocabulary|scores no pairs: name a run that has tia"):
        train(dataclasses.replace(config, tasks=config.tasks | {"distillation": task}), tmp_path / "run")


def test_a_shorter_run_begins_with_the_first_layers_of_a_deeper_one(taught, tmp_path, capfd):
    folder, _, _ = taught
    start = (f"train.start_from={folder / 'teacher'}", "model.num_layers=2", "tasks=tia", "train.learning_rate=1e-30")
    state = train(tiny_config(folder, *FEW, *start), tmp_path / "short")
    said = capfd.readouterr().err
    assert "its first 2 of 3 layers" in said and "fashionbert/encoder (" not in said
    theirs = flax.traverse_util.flatten_dict(LoadedRun.load(folder / "teacher", 3).params["fashionbert"]["encoder"])
    ours = flax.traverse_util.flatten_dict(state.params["fashionbert"]["encoder"])
    assert ours.keys() == {key for key in theirs if key[0] != "layer_2"}
    for key in ours:
        np.testing.assert_array_equal(ours[key], theirs[key])
