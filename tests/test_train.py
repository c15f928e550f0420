"""The loop: it learns, resumes exactly, and says clearly what is wrong with a config, a workdir or a checkpoint."""

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from fbjax.cli.main import main
from fbjax.config.load import config_from_json, config_to_json
from fbjax.monitoring.goodput import LOST, split
from fbjax.monitoring.telemetry import read_events
from fbjax.parallel.mesh import make_mesh
from fbjax.runs.checkpoints import Checkpoints
from fbjax.runs.run import Run, create_or_resume
from fbjax.runs.trained import load_params
from fbjax.training.loop import train
from tests import store
from tests.runs import tiny_config, write_config
from tests.tables import make_products, write_parquet


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run: its folder, config and last state. Task weights are held over its checkpoint of step 8."""
    folder = tmp_path_factory.mktemp("finished")
    config = tiny_config(folder, "adaptive.every=5")
    return folder, config, train(config, folder / "run")


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def without_steps_after(folder: Path, step: int, to: Path) -> Path:
    """A copy of a finished workdir as a crash after `step`'s checkpoint would have left it."""
    shutil.copytree(folder, to)
    for checkpoint in (to / "checkpoints").iterdir():
        if checkpoint.name.isdigit() and int(checkpoint.name) > step:
            shutil.rmtree(checkpoint)
    return to


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
    assert create_or_resume(changed, workdir, print).model.shape.remat == "dots"
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


def test_a_truncated_newest_checkpoint_falls_back_to_the_one_before(finished, tmp_path, capfd):
    folder, config, state = finished
    shutil.copytree(folder / "run", tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints" / "12").rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)
    resumed = train(config, tmp_path / "run")
    said = capfd.readouterr().err
    assert "checkpoint 12 cannot be read" in said and "resuming at step 8" in said
    assert same(resumed, state)
    assert (tmp_path / "run" / "checkpoints" / "unreadable-12").is_dir()


def test_resuming_with_another_config_shows_the_difference(finished):
    folder, config, _ = finished
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, learning_rate=5e-4))
    with pytest.raises(ValueError, match=r"train.learning_rate: 0.001 in the workdir, 0.0005 given"):
        train(other, folder / "run")


@pytest.mark.slow
def test_training_lowers_the_masked_losses_and_logs_every_task(tmp_path):
    config = tiny_config(tmp_path, "train.num_steps=80", "train.save_every=80", "train.log_every=10",
                         "train.learning_rate=3e-3", "model.hidden_dropout=0.0", "model.attention_dropout=0.0",
                         )  # fmt: skip
    train(config, tmp_path / "run")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()

    def logged(name):
        return [float(event.tensor_proto.float_val[0]) for event in events.Tensors(name)]

    for task in ("mlm", "mpm", "tia"):
        losses, weights = logged(f"{task}/loss"), logged(f"{task}/weight")
        assert task == "tia" or losses[-1] < 0.8 * losses[0], task  # alignment starts with a plateau
        assert len(weights) == 8 and all(0 < weight < 1 for weight in weights)
        assert min(logged(f"{task}/gradient_norm")) > 0


def test_a_workdir_that_cannot_be_written_is_an_error_before_any_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["train", "--config", str(write_config(tmp_path)), "--workdir", str(tmp_path / "file" / "run")]) == 1
    assert "cannot write to workdir" in capsys.readouterr().err
    assert not (tmp_path / "prepared").exists()


@pytest.mark.slow
def test_a_run_may_lie_in_a_store(finished, tmp_path, monkeypatch):
    _, config, state = finished
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bucket").mkdir()
    store.install(monkeypatch, tmp_path)
    assert same(train(config, "gs://bucket/run"), state)
    assert [path.name for path in tmp_path.iterdir()] == ["bucket"]  # nothing went to a folder named gs:
    step, params = load_params(Run.open("gs://bucket/run"), "gs://bucket/run", make_mesh(config.mesh), 12)
    assert step == 12 and same(params, state.params)
    assert [list(event)[0] for event in read_events("gs://bucket/run")[:2]] == ["began", "at"]
    assert read_events("gs://bucket/run")[-1] == {"ended": "done"}


def test_a_store_that_cannot_hold_a_run_is_an_error_before_any_work(finished, monkeypatch):
    _, config, _ = finished
    with pytest.raises(ValueError, match="workdir s3://bucket/run: TensorBoard writes to folders and gs:// only"):
        train(config, "s3://bucket/run")
    monkeypatch.setattr("fbjax.runs.checkpoints.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"google-cloud-storage: pip install 'fbjax\[gcs\]'"):
        Checkpoints("gs://bucket/run")


@pytest.mark.slow
def test_a_run_that_never_saved_can_begin_anew_with_another_config(tmp_path):
    with pytest.raises(FileNotFoundError, match="no table at"):
        train(tiny_config(tmp_path, "data.validation=nowhere.csv"), tmp_path / "run")
    config = tiny_config(tmp_path, "train.num_steps=3")
    assert int(train(config, tmp_path / "run").step) == 3
    assert config_from_json((tmp_path / "run" / "config.json").read_text()) == config


def test_another_training_table_is_an_error_when_resuming(finished, tmp_path):
    folder, config, _ = finished
    shutil.copytree(folder / "run", tmp_path / "run")
    write_parquet(tmp_path / "train.parquet", make_products(40, seed=3))
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, train=str(tmp_path / "train.parquet")))
    (tmp_path / "run" / "config.json").write_text(config_to_json(other))
    with pytest.raises(ValueError, match="the training table is not the one"):
        train(other, tmp_path / "run")


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing_of_it(tmp_path):
    config = tiny_config(tmp_path, "train.learning_rate=1e30", "train.clip_norm=1e30", "train.save_every=6")
    with pytest.raises(FloatingPointError, match=r"not finite between steps \d+ and \d+: .*mlm/loss"):
        train(config, tmp_path / "run")


def test_a_batch_that_the_devices_cannot_share_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="batch_size 6 is not divisible by the 8 devices"):
        train(tiny_config(tmp_path, "train.batch_size=6"), tmp_path / "run")


@pytest.mark.parametrize(
    "override, message",
    [
        ("patches.patch_size=7", "patch_size 7 does not divide image_size 32"),
        ("patches.colour=1", "no setting config.patches.colour"),
        ("train.num_steps=many", "config.train.num_steps expects int"),
        ("adaptive.domain=1.0", "adaptive.domain 1.0 must be in"),
        (
            "adaptive.method=fixed adaptive.fixed=(0.5,0.6,0.1)",
            "must be 3 weights >= 0 that sum to 1, of mlm, mpm, tia",
        ),
        ("model.vocabulary=", "model.vocabulary '' names none"),
        ("model.vocabulary=used", "model.vocabulary 'used' names none"),
        ("model.attention=cudnn", "needs dtype 'bfloat16'"),
        ("adaptive.method=gradients", "adaptive.method 'gradients' is unknown (use 'gradient' or"),
        ("train.micro_batches=3", "micro_batches 3 does not divide batch_size"),
        ("adaptive.every=0", "adaptive.every 0 must be at least 1"),
        ("train.learning_rate=-1", "train.learning_rate -1.0 must be above 0"),
        ("tasks.mlm_rate=0", "tasks.mlm_rate 0.0 must be in (0, 1)"),
        ("model.num_heads=5", "num_heads 5 does not divide model.width 32"),
        ("tasks.names=tia,itx", "tasks.names ('tia', 'itx') must be one or more of mlm, mpm, tia, itc, each once"),
        ("tasks.names=tia,tia", "tasks.names ('tia', 'tia') must be one or more of"),
        ("tasks.names=()", "tasks.names () must be one or more of"),
        ("tasks.names=mlm,mpm", "has no task that learns which text and image match: add 'tia' or 'itc'"),
        ("tasks.names=tia,itc", "'itc', which needs towers: set model.embedding_dim, not 0"),
        ("tasks.names=itc model.embedding_dim=8 train.micro_batches=2", "micro_batches 2: 'itc' contrasts the whole"),
        ("tasks.names=itc model.embedding_dim=8 adaptive.method=fixed", "must be 1 weights >= 0 that sum to 1, of itc"),
        ("train.same_category=3", "train.same_category 3 does not divide batch_size 8"),
        ("train.same_category=0", "train.same_category 0 must be at least 1"),
        ("tasks.mined=0.5", "tasks.mined 0.5 needs the towers of another run: set train.start_from"),
        ("tasks.mined=1.5", "tasks.mined 1.5 must be in [0, 1]"),
        ("tasks.mined_nearest=0", "tasks.mined_nearest 0 must be at least 1"),
        ("model.embedding_dim=-1", "model.embedding_dim -1 must be at least 0"),
        ("adaptive.domain=0", "adaptive.domain 0.0 must be in (0, 1), Eq. 6's domain as a share of K"),
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
        ("adaptive.fixed=.2,.2,.6", (0.2, 0.2, 0.6)),
        ("tasks.mask_negatives=false", False),
        ("train.learning_rate=1", 1.0),
    ],
)
def test_a_setting_reads_as_a_person_writes_it(tmp_path, override, value):
    section, *rest = override.partition("=")[0].split(".")
    setting = getattr(tiny_config(tmp_path, override), section)
    for name in rest:
        setting = getattr(setting, name)
    assert setting == value and type(setting) is type(value)


def test_a_vocabulary_s_keyword_is_no_path(tmp_path):
    config = tiny_config(tmp_path, "model.vocabulary=used", "model.pretrained=minilm")
    assert config.model.vocabulary == "used"


def test_a_config_survives_its_json_form(tmp_path):
    config = tiny_config(tmp_path)
    assert config_from_json(config_to_json(config)) == config


def start(config: Path, workdir: Path, *more: str) -> subprocess.Popen:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [
        sys.executable,
        "-m",
        "fbjax.cli.main",
        "train",
        "--config",
        str(config),
        "--workdir",
        str(workdir),
        *more,
    ]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, cwd=Path(__file__).parent.parent
    )


@pytest.mark.slow
def test_killed_at_ten_random_points_the_run_ends_bit_identical(tmp_path):
    config = write_config(tmp_path)
    settings = ["--config.train.num_steps=600", "--config.train.save_every=15", "--config.train.log_every=3"]
    whole = start(config, tmp_path / "whole", *settings)
    assert (whole.communicate()[1], whole.returncode)[1] == 0

    chance, up = random.Random(0), 0.0
    for _ in range(10):
        begun = time.time()
        process = start(config, tmp_path / "killed", *settings)
        limit, first = chance.randint(2, 40), None
        for line in process.stderr:
            if found := re.match(r"step (\d+)/", line):
                first = first or int(found[1])
                if int(found[1]) >= first + limit:
                    time.sleep(chance.random() * 0.1)
                    process.send_signal(signal.SIGKILL)
                    break
        assert process.wait() == -signal.SIGKILL
        up += time.time() - begun
    process = start(config, tmp_path / "killed", *settings)
    assert (process.communicate()[1], process.returncode)[1] == 0
    found = split(read_events(tmp_path / "killed"))
    assert [attempt.ended for attempt in found.attempts] == [""] * 10 + ["done"]
    # Python starts before a command's first line, and a kill comes after its last event: together 1 s each time
    assert up - 10 * 3 < sum(attempt.wall for attempt in found.attempts[:-1]) < up
    assert found.wall == pytest.approx(sum(found.seconds.values()))
    assert found.seconds[LOST] > 0 and 0 < found.goodput < 1
    states = []
    for name in ("whole", "killed"):
        folder = tmp_path / name / "checkpoints" / "600"
        from orbax.checkpoint import v1 as ocp

        states.append(ocp.load(folder))
    assert same(*states)


@pytest.mark.slow
def test_a_full_disk_is_a_clear_error_and_loses_no_checkpoint(tmp_path, small_disk):
    config = write_config(tmp_path)
    settings = ("train.num_steps=40", "train.save_every=4", "train.keep_last=40")
    process = start(config, small_disk / "run", *(f"--config.{setting}" for setting in settings))
    said = process.communicate()[1]
    assert process.returncode == 1 and "no space left" in said.lower(), said
    shutil.copytree(small_disk / "run", tmp_path / "rescued")
    assert int(train(tiny_config(tmp_path, *settings), tmp_path / "rescued").step) == 40


SAVE = """
import sys
import numpy as np
from fbjax.runs.checkpoints import Checkpoints

with Checkpoints(sys.argv[1], keep_last=1) as checkpoints:
    checkpoints.save(1, {"a": np.ones(3)})
"""


@pytest.mark.parametrize("small_disk", ["nr_inodes=3"], indirect=True)  # itself, the run, checkpoints/: no more
def test_no_room_for_a_folder_is_said_at_once_and_leaves_nobody_waiting(small_disk):
    command = [sys.executable, "-c", SAVE, str(small_disk / "run")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)  # a thread would wait for 600 s
    assert ended.returncode == 1 and "no space left for a checkpoint" in ended.stderr
