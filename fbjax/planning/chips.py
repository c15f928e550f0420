"""TPU chips, how they are linked, and topologies of them that a CPU-only machine can compile for.

Figures per chip: peak bfloat16 FLOP/s, HBM and its bandwidth from Google's pages (docs.cloud.google.com/tpu/docs/v5e,
/v5p, /v6e). A link's bandwidth is theirs too: 400, 1200 and 800 GB/s a chip, both directions of 4, 6 and 4 links; the
same as in "How to Scale Your Model" (jax-ml.github.io/scaling-book/tpus), which also says which axes close to rings.
"""

import dataclasses
import os
import re
from collections.abc import Sequence

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip. An axis of a v5e or v6e slice is a ring where it spans the pod; a v5p's axes are, in whole cubes."""

    peak_flops: float  # FLOP/s, bfloat16
    memory: int  # bytes of HBM
    memory_bandwidth: float  # bytes/s
    link_bandwidth: float  # bytes/s, one link, one direction
    pod: tuple[int, ...]  # the largest slice

    def rings(self, shape: tuple[int, ...]) -> tuple[bool, ...]:
        """Which axes of a slice of `shape` have links from their last chip back to the first."""
        if len(self.pod) == 3:
            return (all(size % CUBE == 0 for size in shape),) * 3
        return tuple(size == whole for size, whole in zip(shape, self.pod, strict=True))


CUBE = 4  # chips along each axis of a v5p's smallest reconfigurable unit
HOP_SECONDS = 1e-6  # "typically around 1us" (scaling book, part 3)
CHIPS = {
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 50e9, (16, 16)),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 100e9, (16, 20, 28)),
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 100e9, (16, 16)),
}
KINDS = {"TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e"}  # a device's own name
LOCAL = "local"
QUIET = {  # what libtpu would otherwise ask the network for, or print; a user's own settings stand
    "TPU_SKIP_MDS_QUERY": "1",  # the metadata server is Google Cloud's: elsewhere it does not answer
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing runs on a chip, so that several processes may compile at once
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    # 64 KiB, its default, overflow on attention with dropout at few positions (libtpu 0.0.42.1, BERT-base)
    "LIBTPU_INIT_ARGS": "--fibers_default_thread_stack_size=262144",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for. Without a `chip` nothing is known of their speed; `shape` is the slice's, in chips."""

    name: str
    devices: Sequence[jax.Device]
    chip: Chip | None
    shape: tuple[int, ...]

    def spanned(self, devices: Sequence[jax.Device]) -> tuple[int, ...]:
        """How many places along each axis of the slice some of its `devices` have."""
        places = zip(*(device.coords[: len(self.shape)] for device in devices), strict=True)
        return tuple(len(set(along)) for along in places)


def find(name: str) -> Topology:
    """The topology called `name`: ``local``, or a TPU slice such as ``v5e:4x4``. Raises ValueError if there is none."""
    if name == LOCAL:
        return _local()
    generation, shape = _parsed(name)
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        if "not installed" in reason:
            raise ModuleNotFoundError(
                f"planning for {name} needs libtpu: pip install 'fbjax[tpu]' (or --topology {LOCAL})"
            ) from None
        raise ValueError(f"there is no TPU topology {name} ({reason}); try {_example(generation)}") from None
    return Topology(name, devices, CHIPS[generation], shape)


def _parsed(name: str) -> tuple[str, tuple[int, ...]]:
    """``v5p:4x4x8`` as its generation and shape, checked against the pod."""
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if not match or match[1] not in CHIPS:
        known = ", ".join(map(_example, CHIPS))
        raise ValueError(f"there is no topology {name!r}: use {LOCAL}, or generation:shape such as {known}")
    shape, pod = tuple(map(int, match[2].split("x"))), CHIPS[match[1]].pod
    if len(shape) != len(pod) or any(not 0 < size <= most for size, most in zip(shape, pod, strict=True)):
        raise ValueError(
            f"there is no topology {name}: a {match[1]} slice has {len(pod)} axes and at most "
            f"{'x'.join(map(str, pod))} chips (try {_example(match[1])})"
        )
    return match[1], shape


def _example(generation: str) -> str:
    return f"{generation}:{'x'.join('4' for _ in CHIPS[generation].pod)}"


def _local() -> Topology:
    devices = jax.devices()
    kind = KINDS.get(devices[0].device_kind)
    if kind is None:
        return Topology(LOCAL, devices, None, (len(devices),))
    extent = np.ptp([device.coords for device in devices], axis=0) + 1
    return Topology(LOCAL, devices, CHIPS[kind], tuple(map(int, extent[: len(CHIPS[kind].pod)])))


def compile_only() -> None:
    """Keeps JAX from looking for accelerators of its own, which takes a while and prints where libtpu finds none."""
    if not jax.config.jax_platforms:
        jax.config.update("jax_platforms", "cpu")
