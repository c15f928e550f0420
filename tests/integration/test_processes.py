"""What a process says of the others that it waits for, before any of them trains, and of one that dies."""

import subprocess
import sys

import pytest

from fbjax.cli.main import main
from fbjax.parallel.distributed import LOST
from tests.support.processes import ended, free_port, start
from tests.support.runs import write_config


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
        (["--coordinator", "here:1", "--num_processes", "2", "--process_id", "2"], {}, "--process-id 2 is not one of"),
        (["--distributed", "--process_id", "1"], {}, "--distributed finds --process-id itself"),
        (["--distributed"], {}, "--distributed finds no cluster to join"),
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


IDLE = """
import sys, time
from fbjax.parallel.distributed import joined

with joined(False, sys.argv[1], 2, int(sys.argv[2])):
    print("joined", flush=True)
    time.sleep(300)
"""


def test_a_process_that_jax_aborts_says_that_another_is_gone():
    command, where = [sys.executable, "-c", IDLE], f"127.0.0.1:{free_port()}"
    started = [
        subprocess.Popen([*command, where, index], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for index in "01"
    ]
    for process in started:
        assert process.stdout.readline()
    started[0].kill()  # the other computes nothing: no collective fails before the coordination service notices
    (_, _), (status, said) = ended(started)
    assert status == LOST
    assert "fbjax: process 1: another process of this run is gone" in said
