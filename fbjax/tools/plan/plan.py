"""Compiles the real train step ahead of time, for topologies that this machine need not have, and reads the program.

It reads only the config and allocates nothing: parameters, batch and patch network are shapes. Figures of one chip:

* "parameters" and "optimiser" are counted from the state's shardings. "task gradients" are the float32 gradient that
  updates the parameters and, under `adaptive.method` "gradient", shards of the K gradients of which it is the weighted
  sum. The rest of XLA's temporaries is "activations". The sum is XLA's plan; the split of the two is an estimate, as
  XLA may need less for gradients, and not all at once.
* "flops" are those of matrix products and convolutions, "traffic" the bytes through main memory, "collectives" those of
  the compiled program. All are of one step, one that solves where `adaptive.every` holds weights. "xla" is the count of
  ``cost_analysis()``, with elementwise work, arrays in a TPU's vector memory, and each loop's body once.
* "seconds" are those of the cost model (`fbjax.tools.plan.cost`), null where the chip is unknown.
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fbjax.config.schema import Config
from fbjax.model.patch_features import abstract_patch_network, given_features
from fbjax.monitoring.flops import program_flops
from fbjax.parallel.mesh import check_fit, scatter_shards, shardings_of
from fbjax.runs.state import abstract_state, batch_shapes
from fbjax.tools.bench.workload import Workload, make_workload
from fbjax.tools.plan.cost import Span, step_time
from fbjax.tools.plan.program import Collective, Program
from fbjax.tools.plan.topology import LOCAL, Topology, find, nothing_kept
from fbjax.training.step import make_step, with_seed

XLA_COUNTS = {"flops": "flops", "traffic": "bytes accessed"}


def plan(config: Config, names: list[str], per_chip: int | None, say: Callable[[str], None]) -> dict:
    """Figures for each of the topologies `names`, and how throughput scales between them.

    With `per_chip` products on each chip the batch grows with the topology; else every topology has the config's batch.
    Raises ValueError, before it compiles, where a topology does not exist or its mesh does not fit.
    """
    if LOCAL not in names and not jax.config.jax_platforms:  # the search for accelerators is slow and prints errors
        jax.config.update("jax_platforms", "cpu")
    topologies = [find(name) for name in names]
    network = given_features(config.data) or abstract_patch_network(config.patches)
    workloads = []
    for topology in topologies:
        sized = _sized(config, per_chip * len(topology.devices)) if per_chip else config
        workloads.append(make_workload(sized, network, topology.devices))
        check_fit(sized, workloads[-1].mesh)
    figures = []
    for topology, workload in zip(topologies, workloads, strict=True):
        say(f"{topology.name}: compiling the step of {workload.config.train.batch_size} products ..")
        figures.append(_planned(topology, workload, say))
    return {"topologies": figures, "scaling": scaling(figures)}


def _sized(config: Config, batch_size: int) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=batch_size))


def _planned(topology: Topology, workload: Workload, say: Callable[[str], None]) -> dict:
    """The figures of one topology."""
    num_chips, batch_size = len(topology.devices), workload.config.train.batch_size
    figures = {"topology": topology.name, "device": topology.devices[0].device_kind, "chips": num_chips}
    figures |= {"mesh": dict(workload.mesh.shape), "batch_size": batch_size}
    step = Step(topology, workload)
    try:
        compiled = step.compile()
    except OutOfMemory as error:
        say(f"{topology.name}: {error}")
        memory = step.counted | {"total": error.used, "capacity": error.capacity}
        nearest = _nearest(topology, workload, memory, say)
        return figures | {"memory": memory, "fits": False, "nearest": nearest}
    memory = step.memory(compiled)
    fits = None if memory["capacity"] is None else memory["total"] <= memory["capacity"]
    nearest = batch_size if fits else None
    if fits is False:
        nearest = _nearest(topology, workload, memory, say)
    program = Program(compiled.as_text(), num_chips)
    collectives = program.collectives()
    work = {"flops": step.flops / num_chips, "traffic": program.traffic()}
    xla = {name: (compiled.cost_analysis() or {}).get(key) for name, key in XLA_COUNTS.items()}
    figures |= {"memory": memory, "fits": fits, "nearest": nearest} | work | {"xla": xla}
    seconds = _seconds(topology, workload, work, collectives)
    return figures | {"collectives": _summed(collectives, workload), "seconds": seconds}


class Step:
    """The train step of a config for a topology; `counted` is the memory that is known before it is compiled."""

    def __init__(self, topology: Topology, workload: Workload):
        config = workload.config
        self._topology = topology
        state = abstract_state(workload.objective, workload.optimizer, config, workload.mesh)
        frozen = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), with_seed(workload.frozen, config))
        batch = batch_shapes(config, workload.patches, config.model.text_tokens)
        step = make_step(workload.objective, workload.optimizer, config, workload.mesh, state)
        self._traced = step.trace(state, frozen, batch)
        parameters = _bytes_a_chip(state.params, shardings_of(state.params))
        num_gradients = len(workload.objective.tasks) if config.adaptive.method == "gradient" else 0
        shards = _bytes_a_chip(state.params, scatter_shards(workload.mesh, state.params))
        self.counted = {
            "parameters": parameters,
            "optimiser": _bytes_a_chip(state.opt_state, shardings_of(state.opt_state)),
            "frozen": sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(frozen))
            + _bytes_a_chip(state.base, shardings_of(state.base)),
            "task_gradients": parameters + num_gradients * shards,
        }

    @property
    def flops(self) -> int:
        """Of all chips together."""
        return program_flops(self._traced.jaxpr)

    def compile(self):
        """The compiled step. Raises `OutOfMemory` where the compiler reports that it does not fit."""
        keeping = contextlib.nullcontext() if self._topology.name == LOCAL else nothing_kept()
        try:
            with keeping:
                return self._traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            raise memory_error(error) or error from None

    def memory(self, compiled) -> dict[str, int | None]:
        """Bytes a chip by kind; "capacity" is None where the device does not report it."""
        plan, kinds = compiled.memory_analysis(), dict(self.counted)
        kinds["batch"] = plan.argument_size_in_bytes - kinds["parameters"] - kinds["optimiser"] - kinds["frozen"]
        kinds["task_gradients"] = min(kinds["task_gradients"], plan.temp_size_in_bytes)
        kinds["activations"] = plan.temp_size_in_bytes - kinds["task_gradients"]
        kinds["total"] = sum(kinds.values()) + plan.output_size_in_bytes - plan.alias_size_in_bytes
        return kinds | {"capacity": _capacity(self._topology)}


def _bytes_a_chip(arrays: Any, shardings: Any) -> int:
    sizes = jax.tree.map(lambda x, where: math.prod(where.shard_shape(x.shape)) * x.dtype.itemsize, arrays, shardings)
    return sum(jax.tree.leaves(sizes))


def _capacity(topology: Topology) -> int | None:
    if topology.chip:
        return topology.chip.hbm_bytes
    limits = topology.devices[0].memory_stats() if topology.name == LOCAL else None
    return (limits or {}).get("bytes_limit")


def _nearest(topology: Topology, workload: Workload, memory: dict, say: Callable[[str], None]) -> int | None:
    """The largest batch below the config's that fits, found by compiling some; None if none does."""
    mesh, train = workload.mesh.shape, workload.config.train
    unit = mesh["data"] * mesh["fsdp"] * train.micro_batches

    def used(units: int) -> float:
        sized = make_workload(_sized(workload.config, units * unit), workload.network, topology.devices)
        step = Step(topology, sized)
        try:
            total = step.memory(step.compile())["total"]
        except OutOfMemory as error:
            total = error.used
        say(f"{topology.name}: {units * unit} products need {total / 2**30:.2f} GiB a chip")
        return total

    fixed = memory["parameters"] + memory["optimiser"] + memory["frozen"]
    found = largest_batch(used, memory["capacity"], train.batch_size // unit, memory["total"], fixed)
    return found * unit or None


def _seconds(topology: Topology, workload: Workload, work: dict, collectives: list[Collective]) -> dict | None:
    if topology.chip is None:
        return None
    devices = workload.mesh.devices.ravel()

    def span(collective: Collective) -> Span:
        members = [devices[i] for i in collective.group]
        return Span.within(topology.chip, topology.shape, topology.spanned(members))

    listed = [(c.kind, c.size, span(c), c.times) for c in collectives]
    time = step_time(work["flops"], work["traffic"], listed, topology.chip)
    return dataclasses.asdict(time) | {"step": time.apart, "step_overlapped": time.overlapped}


def _summed(found: list[Collective], workload: Workload) -> list[dict[str, Any]]:
    """The collectives of each kind and mesh axes: their number and bytes in one step."""
    summed: dict[tuple, dict] = {}
    for c in found:
        axes = _axes(c.group, workload.mesh)
        entry = summed.setdefault((c.kind, axes), {"kind": c.kind, "axes": axes, "chips": len(c.group)})
        entry["times"] = entry.get("times", 0) + c.times
        entry["bytes"] = entry.get("bytes", 0) + c.times * c.size
    return sorted(summed.values(), key=lambda entry: -entry["bytes"])


def _axes(group: tuple[int, ...], mesh) -> tuple[str, ...]:
    """The axes of the mesh along which the members of a group differ."""
    places = np.unravel_index(group, mesh.devices.shape)
    return tuple(name for name, at in zip(mesh.axis_names, places, strict=True) if len(set(at.tolist())) > 1)


def scaling(figures: list[dict]) -> list[dict]:
    """Products/s of each topology, and the rate a chip relative to the smallest topology of the same chips."""
    timed = [f for f in figures if f.get("seconds")]
    rows = []
    for f in timed:
        base = min((g for g in timed if g["device"] == f["device"]), key=lambda g: g["chips"])
        row = {key: f[key] for key in ("topology", "device", "chips", "batch_size")}
        for name, key in (("", "step"), ("_overlapped", "step_overlapped")):
            rate, base_rate = (g["batch_size"] / g["chips"] / g["seconds"][key] for g in (f, base))
            row |= {f"products_per_second{name}": rate * f["chips"], f"efficiency{name}": rate / base_rate}
        rows.append(row)
    return rows


UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
VERDICTS = (  # libtpu's messages: on all memory of a program, or on its temporaries where those alone are too much
    r"Used ([\d.]+)([KMG]?) of ([\d.]+)([KMG]?) hbm",
    r"required for HLO temporaries \(([\d.]+)([KMG]?)\) exceeds available HBM \(([\d.]+)([KMG]?)\)",
)


class OutOfMemory(Exception):
    """The compiler's error: the program needs at least `used` bytes, the chip has `capacity`."""

    def __init__(self, used: float, capacity: float):
        super().__init__(f"needs {used / 2**30:.2f} GiB a chip, of which {capacity / 2**30:.2f} are there")
        self.used, self.capacity = int(used), int(capacity)


def memory_error(error: Exception) -> OutOfMemory | None:
    """The `OutOfMemory` that libtpu's message describes, or None for any other error."""
    for verdict in VERDICTS:
        if match := re.search(verdict, str(error)):
            used, used_unit, capacity, unit = match.groups()
            return OutOfMemory(float(used) * UNITS[used_unit], float(capacity) * UNITS[unit])
    return None


def largest_batch(used: Callable[[int], float], capacity: float, too_many: int, needed: float, fixed: float) -> int:
    """The most units n in 1 .. `too_many` - 1 with ``used(n) <= capacity``, or 0; `too_many` units need `needed` bytes.

    It interpolates linearly from `fixed` bytes at 0 units, so that the first guess is nearly always within one of the
    answer. It tries every guess, and the number above the answer.
    """
    low, high = (0, fixed), (too_many, needed)
    while high[0] - low[0] > 1:
        slope = (high[1] - low[1]) / (high[0] - low[0])
        guess = int(low[0] + (capacity - low[1]) / slope) if slope > 0 else (low[0] + high[0]) // 2
        guess = min(max(guess, low[0] + 1), high[0] - 1)
        tried = (guess, used(guess))
        low, high = (tried, high) if tried[1] <= capacity else (low, tried)
    return low[0]
