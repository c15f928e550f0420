"""`fbjax plan`: the real train step compiled ahead of time for topologies that need not be there, and what it says.

Nothing is read but the config, nothing is allocated: parameters, batch and patch network are shapes. Of a chip:

* "parameters" and "optimiser" are counted from the state's own shardings. "task gradients" are the gradient that
  updates the parameters, float32 as they are, and under `adaptive.method` "gradient" the K that it is the weighted sum
  of, in shards. What is left of XLA's temporaries is "activations". XLA may need less for gradients, and for some of
  them not at the same moment: the sum is its plan, the line between these two is drawn here.
* "flops" are those of matrix products and convolutions, "traffic" bytes through main memory, "collectives" what the
  compiled program says, all of a step; where `adaptive.every` holds weights, of one that solves. "xla" is the count of
  ``cost_analysis()``, with elementwise work, arrays in a TPU's vector memory, and each loop's body once.
* "seconds" are those of the written model (`fbjax.tools.plan.cost`), null where the chip is not known.
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
from fbjax.data.batches.batch import batch_shapes
from fbjax.model.patch_features import abstract_patch_network
from fbjax.monitoring.flops import program_flops
from fbjax.parallel.mesh import check_fit, scatter_shards, shardings_of
from fbjax.runs.state import abstract_state
from fbjax.tools.bench.workload import Workload, make_workload
from fbjax.tools.plan.cost import Span, StepTime, step_time
from fbjax.tools.plan.program import Collective, Program
from fbjax.tools.plan.topology import LOCAL, Topology, compile_only, find, nothing_kept
from fbjax.training.step import make_step

XLA_COUNTS = {"flops": "flops", "traffic": "bytes accessed"}


def plan(config: Config, names: list[str], per_chip: int | None, say: Callable[[str], None]) -> dict:
    """Figures for each of the topologies `names`, and how throughput a chip holds up between them.

    With `per_chip` products on each chip the batch grows with the topology; else it is the config's on each. Raises
    ValueError, before anything is compiled, where a topology does not exist or its mesh does not fit.
    """
    if LOCAL not in names:
        compile_only()
    topologies = [find(name) for name in names]
    network = abstract_patch_network(config.patches)
    subjects = []
    for topology in topologies:
        sized = _sized(config, per_chip * len(topology.devices)) if per_chip else config
        subjects.append(make_workload(sized, network, topology.devices))
        check_fit(sized, subjects[-1].mesh)
    figures = []
    for topology, subject in zip(topologies, subjects, strict=True):
        say(f"{topology.name}: compiling the step of {subject.config.train.batch_size} products ..")
        figures.append(_planned(topology, subject, say))
    return {"topologies": figures, "scaling": scaling(figures)}


def _sized(config: Config, batch_size: int) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=batch_size))


def _planned(topology: Topology, subject: Workload, say: Callable[[str], None]) -> dict:
    """The figures of one topology."""
    train = subject.config.train
    num_chips = len(topology.devices)
    figures = {
        "topology": topology.name,
        "device": topology.devices[0].device_kind,
        "chips": num_chips,
        "mesh": dict(subject.mesh.shape),
        "batch_size": train.batch_size,
    }
    step = Step(topology, subject)
    try:
        compiled = step.compile()
    except OutOfMemory as error:
        say(f"{topology.name}: {error}")
        memory = step.counted | {"total": error.used, "capacity": error.capacity}
        nearest = _nearest(topology, subject, memory, say)
        return figures | {"memory": memory, "fits": False, "nearest": nearest}
    memory = step.memory(compiled)
    fits = None if memory["capacity"] is None else memory["total"] <= memory["capacity"]
    nearest = train.batch_size if fits else None
    if fits is False:
        nearest = _nearest(topology, subject, memory, say)
    program = Program(compiled.as_text(), num_chips)
    found = program.collectives()
    work = {"flops": step.flops / num_chips, "traffic": program.traffic()}
    time = _time(topology, subject, work, found)
    return figures | {
        "memory": memory,
        "fits": fits,
        "nearest": nearest,
        **work,
        "xla": {name: (compiled.cost_analysis() or {}).get(key) for name, key in XLA_COUNTS.items()},
        "collectives": _summed(found, subject),
        "seconds": None if time is None else _seconds(time),
    }


class Step:
    """The train step of a config, to be compiled for a topology; what of its memory can be counted beforehand."""

    def __init__(self, topology: Topology, subject: Workload):
        config = subject.config
        self._topology = topology
        state = abstract_state(subject.objective, subject.optimizer, config, subject.mesh)
        frozen = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), subject.frozen)
        batch = batch_shapes(config, subject.patches, config.model.text_tokens)
        step = make_step(subject.objective, subject.optimizer, config, subject.mesh, state)
        self._traced = step.trace(state, frozen, batch)
        parameters = _bytes_a_chip(state.params, shardings_of(state.params))
        num_gradients = len(subject.objective.tasks) if config.adaptive.method == "gradient" else 0
        shards = _bytes_a_chip(state.params, scatter_shards(subject.mesh, state.params))
        self.counted = {
            "parameters": parameters,
            "optimiser": _bytes_a_chip(state.opt_state, shardings_of(state.opt_state)),
            "frozen": sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(frozen)),
            "task_gradients": parameters + num_gradients * shards,
        }

    @property
    def flops(self) -> int:
        """Of all chips together."""
        return program_flops(self._traced.jaxpr)

    def compile(self):
        """The compiled step; raises `OutOfMemory` where the compiler finds that it does not fit."""
        keeping = contextlib.nullcontext() if self._topology.name == LOCAL else nothing_kept()
        try:
            with keeping:
                return self._traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            raise memory_error(error) or error from None

    def memory(self, compiled) -> dict[str, int | None]:
        """Bytes a chip by kind; "capacity" null where the device does not say."""
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


def _nearest(topology: Topology, subject: Workload, memory: dict, say: Callable[[str], None]) -> int | None:
    """The largest batch below the config's that fits, found by compiling some; None where the smallest does not."""
    mesh, train = subject.mesh.shape, subject.config.train
    unit = mesh["data"] * mesh["fsdp"] * train.micro_batches

    def used(units: int) -> float:
        sized = make_workload(_sized(subject.config, units * unit), subject.network, topology.devices)
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


def _time(topology: Topology, subject: Workload, work: dict, found: list[Collective]) -> StepTime | None:
    if topology.chip is None:
        return None
    devices = subject.mesh.devices.ravel()

    def span(collective: Collective) -> Span:
        members = [devices[place] for place in collective.group]
        return Span.within(topology.chip, topology.shape, topology.spanned(members))

    listed = [(c.kind, c.size, span(c), c.times) for c in found]
    return step_time(work["flops"], work["traffic"], listed, topology.chip)


def _seconds(time: StepTime) -> dict[str, float]:
    return dataclasses.asdict(time) | {"step": time.apart, "step_overlapped": time.overlapped}


def _summed(found: list[Collective], subject: Workload) -> list[dict[str, Any]]:
    """Collectives of one kind over the same axes of the mesh together: how many a step, and of how many bytes."""
    summed: dict[tuple, dict] = {}
    for c in found:
        axes = _axes(c.group, subject.mesh)
        entry = summed.setdefault((c.kind, axes), {"kind": c.kind, "axes": axes, "chips": len(c.group)})
        entry["times"] = entry.get("times", 0) + c.times
        entry["bytes"] = entry.get("bytes", 0) + c.times * c.size
    return sorted(summed.values(), key=lambda entry: -entry["bytes"])


def _axes(group: tuple[int, ...], mesh) -> tuple[str, ...]:
    """The axes of the mesh along which the members of a group differ."""
    places = np.unravel_index(group, mesh.devices.shape)
    return tuple(name for name, at in zip(mesh.axis_names, places, strict=True) if len(set(at.tolist())) > 1)


def scaling(figures: list[dict]) -> list[dict]:
    """For each topology of a generation of chips: products/s, and their rate a chip over that of its smallest."""
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
VERDICTS = (  # of libtpu: of all that a program holds, or of its temporaries alone where those are too much already
    r"Used ([\d.]+)([KMG]?) of ([\d.]+)([KMG]?) hbm",
    r"required for HLO temporaries \(([\d.]+)([KMG]?)\) exceeds available HBM \(([\d.]+)([KMG]?)\)",
)


class OutOfMemory(Exception):
    """The compiler's verdict: `used` bytes are needed at least, `capacity` are there."""

    def __init__(self, used: float, capacity: float):
        super().__init__(f"needs {used / 2**30:.2f} GiB a chip, of which {capacity / 2**30:.2f} are there")
        self.used, self.capacity = int(used), int(capacity)


def memory_error(error: Exception) -> OutOfMemory | None:
    """What libtpu means by its verdict, or None where something else went wrong."""
    for verdict in VERDICTS:
        if match := re.search(verdict, str(error)):
            used, used_unit, capacity, unit = match.groups()
            return OutOfMemory(float(used) * UNITS[used_unit], float(capacity) * UNITS[unit])
    return None


def largest_batch(used: Callable[[int], float], capacity: float, too_many: int, needed: float, fixed: float) -> int:
    """The most units n in 1 .. `too_many` - 1 with ``used(n) <= capacity``, or 0; `too_many` units need `needed` bytes.

    Memory is taken to grow evenly from `fixed` bytes at none, which makes the first guess nearly always the answer or
    one beside it; every guess is tried, and so is the next larger one.
    """
    low, high = (0, fixed), (too_many, needed)
    while high[0] - low[0] > 1:
        slope = (high[1] - low[1]) / (high[0] - low[0])
        guess = int(low[0] + (capacity - low[1]) / slope) if slope > 0 else (low[0] + high[0]) // 2
        guess = min(max(guess, low[0] + 1), high[0] - 1)
        tried = (guess, used(guess))
        low, high = (tried, high) if tried[1] <= capacity else (low, tried)
    return low[0]
