"""The peak FLOP/s of the devices, for utilisation, and a table of accelerators.

TPUs: https://docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e. These pages give the interconnect of a chip; a
link has this divided by the chip's ports, two for each axis of the torus (as in "How to Scale Your Model",
jax-ml.github.io/scaling-book/tpus). "GB" of HBM there are GiB; a program gets about 2 % less from the compiler.
GPUs: NVIDIA's data sheets of the A100, H100 and H200; their figures with sparsity are halved here.
"""

import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

MEASURED_FOR, PRODUCTS = 0.3, 4  # seconds, of runs of so many products
GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One accelerator, one JAX device: on TPU v4 and v5p its two cores count as one."""

    name: str
    device_kinds: tuple[str, ...]  # values of `jax.Device.device_kind`
    bf16_flops: float  # FLOP/s, dense
    hbm_bytes: int
    hbm_bandwidth: float  # bytes/s
    link_bandwidth: float = 0.0  # bytes/s of one link to another chip of the torus, one way
    pod: tuple[int, ...] = ()  # the largest torus; (): none


CHIPS = (
    # 275 TFLOP/s; 32 GiB, 1,200 GB/s; 2,400 Gbit/s over 6 ports
    Chip("v4", ("TPU v4",), 275e12, 32 * GIB, 1200e9, 50e9, (16, 16, 16)),
    # 197 TFLOP/s; 16 GB, 819 GB/s; 400 GB/s both ways over 4 ports
    Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * GIB, 819e9, 50e9, (16, 16)),
    # 459 TFLOP/s; 95 GB, 2,765 GB/s; 4,800 Gbit/s over 6 ports
    Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, 95 * GIB, 2765e9, 100e9, (16, 20, 28)),
    # 918 TFLOP/s; 32 GB, 1,638 GB/s; 800 GB/s both ways over 4 ports
    Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * GIB, 1638e9, 100e9, (16, 16)),
    # 312 TFLOP/s; 40 GB at 1,555 GB/s or 80 GB at 2,039 GB/s
    Chip("A100 40GB", ("NVIDIA A100-SXM4-40GB",), 312e12, 40 * GIB, 1555e9),
    Chip("A100 80GB", ("NVIDIA A100-SXM4-80GB",), 312e12, 80 * GIB, 2039e9),
    # 1,979 TFLOP/s with sparsity; 80 GB, 3.35 TB/s
    Chip("H100", ("NVIDIA H100 80GB HBM3",), 989.5e12, 80 * GIB, 3350e9),
    # 1,979 TFLOP/s with sparsity; 141 GB, 4.8 TB/s
    Chip("H200", ("NVIDIA H200",), 989.5e12, int(141e9), 4800e9),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip with the JAX name `device_kind`; None if it is not in the table."""
    return next((chip for chip in CHIPS if device_kind in chip.device_kinds), None)


def peak_flops(dtype: str, known: Iterable[dict] = ()) -> dict:
    """``{"flops": FLOP/s of all devices together, "of": the source of the figure}``.

    For an accelerator in `CHIPS` this is its bfloat16 figure for any `dtype`, as is common. Otherwise it is the best
    measured product of large matrices of `dtype`. Earlier measurements of this machine in `known` count as well, since
    other work can only reduce the result.
    """
    device = jax.devices()[0]
    if chip := chip_of(device.device_kind):
        return {"flops": chip.bf16_flops * jax.device_count(), "of": f"{jax.device_count()} x {chip.name} in bfloat16"}
    # the CPU devices of a process share its cores: a product on one of them uses all
    count = jax.process_count() if device.platform == "cpu" else jax.device_count()
    of = f"a matrix product in {dtype}, measured on {machine()}"
    measured = [peak["flops"] for peak in known if peak["of"] == of]
    return {"flops": max([_measured(dtype) * count, *measured]), "of": of}


def _measured(dtype: str) -> float:
    """FLOP/s of one device, at best: warm products one after another, so that no time is lost between them."""
    product, best = matmul(dtype), float("inf")
    product().block_until_ready()  # compiles
    until = time.perf_counter() + MEASURED_FOR
    while time.perf_counter() < until:
        begin = time.perf_counter()
        jax.block_until_ready([product() for _ in range(PRODUCTS)])
        best = min(best, (time.perf_counter() - begin) / PRODUCTS)
    return matmul_flops(jax.default_backend()) / best


def machine() -> str:
    """The processor, its cores, and the accelerator if there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    processor = next(named, platform.processor() or platform.machine())
    name = f"{processor}, {cores} cores"
    device = jax.devices()[0]
    return name if device.platform == "cpu" else f"{jax.device_count()} x {device.device_kind}; {name}"


def matmul_size(platform: str) -> int:
    """N of the [N, N] matrices for measuring the peak of a "cpu" or of an accelerator: .1 s, or a millisecond."""
    return 2048 if platform == "cpu" else 8192


def matmul_flops(platform: str) -> float:
    return 2.0 * matmul_size(platform) ** 3


def matmul(dtype: str) -> Callable[[], jax.Array]:
    """A function that launches one product of two square matrices of `dtype` on one device."""
    size = matmul_size(jax.default_backend())
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    product = jax.jit(jnp.matmul)
    return lambda: product(a, a)
