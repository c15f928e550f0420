"""Tests run on the CPU with eight simulated devices; what they compile, quickly, is kept for the next run."""

import os
import subprocess
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parents[1] / ".pytest_cache" / "compiled")
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2**28)  # bytes
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"
PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds=300"  # by default 40: too few on a busy machine
QUICK_COMPILER = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), EIGHT_DEVICES, PATIENCE, QUICK_COMPILER])

import pymilvus  # noqa: E402, F401  # later it would reset logging, and absl close what pytest captures
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("fbjax", deadline=None, max_examples=40)
settings.load_profile("fbjax")
SLOW = Path(__file__).parent / "slow"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks every test under slow/, before pytest chooses by ``-m``."""
    for item in items:
        if SLOW in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def trains_on_one_device():
    """With eight simulated devices on two cores, XLA's CPU collectives can wait for one another for ever: seen in the
    contrast's step, which has several that do not depend on each other."""
    from tests.support.runs import make_one_device_mesh

    mesh = make_one_device_mesh()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fbjax.training.loop.make_mesh", lambda config: mesh)
        yield


@pytest.fixture
def small_disk(tmp_path, request):
    """A file system of 2 MiB, or of what a test asks for."""
    size = getattr(request, "param", "size=2m")
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def one_thread(monkeypatch):
    """PyTorch on one thread and uncompiled: on a busy machine its threads wait for each other."""
    torch = pytest.importorskip("torch")
    set_num_threads = torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda n: set_num_threads(1))

    def no_compiler(function):
        raise RuntimeError("no C++ compiler\nat all")

    monkeypatch.setattr(torch, "compile", no_compiler)
