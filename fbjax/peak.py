"""What the devices here can do at best, which utilisation is a share of, and what they are called."""

import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path

import jax

from fbjax.bench.timing import matmul, matmul_flops
from fbjax.chips import chip_of

MEASURED_FOR = 0.3  # seconds


def peak_flops(dtype: str, known: Iterable[dict] = ()) -> dict:
    """``{"flops": FLOP/s of all devices together, "of": what that is}``.

    Of accelerators that `fbjax.chips` lists their bfloat16 figure, whatever `dtype` is, as is customary. Elsewhere the
    best of some products of large matrices of `dtype`, now or before, where this machine's is among `known`: other work
    beside it can only make it smaller.
    """
    device = jax.devices()[0]
    if chip := chip_of(device.device_kind):
        return {"flops": chip.bf16_flops * jax.device_count(), "of": f"{jax.device_count()} x {chip.name} in bfloat16"}
    # the CPU devices of a process share its cores: one of them is given all
    count = jax.process_count() if device.platform == "cpu" else jax.device_count()
    of = f"a matrix product in {dtype}, measured on {machine()}"
    measured = [peak["flops"] for peak in known if peak["of"] == of]
    return {"flops": max([_measured(dtype) * count, *measured]), "of": of}


def _measured(dtype: str) -> float:
    """FLOP/s of one device."""
    product, best = matmul(dtype), float("inf")
    product()  # compiles
    until = time.perf_counter() + MEASURED_FOR
    while time.perf_counter() < until:
        begin = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - begin)
    return matmul_flops() / best


def machine() -> str:
    """The processor, its cores, and the accelerator where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    processor = next(named, platform.processor() or platform.machine())
    name = f"{processor}, {cores} cores"
    device = jax.devices()[0]
    return name if device.platform == "cpu" else f"{jax.device_count()} x {device.device_kind}; {name}"
