"""The loop over longer runs: it learns, and ends the same however it is stopped."""

import random
import re
import shutil
import signal
import time

import pytest

from fbjax.config.load import config_from_json
from fbjax.monitoring.goodput import LOST, split
from fbjax.monitoring.telemetry import read_events
from fbjax.runs.loaded import LoadedRun
from fbjax.training.loop import train
from tests.support import store
from tests.support.processes import ended, start
from tests.support.runs import same, tiny_config, write_config


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


def test_a_run_may_lie_in_a_store(tmp_path, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("finished")
    config = tiny_config(folder, "adaptive.every=5")
    state = train(config, folder / "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bucket").mkdir()
    store.install(monkeypatch, tmp_path)
    assert same(train(config, "gs://bucket/run"), state)
    assert [path.name for path in tmp_path.iterdir()] == ["bucket"]  # nothing went to a folder named gs:
    assert same(LoadedRun.load("gs://bucket/run", 12).params, state.params)
    assert [list(event)[0] for event in read_events("gs://bucket/run")[:2]] == ["began", "at"]
    assert read_events("gs://bucket/run")[-1] == {"ended": "done"}


def test_a_run_that_never_saved_can_begin_anew_with_another_config(tmp_path):
    with pytest.raises(FileNotFoundError, match="no table at"):
        train(tiny_config(tmp_path, "data.validation=nowhere.csv"), tmp_path / "run")
    config = tiny_config(tmp_path, "train.num_steps=3")
    assert int(train(config, tmp_path / "run").step) == 3
    assert config_from_json((tmp_path / "run" / "config.json").read_text()) == config


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing_of_it(tmp_path):
    config = tiny_config(tmp_path, "train.learning_rate=1e30", "train.clip_norm=1e30", "train.save_every=6")
    with pytest.raises(FloatingPointError, match=r"not finite between steps \d+ and \d+: .*mlm/loss"):
        train(config, tmp_path / "run")


@pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning")  # both are read as they were saved
def test_killed_at_ten_random_points_the_run_ends_bit_identical(tmp_path):
    config = write_config(tmp_path)
    settings = ["--config.train.num_steps=600", "--config.train.save_every=15", "--config.train.log_every=3"]
    ((status, said),) = ended([start(config, tmp_path / "whole", *settings)])
    assert status == 0, said

    chance, up = random.Random(0), 0.0
    for _ in range(10):
        begun = time.time()
        limit, first = chance.randint(2, 40), None
        with start(config, tmp_path / "killed", *settings) as process:
            for line in process.stderr:
                if found := re.match(r"step (\d+)/", line):
                    first = first or int(found[1])
                    if int(found[1]) >= first + limit:
                        time.sleep(chance.random() * 0.1)
                        process.send_signal(signal.SIGKILL)
                        break
        assert process.returncode == -signal.SIGKILL
        up += time.time() - begun
    ((status, said),) = ended([start(config, tmp_path / "killed", *settings)])
    assert status == 0, said
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


def test_a_full_disk_is_a_clear_error_and_loses_no_checkpoint(tmp_path, small_disk):
    config = write_config(tmp_path)
    settings = ("train.num_steps=40", "train.save_every=4", "train.keep_last=40")
    flags = (f"--config.{setting}" for setting in settings)
    ((status, said),) = ended([start(config, small_disk / "run", *flags)])
    assert status == 1 and "no space left" in said.lower(), said
    shutil.copytree(small_disk / "run", tmp_path / "rescued")
    assert int(train(tiny_config(tmp_path, *settings), tmp_path / "rescued").step) == 40
