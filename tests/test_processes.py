"""Real processes on the loopback interface: one run of many, stopped, restarted, and left by one of them."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from fbjax.cli.main import main
from fbjax.monitoring.logger import read_curves
from fbjax.parallel.distributed import LOST, PREEMPTED
from fbjax.runs.run import Run
from fbjax.runs.trained import load_params
from tests.conftest import QUICK_COMPILER
from tests.runs import make_one_device_mesh, write_config

WAIT = 300  # seconds


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(config, workdir, *flags, devices=1, environment=None) -> subprocess.Popen:
    flag = f"{QUICK_COMPILER} --xla_force_host_platform_device_count={devices}"
    command = [
        sys.executable,
        "-m",
        "fbjax.cli.main",
        "train",
        "--config",
        str(config),
        "--workdir",
        str(workdir),
        *flags,
    ]
    environment = os.environ | {"XLA_FLAGS": flag} | (environment or {})
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_all(config, workdir, *flags, count=2) -> list[subprocess.Popen]:
    where = ("--coordinator", f"127.0.0.1:{free_port()}", "--num_processes", str(count))
    return [start(config, workdir, *where, "--process_id", str(i), *flags) for i in range(count)]


def ended(processes) -> list[tuple[int, str]]:
    """(exit status, what was said) of each."""
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.callback(process.kill)
        said = [process.communicate(timeout=WAIT)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def losses(workdir) -> dict[int, float]:
    steps, values = read_curves(workdir)["loss"]
    return dict(zip(steps.tolist(), values.tolist(), strict=True))


def weights(workdir, step=None) -> list[np.ndarray]:
    import jax

    run = Run.open(workdir)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(load_params(run, workdir, make_one_device_mesh(), step)[1])]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The config, and a run of it in two processes."""
    folder = tmp_path_factory.mktemp("processes")
    config = write_config(folder)
    for status, said in ended(start_all(config, folder / "two")):
        assert status == 0, said
    return config, folder


@pytest.mark.slow
def test_two_processes_train_as_one_with_two_devices(runs):
    config, folder = runs
    ((status, said),) = ended([start(config, folder / "one", devices=2)])
    assert status == 0, said
    one, two = losses(folder / "one"), losses(folder / "two")
    assert one.keys() == two.keys() and len(one) > 3
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-5)
    for ours, theirs in zip(weights(folder / "two"), weights(folder / "one"), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_only_the_first_process_speaks_and_writes(runs):
    config, folder = runs
    first, second = ended(start_all(config, folder / "two"))  # trained already
    assert "2 processes, 2 devices" in first[1] and "trained already" in first[1]
    assert second == (0, "")
    assert len(list((folder / "two" / "tensorboard").iterdir())) == 2  # one file a start


@pytest.mark.slow
def test_sigterm_to_one_stops_both_at_one_step_and_the_run_goes_on_bit_identically(runs):
    config, folder = runs
    stopped = folder / "stopped"
    processes = start_all(config, stopped)
    for line in processes[0].stderr:
        if line.startswith("step 2/"):
            break
    processes[1].send_signal(signal.SIGTERM)
    (status, said), (other, _) = ended(processes)
    assert status == other == PREEMPTED, said
    assert "stopped at step" in said
    step = int(said.split("stopped at step ")[1].split()[0])
    assert 2 <= step < 12 and (stopped / "checkpoints" / str(step)).is_dir()
    for status, said in ended(start_all(config, stopped)):
        assert status == 0, said
    assert {k: v for k, v in losses(stopped).items() if k > step + 1}.items() <= losses(folder / "two").items()
    for ours, theirs in zip(weights(stopped, 12), weights(folder / "two", 12), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_goes_on_in_one_with_the_same_data(runs):
    config, folder = runs
    begun = folder / "begun"
    processes = start_all(config, begun)
    for line in processes[0].stderr:
        if line.startswith("step 4/"):
            break
    processes[0].send_signal(signal.SIGTERM)
    assert [status for status, _ in ended(processes)] == [PREEMPTED] * 2
    ((status, said),) = ended([start(config, begun)])
    assert status == 0, said
    together, alone = losses(folder / "two"), losses(begun)
    np.testing.assert_allclose([alone[k] for k in (8, 10, 12)], [together[k] for k in (8, 10, 12)], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("gone", [0, 1], ids=["coordinator", "worker"])
def test_a_process_that_dies_ends_the_other_with_a_clear_message(runs, gone):
    config, folder = runs
    processes = start_all(config, folder / f"dies{gone}", "--config.train.num_steps=100000")
    time.sleep(2)
    for line in processes[0].stderr:
        if line.startswith("step 2/"):
            break
    processes[gone].kill()
    results = ended(processes)
    assert results[gone][0] == -signal.SIGKILL
    status, said = results[1 - gone]
    assert status == LOST
    assert f"fbjax: process {1 - gone}: another process of this run is gone" in said
    assert "run all of them again" in said


@pytest.mark.slow
def test_slurms_environment_is_enough(runs):
    config, folder = runs
    environment = {
        "SLURM_JOB_ID": str(free_port() % 4096),  # JAX makes the port of it
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
    }
    processes = [
        start(
            config,
            folder / "slurm",
            "--distributed",
            "--config.train.num_steps=4",
            environment=environment | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)},
        )
        for i in range(2)
    ]
    for status, said in ended(processes):
        assert status == 0, said
    assert (folder / "slurm" / "checkpoints" / "4").is_dir()


def test_a_process_that_never_comes_is_a_clear_error(tmp_path):
    config = write_config(tmp_path)
    port = free_port()
    flags = ("--coordinator", f"127.0.0.1:{port}", "--num_processes", "2", "--process_id", "1", "--timeout", "3")
    ((status, said),) = ended([start(config, tmp_path / "alone", *flags)])
    assert status == 1
    assert f"not all processes came to 127.0.0.1:{port} within 3 s" in said
    assert "Check failure" not in said


@pytest.mark.parametrize(
    "flags, environment, message",
    [
        (["--coordinator", "here:1"], {}, "--coordinator alone: many processes need all of"),
        (["--coordinator", "here", "--num_processes", "2", "--process_id", "0"], {}, "'here' is not HOST:PORT"),
        (["--coordinator", "here:1", "--num_processes", "2", "--process_id", "2"], {}, "--process_id 2 is not one of"),
        (["--distributed", "--process_id", "1"], {}, "--distributed finds --process_id itself"),
        (["--distributed"], {}, "--distributed finds no cluster to be part of"),
        ([], {"SLURM_NTASKS": "4", "SLURM_PROCID": "1"}, "one of 4 tasks of SLURM"),
    ],
)
def test_flags_that_do_not_add_up_are_errors(tmp_path, monkeypatch, capsys, flags, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")  # this is no machine of Google's
    assert main(["train", "--config", str(write_config(tmp_path)), "--workdir", str(tmp_path / "run"), *flags]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
