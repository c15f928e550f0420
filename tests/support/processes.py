"""`fbjax train` in processes of their own, on the loopback interface."""

import contextlib
import os
import socket
import subprocess
import sys

from tests.conftest import QUICK_COMPILER

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
        "fbjax",
        "train",
        "--config",
        str(config),
        "--workdir",
        str(workdir),
        *flags,
    ]
    environment = os.environ | {"XLA_FLAGS": flag} | (environment or {})
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(processes) -> list[tuple[int, str]]:
    """(exit status, what was said) of each."""
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.callback(process.kill)
        said = [process.communicate(timeout=WAIT)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]
