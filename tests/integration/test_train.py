"""The loop: it learns, resumes exactly, and says clearly what is wrong with a config, a workdir or a checkpoint."""

import dataclasses
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading

import jax
import pytest

from fbjax.cli.main import main
from fbjax.config.load import config_from_json, config_to_json
from fbjax.runs.checkpoints import Checkpoints
from fbjax.runs.claim import claimed
from fbjax.runs.loaded import LoadedRun
from fbjax.runs.run import FILES, check_files, create_or_resume
from fbjax.training.loop import train
from tests.support.runs import same, tiny_config, without_steps_after, write_config
from tests.support.tables import make_products, write_parquet


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run: its folder, config and last state. Task weights are held over its checkpoint of step 8."""
    folder = tmp_path_factory.mktemp("finished")
    config = tiny_config(folder, "adaptive.every=5")
    return folder, config, train(config, folder / "run")


def test_a_resumed_run_ends_bit_identical(finished, tmp_path, capfd):
    folder, config, state = finished
    workdir = without_steps_after(folder / "run", 8, tmp_path / "run")
    resumed = train(config, workdir)
    assert "resuming at step 8 of 12" in capfd.readouterr().err
    assert int(resumed.step) == 12 and same(resumed, state)


def test_how_a_run_is_computed_may_change_when_it_is_resumed(finished, tmp_path):
    folder, config, _ = finished
    workdir = shutil.copytree(folder / "run", tmp_path / "run")
    changed = dataclasses.replace(config, model=dataclasses.replace(config.model, remat="dots"))
    assert create_or_resume(changed, workdir, print).model.config.remat == "dots"
    stored = json.loads((workdir / "config.json").read_text())
    del stored["model"]["text_bucket"]
    (workdir / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="model.text_bucket: nothing in the workdir, 16 given"):
        create_or_resume(changed, workdir, print)


def test_a_finished_run_started_again_does_nothing(finished, capfd):
    folder, config, state = finished
    assert same(train(config, folder / "run"), state)
    assert "trained already: step 12" in capfd.readouterr().err


def test_the_last_checkpoints_and_the_best_are_kept(finished):
    folder, config, state = finished
    with Checkpoints(folder / "run") as checkpoints:
        assert checkpoints.steps()[-2:] == [8, 12]
        assert len(checkpoints.steps()) <= config.train.keep_last + 1
        assert checkpoints.best_step() in checkpoints.steps()
        assert same(checkpoints.restore_params(12, state), state.params)


def test_a_writer_clears_away_an_unfinished_checkpoint_and_a_reader_does_not(finished, tmp_path):
    folder, config, state = finished
    shutil.copytree(folder / "run", tmp_path / "run")
    unfinished = tmp_path / "run" / "checkpoints" / "14.orbax-checkpoint-tmp"
    unfinished.mkdir()
    running = set(threading.enumerate())
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert max(checkpoints.steps()) == 12
        for thread in set(threading.enumerate()) - running:  # Orbax clears away on a thread of its own
            thread.join(timeout=10)
    assert unfinished.is_dir()
    with Checkpoints(tmp_path / "run", keep_last=2) as checkpoints:
        checkpoints.save(16, state)  # waits for that thread
    assert not unfinished.exists()


def damage(checkpoint):
    for file in checkpoint.rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)


def test_a_truncated_newest_checkpoint_falls_back_to_the_one_before(finished, tmp_path, capfd):
    folder, config, state = finished
    shutil.copytree(folder / "run", tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    for again in ("unreadable-12", "unreadable-12-2"):
        damage(checkpoints / "12")
        resumed = train(config, tmp_path / "run")
        said = capfd.readouterr().err
        assert "checkpoint 12 cannot be read" in said and "resuming at step 8" in said
        assert "Traceback" not in said
        assert same(resumed, state)
        assert (checkpoints / again).is_dir()


def test_a_run_without_a_readable_checkpoint_does_not_begin_anew_silently(finished, tmp_path):
    folder, config, _ = finished
    workdir = shutil.copytree(folder / "run", tmp_path / "run")
    for checkpoint in (workdir / "checkpoints").glob("[0-9]*"):
        damage(checkpoint)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"no checkpoint in .* can be read \(unreadable-12, .*another --workdir"):
            train(config, workdir)


@pytest.mark.parametrize("flips", [25, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_flipped_bit_is_refused_or_harmless(finished, tmp_path, flips):
    """In any file of a checkpoint or a workdir: what is read is what was written, or it is an error of one line."""
    folder, config, state = finished
    workdir = shutil.copytree(folder / "run", tmp_path / "run")
    chance, refused = random.Random(0), 0
    files = sorted(path for path in (workdir / "checkpoints" / "12").rglob("*") if path.is_file())
    files += [workdir / name for name in FILES if (workdir / name).is_file()]
    shape = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    for _ in range(flips):
        path = chance.choice(files)
        whole = path.read_bytes()
        if not whole:
            continue
        place, bit = chance.randrange(len(whole)), chance.randrange(8)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        try:
            check_files(workdir)
            with Checkpoints(workdir) as checkpoints:
                assert same(checkpoints.restore_params(12, shape), state.params)
        except ValueError as error:
            refused += 1
            assert re.search("is not as it was written|is missing|cannot be read|is damaged", str(error))
            assert "\n" not in str(error)
        for aside in (workdir / "checkpoints").glob("unreadable-*"):
            aside.rename(workdir / "checkpoints" / "12")
        path.write_bytes(whole)
    assert refused > flips / 2


def test_a_damaged_checkpoint_is_not_evaluated_and_the_others_are_named(finished, tmp_path):
    folder, _, _ = finished
    workdir = shutil.copytree(folder / "run", tmp_path / "run")
    (arrays,) = sorted((workdir / "checkpoints" / "12" / "state" / "d").iterdir(), key=lambda p: -p.stat().st_size)[:1]
    arrays.write_bytes(arrays.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match="checkpoint 12 in .* cannot be read .*: name another one: .*8"):
        LoadedRun.load(workdir, 12)


def test_two_trainings_in_one_workdir_are_told_apart(finished, tmp_path):
    folder, config, _ = finished
    workdir = without_steps_after(folder / "run", 8, tmp_path / "run")
    with claimed(workdir):
        with pytest.raises(ValueError, match=rf"another training is at work in .*run: process {os.getpid()} on \S+;"):
            train(config, workdir)
    with claimed(workdir):
        assert (workdir / ".train.holder").is_file()
    assert not (workdir / ".train.holder").exists()


def test_resuming_with_another_config_shows_the_difference(finished):
    folder, config, _ = finished
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, learning_rate=5e-4))
    with pytest.raises(ValueError, match=r"train.learning_rate: 0.001 in the workdir, 0.0005 given"):
        train(other, folder / "run")


def test_a_finished_run_is_trained_on_with_more_steps_and_an_unfinished_one_is_not(finished, tmp_path, capfd):
    folder, config, state = finished
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=14))
    unfinished = without_steps_after(folder / "run", 8, tmp_path / "unfinished")
    with pytest.raises(ValueError, match="train.num_steps: 12 in the workdir, 14 given"):
        train(longer, unfinished)
    workdir = shutil.copytree(folder / "run", tmp_path / "run")
    with pytest.raises(ValueError, match="train.num_steps: 12 in the workdir, 11 given"):
        train(dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=11)), workdir)
    prolonged = train(longer, workdir)
    said = capfd.readouterr().err
    assert "trained on, to step 14" in said and "resuming at step 12 of 14" in said
    assert int(prolonged.step) == 14 and not same(prolonged.params, state.params)
    assert same(train(longer, workdir), prolonged)


def test_a_workdir_that_cannot_be_written_is_an_error_before_any_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["train", "--config", str(write_config(tmp_path)), "--workdir", str(tmp_path / "file" / "run")]) == 1
    assert "cannot write to workdir" in capsys.readouterr().err
    assert not (tmp_path / "prepared").exists()


def test_a_store_that_cannot_hold_a_run_is_an_error_before_any_work(finished, monkeypatch):
    _, config, _ = finished
    with pytest.raises(ValueError, match="workdir s3://bucket/run: TensorBoard writes to folders and gs:// only"):
        train(config, "s3://bucket/run")
    monkeypatch.setattr("fbjax.runs.checkpoints.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"google-cloud-storage: pip install 'fbjax\[gcs\]'"):
        Checkpoints("gs://bucket/run")


def test_another_training_table_is_an_error_when_resuming(finished, tmp_path):
    folder, config, _ = finished
    shutil.copytree(folder / "run", tmp_path / "run")
    write_parquet(tmp_path / "train.parquet", make_products(40, seed=3))
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, train=str(tmp_path / "train.parquet")))
    (tmp_path / "run" / "config.json").write_text(config_to_json(other))
    with pytest.raises(ValueError, match="the training table is not the one"):
        train(other, tmp_path / "run")


def test_a_batch_that_the_devices_cannot_share_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="batch_size 6 is not divisible by the 8 devices"):
        train(tiny_config(tmp_path, "train.batch_size=6"), tmp_path / "run")


@pytest.mark.parametrize(
    "override, message",
    [
        (
            "train.batch_size=64",
            r"48 training products are fewer than a batch of 64 \(.*batch_size=32 fits\)",
        ),
        ("data.validation={one}", "all 4 validation products are of one group: there is nothing to tell apart"),
    ],
)
def test_too_few_products_are_said_before_anything_is_compiled(tmp_path, capfd, override, message):
    one = write_parquet(tmp_path / "one.parquet", [product | {"group": "v"} for product in make_products(4, seed=1)])
    with pytest.raises(ValueError, match=message):
        train(tiny_config(tmp_path, override.format(one=one)), tmp_path / "run")
    assert "patch features" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "override, message",
    [
        ("patches.patch_size=7", "patch_size 7 does not divide image_size 32"),
        ("patches.colour=1", "no setting config.patches.colour"),
        ("train.num_steps=many", "config.train.num_steps expects int"),
        ("adaptive.domain=1.0", "adaptive.domain 1.0 must be in"),
        (
            "adaptive.method=fixed tasks.mlm.weight=0 tasks.mpm.weight=0 tasks.tia.weight=0",
            "adaptive.method 'fixed' needs a task whose weight is above 0",
        ),
        ("tasks.mlm.weight=-1", "tasks.mlm.weight -1.0 must be at least 0"),
        ("model.vocabulary=", "model.vocabulary '' names none"),
        ("model.vocabulary=used", "model.vocabulary 'used' names none"),
        ("model.attention=cudnn", "needs dtype 'bfloat16'"),
        ("adaptive.method=gradients", "adaptive.method 'gradients' is unknown (use 'gradient' or"),
        ("train.micro_batches=3", "micro_batches 3 does not divide batch_size"),
        ("adaptive.every=0", "adaptive.every 0 must be at least 1"),
        ("train.learning_rate=-1", "train.learning_rate -1.0 must be above 0"),
        ("tasks.mlm.rate=0", "tasks.mlm.rate 0.0 must be in (0, 1)"),
        ("model.num_heads=5", "num_heads 5 does not divide model.width 32"),
        ("tasks=tia,itx", "no task 'itx'; did you mean 'itc'?"),
        ("tasks=", "tasks is empty: name one or more of attributes, blank, camouflage, caption, distillation, grey, "),
        (
            "tasks=mlm,mpm",
            "tasks mlm, mpm do not learn which text and image match: add itc or qpc or qta or scan or style or tia",
        ),
        ("tasks=itc tasks.itc.embedding_dim=0", "tasks.itc.embedding_dim 0 must be at least 1"),
        (
            "tasks.tia.head=cls+cosine",
            "tasks.tia.head 'cls+cosine' compares vectors, which no task here makes: add itc",
        ),
        (
            "tasks.tia.head=modalities",
            "tasks.tia.head 'modalities' is unknown (use 'cls' or 'cls+cosine' or 'product')",
        ),
        ("tasks.itc.embedding_dim=8", "this config has no task 'itc' (name all that it has in config.tasks)"),
        ("model.widht=8", "no setting config.model.widht; did you mean 'model.width'?"),
        ("patches.enlarge_to=8", "config.patches.enlarge_to is config.patches.patch_input_size now"),
        ("tasks.names=mlm", "config.tasks.names is gone: name the tasks as keys of config.tasks"),
        ("tasks.mined=0.5", "config.tasks.mined is gone"),
        ("groups.patches.frozen=maybe", "config.groups.patches.frozen expects bool"),
        ("lora.layers=query,kee", "lora.layers 'kee' is unknown (use query, key, value, out, mlp_in, mlp_out)"),
        ("lora.layers=quary train.start_from=x", "did you mean 'query'?"),
        ("lora.layers=query train.start_from=x lora.rank=0", "lora.rank 0 must be at least 1"),
        ("lora.layers=query train.start_from=x lora.rank=33", "lora.rank 33 is above model.width 32"),
        ("lora.layers=query", "lora.layers query adapts weights that are there: name them in train.start_from or"),
        (
            "lora.layers=key train.start_from=x tasks=itc tasks.itc.branches=linear",
            "lora.layers key: no task reads the encoder",
        ),
        ("train.layer_decay=1.5", "train.layer_decay 1.5 must be in (0, 1]"),
        ("adaptive.domain=0", "adaptive.domain 0.0 must be in (0, 1)"),
    ],
)
def test_a_wrong_setting_names_the_value_and_the_remedy(tmp_path, override, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_config(tmp_path, *override.split())


@pytest.mark.parametrize(
    "override, value",
    [
        ("data.columns.text=title,caption", ("title", "caption")),
        ("data.columns.text=title", ("title",)),
        ('data.columns.text=("title", "caption")', ("title", "caption")),
        ("tasks.tia.weight=2", 2.0),
        ("tasks.mlm.on_negatives=false", False),
        ("train.learning_rate=1", 1.0),
    ],
)
def test_a_setting_reads_as_a_person_writes_it(tmp_path, override, value):
    section, *rest = override.partition("=")[0].split(".")
    setting = getattr(tiny_config(tmp_path, override), section)
    for name in rest:
        setting = setting[name] if isinstance(setting, dict) else getattr(setting, name)
    assert setting == value and type(setting) is type(value)


def test_a_vocabulary_s_keyword_is_no_path(tmp_path):
    config = tiny_config(tmp_path, "model.vocabulary=used", "model.pretrained=minilm")
    assert config.model.vocabulary == "used"


def test_a_config_survives_its_json_form(tmp_path):
    config = tiny_config(tmp_path)
    assert config_from_json(config_to_json(config)) == config


SAVE = """
import sys
import numpy as np
from fbjax.runs.checkpoints import Checkpoints
from fbjax.runs.state import TrainState

with Checkpoints(sys.argv[1], keep_last=1) as checkpoints:
    checkpoints.save(1, TrainState(np.int32(1), {"a": np.ones(3)}, ()))
"""


@pytest.mark.parametrize("small_disk", ["nr_inodes=3"], indirect=True)  # itself, the run, checkpoints/: no more
def test_no_room_for_a_folder_is_said_at_once_and_leaves_nobody_waiting(small_disk):
    command = [sys.executable, "-c", SAVE, str(small_disk / "run")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)  # a thread would wait for 600 s
    assert ended.returncode == 1 and "no space left for a checkpoint" in ended.stderr
