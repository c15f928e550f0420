"""Real processes on the loopback interface: one run of many, stopped, restarted, and left by one of them."""

import signal
import subprocess
import time

import numpy as np
import pytest

from fbjax.monitoring.logger import read_curves
from fbjax.parallel.distributed import LOST, PREEMPTED
from fbjax.runs.loaded import LoadedRun
from tests.support.processes import ended, free_port, start
from tests.support.runs import make_one_device_mesh, write_config


def start_all(config, workdir, *flags, count=2) -> list[subprocess.Popen]:
    where = ("--coordinator", f"127.0.0.1:{free_port()}", "--num_processes", str(count))
    return [start(config, workdir, *where, "--process_id", str(i), *flags) for i in range(count)]


def losses(workdir) -> dict[int, float]:
    steps, values = read_curves(workdir)["loss"]
    return dict(zip(steps.tolist(), values.tolist(), strict=True))


def weights(workdir, step=None) -> list[np.ndarray]:
    import jax

    loaded = LoadedRun.load(workdir, step, make_one_device_mesh())
    return [np.asarray(leaf) for leaf in jax.tree.leaves(loaded.params)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The config, and a run of it in two processes."""
    folder = tmp_path_factory.mktemp("processes")
    config = write_config(folder)
    for status, said in ended(start_all(config, folder / "two")):
        assert status == 0, said
    return config, folder


def test_two_processes_train_as_one_with_two_devices(runs):
    config, folder = runs
    ((status, said),) = ended([start(config, folder / "one", devices=2)])
    assert status == 0, said
    one, two = losses(folder / "one"), losses(folder / "two")
    assert one.keys() == two.keys() and len(one) > 3
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-5)
    for ours, theirs in zip(weights(folder / "two"), weights(folder / "one"), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_only_the_first_process_speaks_and_writes(runs):
    config, folder = runs
    first, second = ended(start_all(config, folder / "two"))  # trained already
    assert "2 processes, 2 devices" in first[1] and "trained already" in first[1]
    assert second == (0, "")
    assert len(list((folder / "two" / "tensorboard").iterdir())) == 2  # one file a start


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
