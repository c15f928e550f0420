"""TPU topologies that a CPU-only machine can compile for, and the links between their chips.

Which axes of a slice close to rings: "How to Scale Your Model", jax-ml.github.io/scaling-book/tpus.
"""

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec

import jax
import numpy as np

from fbjax.monitoring.hardware import CHIPS, Chip, chip_of

TPUS = {chip.name: chip for chip in CHIPS if chip.pod}
CUBE = 4  # chips along each axis of the smallest reconfigurable unit of a v4 or v5p
LOCAL = "local"
QUIET = {  # keeps libtpu from asking the network and from printing; a user's settings have priority
    "TPU_SKIP_MDS_QUERY": "1",  # the metadata server is Google Cloud's: elsewhere it does not answer
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no program runs on a chip, so several processes may compile
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
TRIED = "0.0.42."  # the libtpu that accepts this flag; another might end the process
DEEPER_STACKS = "--fibers_default_thread_stack_size=262144"  # BERT-base's attention with dropout overflows 64 KiB
MEGACORE = {"v4": {"chip_config_name": "megacore"}}  # a chip's two cores as one device, as on the real machine


def rings(chip: Chip, shape: tuple[int, ...]) -> tuple[bool, ...]:
    """Which axes of a slice of `shape` have links from their last chip back to the first.

    An axis of a v5e or v6e slice has them where it spans the pod; every axis of a v4 or v5p does, in whole cubes.
    """
    if len(chip.pod) == 3:
        return (all(size % CUBE == 0 for size in shape),) * 3
    return tuple(size == whole for size, whole in zip(shape, chip.pod, strict=True))


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for. `chip` is None where their speed is unknown; `shape` is the slice's, in chips."""

    name: str
    devices: Sequence[jax.Device]
    chip: Chip | None
    shape: tuple[int, ...]

    def spanned(self, devices: Sequence[jax.Device]) -> tuple[int, ...]:
        """The number of distinct coordinates of `devices` along each axis of the slice."""
        places = zip(*(device.coords[: len(self.shape)] for device in devices), strict=True)
        return tuple(len(set(along)) for along in places)


def find(name: str) -> Topology:
    """The topology `name`: ``local``, or a TPU slice such as ``v5e:4x4``. Raises ValueError if it does not exist."""
    if name == LOCAL:
        return _local()
    generation, shape = _parsed(name)
    for variable, value in QUIET.items():  # libtpu reads them once in a process, when it loads
        os.environ.setdefault(variable, value)
    if find_spec("libtpu") and version("libtpu").startswith(TRIED):
        os.environ.setdefault("LIBTPU_INIT_ARGS", DEEPER_STACKS)
    from jax.experimental import topologies

    settings = {"platform": "tpu", "topology_name": name} | MEGACORE.get(generation, {})
    try:
        devices = topologies.get_topology_desc(**settings).devices
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        if "not installed" in reason:
            remedy = f"pip install 'fbjax[tpu]' (or --topology {LOCAL})"
            raise ModuleNotFoundError(f"planning for {name} needs libtpu: {remedy}") from None
        raise ValueError(f"there is no TPU topology {name} ({reason}); try {_example(generation)}") from None
    return Topology(name, devices, TPUS[generation], shape)


def _parsed(name: str) -> tuple[str, tuple[int, ...]]:
    """``v5p:4x4x8`` as its generation and shape, checked against the pod."""
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if not match or match[1] not in TPUS:
        known = ", ".join(map(_example, TPUS))
        raise ValueError(f"there is no topology {name!r}: use {LOCAL}, or generation:shape such as {known}")
    shape, pod = tuple(map(int, match[2].split("x"))), TPUS[match[1]].pod
    if len(shape) != len(pod) or any(not 0 < size <= most for size, most in zip(shape, pod, strict=True)):
        raise ValueError(
            f"there is no topology {name}: a {match[1]} slice has {len(pod)} axes and at most "
            f"{'x'.join(map(str, pod))} chips (try {_example(match[1])})"
        )
    return match[1], shape


def _example(generation: str) -> str:
    return f"{generation}:{'x'.join('4' for _ in TPUS[generation].pod)}"


def _local() -> Topology:
    devices = jax.devices()
    chip = chip_of(devices[0].device_kind)
    if chip is None or not chip.pod:
        return Topology(LOCAL, devices, None, (len(devices),))
    extent = np.ptp([device.coords for device in devices], axis=0) + 1
    return Topology(LOCAL, devices, chip, tuple(map(int, extent[: len(chip.pod)])))


@contextlib.contextmanager
def nothing_kept() -> Iterator[None]:
    """Turns the compilation cache off: JAX 0.10.2 cannot read back a program for absent chips, 57 MB of BERT-base."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, math.inf)
    try:
        yield
    finally:
        jax.config.update(name, before)
