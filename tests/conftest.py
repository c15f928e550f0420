"""Tests run on the CPU with eight simulated devices; what they compile is kept for the next run."""

import os
import subprocess
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parents[1] / ".pytest_cache" / "compiled")
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2**28)  # bytes
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
EIGHT_DEVICES = " --xla_force_host_platform_device_count=8"
PATIENT = " --xla_cpu_collective_call_terminate_timeout_seconds=600"  # after 40 s on starved cores XLA aborts Python
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + EIGHT_DEVICES + PATIENT

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("fbjax", deadline=None, max_examples=40)
settings.load_profile("fbjax")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
