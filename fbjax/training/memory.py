"""Whether the compiled step fits into a device's memory: known before the first step, with a setting that would fit."""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from fbjax.config.schema import Config
from fbjax.runs.state import TrainState

GIB = 2**30
CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def check_memory(programs: Mapping[int, Any], state: TrainState, config: Config, mesh: Mesh, limit: int | None) -> None:
    """Raises ValueError, with the remedy, where one of the compiled ``{text tokens: program}`` needs more than `limit`.

    `state`: arrays, or shapes with shardings. `limit`: bytes of a device; None, where it is not known, passes.
    """
    needs = {length: peak_bytes(program) for length, program in programs.items()}
    length = max(needs, key=needs.get)
    if limit is None or needs[length] <= limit:
        return
    temporary = programs[length].memory_analysis().temp_size_in_bytes
    raise ValueError(
        f"a step on texts of {length} tokens needs {needs[length] / GIB:.2f} GiB of a device, which has "
        f"{limit / GIB:.2f} GiB: {_remedy(needs[length], temporary, state, config, mesh, limit)}"
    )


def peak_bytes(program: Any) -> int:
    """Bytes of a device at the peak of a compiled program, arguments included, what is updated in place once."""
    plan = program.memory_analysis()
    peak = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    return peak - plan.alias_size_in_bytes


def bytes_of(arrays: Any) -> int:
    """Bytes of a device's shards of arrays, or of shapes with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(arrays))


def available_memory(mesh: Mesh) -> int | None:
    """Bytes that a step may take of each device of this process; None where that is not known.

    CPUs have no memory of their own: they share the host's.
    """
    devices = mesh.local_devices
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    if all(limits):
        return min(limits)
    return host_memory() // len(devices) if devices[0].platform == "cpu" else None


def host_memory() -> int:
    """Bytes that this process holds or could still get, at most those of its container."""
    page = os.sysconf("SC_PAGE_SIZE")
    found = [page * os.sysconf("SC_PHYS_PAGES")]
    if Path("/proc/meminfo").is_file():
        free = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())["MemAvailable"]
        own = int(Path("/proc/self/statm").read_text().split()[1])
        found.append(1024 * int(free.split()[0]) + page * own)
    limits = [path.read_text().strip() for path in map(Path, CONTAINER_LIMITS) if path.is_file()]
    return min(found + [int(limit) for limit in limits if limit.isdigit()])


@contextlib.contextmanager
def out_of_memory_named(config: Config) -> Iterator[None]:
    """Turns a device's out-of-memory into a ValueError that names the settings to change.

    `check_memory` knows the step, not what else takes memory: evaluation, another process on the same device.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        remat = "" if config.model.remat == "layers" else "set model.remat to 'layers', "
        raise ValueError(
            f"the device ran out of memory: raise train.micro_batches ({config.train.micro_batches} now), {remat}or "
            f"lower train.batch_size ({config.train.batch_size} now){_more_of_the_gpu()}; what a step needs: "
            f"fbjax bench --repeats 0 ({str(error).splitlines()[0]})"
        ) from error


def _more_of_the_gpu() -> str:
    """Of a GPU JAX takes three quarters, unless it is told."""
    fraction = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75")
    if jax.default_backend() != "gpu" or float(fraction) >= 0.9:
        return ""
    return f"; JAX takes {float(fraction):.0%} of a GPU's memory, and more with XLA_PYTHON_CLIENT_MEM_FRACTION=0.95"


def _remedy(needed: int, temporary: int, state: TrainState, config: Config, mesh: Mesh, limit: int) -> str:
    """What would fit, by an estimate: activations, what gradients leave of `temporary`, shrink with micro-batches."""
    parts = config.train.micro_batches
    now, then = (bytes_of(state.params) * _num_gradients(config, in_parts) for in_parts in (parts > 1, True))
    activations = max(0, temporary - now)
    fixed = needed - activations + then - now
    rematerialise = "" if config.model.remat == "layers" else "set model.remat to 'layers' or "
    lower = f"lower train.batch_size{_smaller_batch(needed - activations, activations, config, mesh, limit)}"
    num_products = config.train.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"])
    more = 2
    while num_products % (parts * more) == 0:
        if (total := fixed + activations // more) <= limit:
            return (
                f"set train.micro_batches to {parts * more}, which is estimated to need {total / GIB:.2f} GiB, as the "
                f"{activations / GIB:.2f} GiB of activations shrink in proportion and the rest stays; "
                f"or {rematerialise}{lower}{_more_of_the_gpu()}"
            )
        more *= 2
    return (
        f"{(needed - activations) / GIB:.2f} GiB of it are state, gradients and batch, and no train.micro_batches that "
        f"divides the batch is estimated to fit; {rematerialise}{lower}, take a smaller model, or share "
        f"its parameters among more devices (mesh.fsdp){_more_of_the_gpu()}"
    )


def _smaller_batch(fixed: int, activations: int, config: Config, mesh: Mesh, limit: int) -> str:
    """The largest batch that is estimated to fit, as " to N"; nothing where none is."""
    unit = mesh.shape["data"] * mesh.shape["fsdp"] * config.train.micro_batches
    share = (limit - fixed) / max(1, activations)
    fitting = int(config.train.batch_size * share) // unit * unit
    return f" to {fitting}" if fitting > 0 else ""


def _num_gradients(config: Config, in_parts: bool) -> int:
    """Gradients by all parameters that a step holds at once; micro-batches add theirs up in as many again."""
    method = config.adaptive.method
    each = method == "gradient" or (in_parts and method in ("estimate", "loss_softmax"))
    return (len(config.tasks) if each else 1) * (2 if in_parts else 1)
