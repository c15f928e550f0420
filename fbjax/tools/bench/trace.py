"""Where a step's time goes: the profiler's events by the part of the model that each instruction comes from.

An instruction of the compiled program carries the names of the scopes and modules that made it (``op_name``). An event
of the profile names its instruction.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import jax

from fbjax.tools.bench.workload import Candidate

PARTS = {  # part -> what the names of its scopes contain; the first that fits counts
    "update": r"\bupdate\b",
    "solve": r"\bsolve\b",
    "masks": r"\bmasks\b",
    "patch network": r"\bpatch_network\b",
    "heads": r"\bheads\b",
    "embeddings": r"_embeddings\b|\bembed_(text|image)\b",
    "attention": r"\battention(_norm)?\b",
    "feed forward": r"\bmlp_(in|out|norm)\b|\bfeed_forward\b",
}
REST = "the rest"  # sums of gradients, copies, what has no name
CONTAINERS = ("while", "conditional", "call")  # their bodies have events of their own
INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.-]+) = .*?\s([a-z][\w-]*)\(")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")


def traced(compiled: jax.stages.Compiled, candidate: Candidate, folder: str, num_launches: int) -> dict[str, float]:
    """Writes a profile of `candidate` to `folder`, for TensorBoard or Perfetto; the share of each part of the time that
    instructions take together, the largest first."""
    candidate.launch()
    candidate.wait()
    with jax.profiler.trace(folder):
        for _ in range(num_launches):
            candidate.launch()
        candidate.wait()
    newest = max(Path(folder).rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    return shares(parts_of(compiled.as_text()), _events(newest))


def parts_of(program: str) -> dict[str, str]:
    """``{instruction: part}`` of a compiled program's text, containers left out."""
    scopes, calls, roots, computation = {}, {}, {}, ""
    for line in program.splitlines():
        if begins := COMPUTATION.match(line):
            computation = begins.group(1)
        elif found := INSTRUCTION.match(line):
            is_root, name, kind = found.groups()
            if kind in CONTAINERS:
                continue
            scope = re.search(r'op_name="([^"]*)"', line)
            scopes[name] = scope.group(1) if scope else ""
            if called := re.search(r"calls=%?([\w.-]+)", line):
                calls[name] = called.group(1)
            if is_root or (scope and not roots.get(computation)):
                roots[computation] = scopes[name] or roots.get(computation, "")
    return {name: _part(scope or roots.get(calls.get(name, ""), "")) for name, scope in scopes.items()}


def shares(parts: dict[str, str], events: Iterator[tuple[str, float]]) -> dict[str, float]:
    """Each part's share of the time of ``(instruction, ns)`` events; those of unknown instructions are left out."""
    spent: dict[str, float] = defaultdict(float)
    for instruction, duration in events:
        if instruction in parts:
            spent[parts[instruction]] += duration
    total = sum(spent.values())
    return {part: spent[part] / total for part in sorted(spent, key=spent.get, reverse=True)} if total else {}


def _part(scope: str) -> str:
    return next((part for part, pattern in PARTS.items() if re.search(pattern, scope)), REST)


def _events(file: Path) -> Iterator[tuple[str, float]]:
    """(instruction, nanoseconds) of each instruction that a device ran."""
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                if instruction := dict(event.stats).get("hlo_op"):
                    yield str(instruction), event.duration_ns
