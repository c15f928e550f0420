"""Process settings for JAX, TensorFlow and their libraries; set them before the first import of any of these."""

import logging
import os
import warnings
from importlib.util import find_spec
from pathlib import Path


def configure_libraries() -> None:
    """Hides library warnings, caches compiled programs, avoids useless searches for TPUs; keeps the user's values."""
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.ERROR)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    _cache_compilations()
    _use_cpu_without_accelerator()


def _cache_compilations() -> None:
    """Caches compiled programs in ``~/.cache/fbjax/compiled``; JAX names them by program, device and version."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(cache, "fbjax", "compiled")
        os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2 * 2**30))  # bytes; drops the least recently used


def _use_cpu_without_accelerator() -> None:
    """Selects the CPU where libtpu is installed, for `fbjax plan`, on a machine with neither a TPU nor a GPU.

    JAX would search for TPUs at every start and print errors. It identifies TPUs by Google's PCI vendor, 1ae0.
    """
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    if find_spec("libtpu") and not any(vendor.read_text().strip() == "0x1ae0" for vendor in vendors):
        if not any(Path("/dev").glob("nvidia*")) and not Path("/dev/dxg").exists():
            os.environ.setdefault("JAX_PLATFORMS", "cpu")
