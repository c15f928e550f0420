"""Reads a compiled program from its HLO text: its collectives, their number and groups, and the memory traffic.

XLA's ``cost_analysis()`` counts the body of a loop once and lists no collectives.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
NO_TRAFFIC = {  # names and control flow; an asynchronous instruction is counted at its start
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("while", "conditional", "call", "async-update", "opt-barrier"),
}
SLICES = ("dynamic-slice", "slice", "gather")  # read as many bytes as they return
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^{}]*\})?")
_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO: ``name = shape opcode(operands), attributes``."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def integer(self) -> int | None:
        """The value of an integer constant."""
        is_integer = self.opcode == "constant" and self.shape.startswith(("s32[]", "u32[]"))
        return int(self.operands[0]) if is_integer else None

    def called(self) -> list[str]:
        """The computations that it calls: a loop's body, a conditional's branches, a fusion's instructions."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        names = re.findall(r"[\w.\-]+", listed[1]) if listed else []
        return names + _CALLED.findall(self.attributes)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction. `size`: bytes of the whole array that its group shares or adds up."""

    kind: str
    size: int
    group: tuple[int, ...]  # the first group's devices, by index in the mesh
    times: int  # in one step


class Program:
    """The computations of an HLO module, by name; `entry` is the first to run."""

    def __init__(self, text: str, num_devices: int):
        self._num_devices = num_devices
        self._computations: dict[str, dict[str, Instruction]] = {}
        current = self.entry = ""
        for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
            if line.endswith("{") and not line.startswith((" ", "HloModule")):
                current = re.match(r"(?:ENTRY )?%?([\w.\-]+)", line)[1]
                self._computations[current] = {}
                self.entry = current if line.startswith("ENTRY") else self.entry
            elif current and " = " in line:
                instruction = _parsed(line)
                self._computations[current][instruction.name] = instruction

    def collectives(self) -> list[Collective]:
        """Every collective of a run, with a loop's iterations; of a conditional, those of the heavier branch."""
        return [
            Collective(kind, self._size(kind, instruction, within), self._group(instruction), times)
            for outer, name, times in self._executed(self.entry)
            for instruction, within in self._fused(outer, name)
            if (kind := _kind(instruction, within)) in COLLECTIVES
        ]

    def traffic(self, computation: str = "") -> int:
        """Bytes read from and written to a device's main memory by a computation (default: the entry).

        Counts operands and results of executed instructions; a fusion is one. Where it reads or updates slices of an
        array, only the slices count. Arrays in a TPU's vector memory do not count.
        """
        executed = self._executed(computation or self.entry)
        return sum(times * self._moved(instruction, within) for instruction, within, times in executed)

    def _executed(self, name: str) -> Iterator[tuple[Instruction, str, int]]:
        """(instruction, its computation, how often it runs); a fusion is one instruction."""
        for instruction in self._computations[name].values():
            yield instruction, name, 1
            called, turns = instruction.called(), 1
            if instruction.opcode == "conditional":
                called = [max(called, key=self.traffic)]
            elif instruction.opcode == "while":
                turns = self._turns(instruction)
            elif instruction.opcode != "call":
                continue
            for inner, within, times in self._executed(called[0]):
                yield inner, within, turns * times

    def _fused(self, instruction: Instruction, within: str) -> Iterator[tuple[Instruction, str]]:
        """An instruction, and those inside a fusion or asynchronous start."""
        yield instruction, within
        if instruction.opcode in ("fusion", "async-start"):
            for name in instruction.called():
                for inner in self._computations[name].values():
                    yield from self._fused(inner, name)

    def _turns(self, loop: Instruction) -> int:
        """A loop's iterations: XLA's count, else from its counter's bound and increment, else 1."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
            return int(known[1])
        condition = self._computations[re.search(r"condition=%?([\w.\-]+)", loop.attributes)[1]].values()
        bounds = [i.integer for i in condition if i.integer is not None]
        read = [i for i in condition if i.opcode == "get-tuple-element"]
        if len(bounds) != 1 or len(read) != 1:
            return 1
        body = self._computations[loop.called()[0]]
        result = list(body.values())[-1]  # the root, a tuple
        after = body.get(result.operands[int(re.search(r"index=(\d+)", read[0].attributes)[1])])
        gains = [body[name].integer for name in after.operands if name in body] if after else []
        return math.ceil(bounds[0] / next(filter(None, gains), 1))

    def _moved(self, instruction: Instruction, within: str) -> int:
        opcode = instruction.opcode
        if opcode in NO_TRAFFIC or opcode.endswith("-done"):
            return 0
        given = [self._computations[within].get(name) for name in instruction.operands]
        results = shape_bytes(instruction.shape, main_memory=True)
        if opcode == "copy-start":  # (to, from, ..)
            return results[0] + sum(_bytes_of(given))
        if opcode.endswith("-start"):  # (operand, result, ..), of which the result is no smaller
            return max(results, default=0) + sum(_bytes_of(given))
        if opcode in SLICES:
            return 2 * sum(results)
        if opcode == "dynamic-update-slice":
            return 2 * sum(_bytes_of(given[1:2]))
        if opcode == "fusion":
            return self._moved_by_fusion(self._computations[instruction.called()[0]], given, results)
        return sum(results) + sum(_bytes_of(given))

    def _moved_by_fusion(self, body: dict[str, Instruction], given: list, results: list[int]) -> int:
        """Bytes of a fusion: of arrays of which it reads or updates slices, only the slices."""
        root = list(body.values())[-1]
        made = [body[name] for name in root.operands] if root.opcode == "tuple" else [root]
        written = sum(results)
        for result, i in zip(results, made, strict=False):
            if i.opcode == "dynamic-update-slice":
                written -= max(0, result - sum(_bytes_of([body.get(i.operands[1])])))
        read = (self._read(body, _parameter(body, place), sum(_bytes_of([i]))) for place, i in enumerate(given) if i)
        return written + sum(read)

    def _read(self, body: dict[str, Instruction], name: str, whole: int) -> int:
        """Bytes that a fused computation reads of a value of `whole` bytes: its slices, or everything."""
        read = 0
        for user in body.values() if whole else ():
            for place, operand in enumerate(user.operands):
                if operand != name or (user.opcode == "dynamic-update-slice" and place == 0):
                    continue
                if user.opcode in SLICES and place == 0:
                    read += sum(shape_bytes(user.shape))
                elif user.opcode == "bitcast":
                    read += self._read(body, user.name, whole)
                elif user.opcode == "fusion":
                    inner = self._computations[user.called()[0]]
                    read += self._read(inner, _parameter(inner, place), whole)
                else:
                    return whole
        return min(read, whole)

    def _size(self, kind: str, instruction: Instruction, within: str) -> int:
        given = [self._computations[within].get(name) for name in instruction.operands]
        size = sum(sum(shape_bytes(i.shape)) for i in given if i)
        return size * len(self._group(instruction)) if kind == "all-gather" else size

    def _group(self, instruction: Instruction) -> tuple[int, ...]:
        if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", instruction.attributes):
            listed = [(int(a), int(b)) for a, b in re.findall(r"(\d+),(\d+)", pairs[1])]
            return next((pair for pair in listed if pair[0] != pair[1]), listed[0])
        return first_group(instruction.attributes, self._num_devices)


def _kind(instruction: Instruction, within: str) -> str:
    """A TPU's reduce-scatter is a fusion ``all-reduce-scatter`` of an all-reduce and each chip's slice."""
    kind = instruction.opcode.removesuffix("-start")
    return "reduce-scatter" if kind == "all-reduce" and within.startswith("all-reduce-scatter") else kind


def _parameter(body: dict[str, Instruction], place: int) -> str:
    """The name of a computation's parameter."""
    return next(i.name for i in body.values() if i.opcode == "parameter" and i.operands == (str(place),))


def _bytes_of(instructions) -> list[int]:
    return [sum(shape_bytes(i.shape, main_memory=True)) for i in instructions if i]


def _parsed(line: str) -> Instruction:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    shape, rest = _balanced(rest) if rest.startswith("(") else rest.split(" ", 1)
    opcode, _, _ = rest.strip().partition("(")
    inside, attributes = _balanced(rest.strip()[len(opcode) :])
    operands = re.findall(r"%([\w.\-]+)", inside) or [part.strip() for part in inside[1:-1].split(",")]
    return Instruction(name.lstrip("%"), shape, opcode, tuple(operands), attributes)


def _balanced(text: str) -> tuple[str, str]:
    """``(a(b))c`` as ``(a(b))`` and ``c``."""
    depth = 0
    for at, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return text[: at + 1], text[at + 1 :]
    raise ValueError(f"no closing bracket in {text[:80]!r}")


def shape_bytes(shape: str, main_memory: bool = False) -> list[int]:
    """Bytes of each array in an HLO shape; with `main_memory`, 0 for an array elsewhere, which has ``S(n)``."""
    found = []
    for dtype, sizes, layout in _SHAPE.findall(shape):
        bits = 8 if dtype == "pred" else int((re.search(r"\d+", dtype) or [0])[0])
        elsewhere = main_memory and re.search(r"S\([1-9]", layout)
        found.append(0 if elsewhere else math.prod(int(n) for n in sizes.split(",") if n) * bits // 8)
    return found


def first_group(attributes: str, num_devices: int) -> tuple[int, ...]:
    """The first of the ``replica_groups``, in any form that XLA writes; all devices where there are none.

    Raises ValueError for an unknown form.
    """
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return tuple(map(int, listed[1].split(",")))
    if tiled := re.search(rf"replica_groups=\[([\d,]+)\]<={_IOTA}", attributes):
        places = _iota(*tiled.groups()[1:]).reshape([int(size) for size in tiled[1].split(",")])
        return tuple(places[0].tolist())
    named = re.search(rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_IOTA}\))?\s*\{{([^}}]*)\}}", attributes)
    if named:
        sizes, shape, order, axes = named.groups()
        group = _group_of_axes(re.findall(r"'(\w+)'=(\d+)", sizes), axes)
        return tuple(_iota(shape, order)[list(group)].tolist()) if shape else group
    if "replica_groups=" in attributes and "replica_groups={}" not in attributes:
        raise ValueError(f"replica groups of a form that is not known: {attributes[:200]}")
    return tuple(range(num_devices))


def _iota(shape: str, order: str | None) -> np.ndarray:
    """``[4,2]T(1,0)``: 0 .. 7 in that shape, with its axes in that order, flattened."""
    sizes, axes = (tuple(map(int, part.split(","))) if part else () for part in (shape, order))
    return np.arange(math.prod(sizes)).reshape(sizes).transpose(axes or range(len(sizes))).ravel()


def _group_of_axes(mesh: list[tuple[str, str]], axes: str) -> tuple[int, ...]:
    """``{'a', 'b':(2)4}`` of a mesh of named sizes; ``'b':(2)4`` is the part of size 4 after one of size 2."""
    sizes = {name: [int(size)] for name, size in mesh}
    taken = {}
    for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes):
        if size:
            whole = sizes[name][0]
            sizes[name] = [int(before), int(size), whole // (int(before) * int(size))]
        taken[name] = 1 if size else 0
    places = np.arange(math.prod(map(math.prod, sizes.values()))).reshape(sum(sizes.values(), []))
    index = []
    for name, parts in sizes.items():
        index += [slice(None) if taken.get(name) == at else 0 for at in range(len(parts))]
    return tuple(places[tuple(index)].ravel().tolist())
