"""The loop over longer runs: it learns, and ends the same however it is stopped."""

import hashlib
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from fbjax.config.load import config_from_json
from fbjax.monitoring.goodput import LOST, split
from fbjax.monitoring.telemetry import read_events
from fbjax.runs.loaded import LoadedRun
from fbjax.training.loop import train
from tests.support import store
from tests.support.processes import ended, start
from tests.support.runs import same, tiny_config, write_config, write_mobilenet


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
    # Python starts before a command's first line, and a kill comes after its last event: together 1 s each time, and
    # several beside other tests
    assert up - 10 * 10 < sum(attempt.wall for attempt in found.attempts[:-1]) < up
    assert found.wall == pytest.approx(sum(found.seconds.values()))
    assert found.seconds[LOST] > 0 and 0 < found.goodput < 1
    states = []
    for name in ("whole", "killed"):
        folder = tmp_path / name / "checkpoints" / "600"
        from orbax.checkpoint import v1 as ocp

        states.append(ocp.load(folder))
    assert same(*states)


def stopped(config, workdir, *signals, flags=()):
    """(status, what was said) of a training that gets `signals` once it steps."""
    with start(
        config, workdir, "--config.train.num_steps=100000", "--config.train.save_every=100000", *flags
    ) as process:
        for line in process.stderr:
            if line.startswith("step 4/"):
                break
        heard = ""
        for number in signals:
            process.send_signal(number)
            time.sleep(0.02)
            if number == signal.SIGINT and not heard:  # a second one before Python handles the first is the same one
                heard = process.stderr.readline()
        ((status, said),) = ended([process])
    return status, heard + said


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75)])
def test_a_signal_saves_the_step_and_says_how_to_go_on(tmp_path, number, status):
    found, said = stopped(write_config(tmp_path), tmp_path / "run", number)
    assert found == status and "which is saved: run again to go on" in said and "Traceback" not in said, said
    (step,) = re.findall(r"stopped at step (\d+) of 100000", said)
    assert (tmp_path / "run" / "checkpoints" / step).is_dir()
    assert read_events(tmp_path / "run")[-1] == {"ended": "Preempted"}


def test_a_second_interrupt_ends_at_once_and_a_hangup_that_nohup_ignores_does_nothing(tmp_path):
    config = write_config(tmp_path)
    slow = ("--config.model.width=512", "--config.model.mlp_dim=2048", "--config.model.num_layers=6")
    found, said = stopped(config, tmp_path / "run", signal.SIGINT, signal.SIGINT, flags=slow)
    assert found == 130 and "Ctrl-C again stops at once" in said and said.endswith("interrupted\n"), said
    assert not list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does for the process that it starts
    try:
        found, said = stopped(config, tmp_path / "other", signal.SIGHUP, signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert found == 75 and "which is saved" in said


def test_a_second_training_is_refused_and_death_releases_the_workdir(tmp_path):
    config, settings = write_config(tmp_path), ["--config.train.num_steps=100000", "--config.train.save_every=20"]
    with start(config, tmp_path / "run", *settings) as first:
        for line in first.stderr:
            if line.startswith("step 40/"):
                break
        draining = threading.Thread(target=first.stderr.read)
        draining.start()
        ((status, said),) = ended([start(config, tmp_path / "run", *settings)])
        assert status == 1 and f"another training is at work in {tmp_path / 'run'}: process {first.pid} on " in said
        first.kill()
        draining.join()
    with start(config, tmp_path / "run", *settings) as third:
        assert any(line.startswith("resuming at step") for line in third.stderr)
        third.kill()


@pytest.mark.parametrize("verb", ["prepare", "features", "export"])
def test_killed_at_random_moments_a_command_is_done_again_or_its_result_is_whole(tmp_path, verb, kills=3):
    """Each kill comes somewhere in the time that the whole command takes; at the end all is as without kills."""
    write_mobilenet(tmp_path / "mobilenet.npz")
    config = write_config(tmp_path)
    settings = ["--config.train.num_steps=4", "--config.train.save_every=4", "--config.train.evaluate_products=8"]
    if verb == "features":
        settings += ["--config.patches.mode=cached", "--config.patches.network=mobilenet_v1"]
        settings += [f"--config.patches.weights={tmp_path / 'mobilenet.npz'}", "--config.patches.patch_input_size=32"]
    if verb == "export":
        ((status, said),) = ended([start(config, tmp_path / "run", *settings)])
        assert status == 0, said

    def command(name):
        prepared = f"--config.data.prepared={tmp_path / name}"
        if verb == "prepare":
            return ["prepare", "--config", str(config), prepared, "--arrays", str(tmp_path / name / "arrays")]
        if verb == "features":
            return ["train", "--config", str(config), "--workdir", str(tmp_path / f"{name}-run"), prepared, *settings]
        return ["export", "--workdir", str(tmp_path / "run"), "--format", "stablehlo", "--out", str(tmp_path / name)]

    def run(name, kill_after=None):
        process = subprocess.Popen([sys.executable, "-m", "fbjax", *command(name)], stderr=subprocess.PIPE, text=True)
        try:
            return process.communicate(timeout=kill_after)[1], process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            return process.communicate()[1], process.returncode

    (tmp_path / "whole").mkdir() if verb != "export" else None
    begun = time.monotonic()
    said, status = run("whole")
    assert status == 0, said
    took, chance = time.monotonic() - begun, random.Random(0)
    (tmp_path / "killed").mkdir() if verb != "export" else None
    for _ in range(kills):
        run("killed", kill_after=took * chance.uniform(0.3, 1))
        if verb == "export" and (tmp_path / "killed").exists():
            shutil.rmtree(tmp_path / "killed")  # it was done before the kill; an export is never overwritten
    said, status = run("killed")
    assert status == 0, said
    assert contents_of(tmp_path / "whole") == contents_of(tmp_path / "killed")
    leftovers = [p.name for p in tmp_path.iterdir() if p.name.endswith(".partial")]
    assert verb == "export" or not leftovers


def contents_of(folder):
    """{file: its hash} of what a folder is for: no times, no logs. The bytes of records' files are not always the same;
    arrays show what they hold."""
    aside = ("report.json", "manifest.json", "SHA256SUMS", "tables.json", "dataset_info.json")
    aside += ("image_files.jsonl", "manifest.json.crc32")
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in aside)
    files = (path for path in files if path.suffix not in (".lock", ".stablehlo") and "array_record" not in path.name)
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in names.items()}


def test_a_full_disk_is_a_clear_error_and_loses_no_checkpoint(tmp_path, small_disk):
    config = write_config(tmp_path)
    settings = ("train.num_steps=40", "train.save_every=4", "train.keep_last=40")
    flags = (f"--config.{setting}" for setting in settings)
    ((status, said),) = ended([start(config, small_disk / "run", *flags)])
    assert status == 1 and "no space left" in said.lower() and "Traceback" not in said, said
    shutil.copytree(small_disk / "run", tmp_path / "rescued")
    assert int(train(tiny_config(tmp_path, *settings), tmp_path / "rescued").step) == 40
