"""Compares two runs by their stored evaluations over the same lists, gallery or log, by a bootstrap paired by query."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fbjax.core.paths import as_path
from fbjax.evaluation import metrics
from fbjax.evaluation.candidates import DIRECTIONS
from fbjax.runs.stored_evaluation import read_evaluation, read_gallery, read_log

# If two runs differ in d of Q queries, all in one direction, a resample misses all d with probability e^-d. For d < 4
# this is more than 2.5 %, and the interval contains 0.
FEWEST_DIFFERENCES = math.ceil(-math.log(0.025))


KINDS = {"apart": "group left out", "strict": "strict"}  # of ranks in a gallery


def compare(first: str | Path, second: str | Path) -> dict:
    """``{"a": {"workdir", "checkpoint_step"}, "b": .., direction: {"a", "b": hit rates, "gain@k", "gain@k.ci",
    "detectable@k"}, "num_queries", "candidates_sha256", "full": {"gallery", "num_queries", direction: {"apart",
    "strict": the same}}, "log": {"gallery", "num_queries", "units": {"A's units against B's": the same}}}``; over
    lists, the whole gallery and a log, whichever both runs were evaluated over.

    A gain is the hit rate of `second` minus that of `first`, with a paired bootstrap interval over queries.
    "detectable@k" is the smallest difference whose interval would exclude 0. Raises FileNotFoundError if the workdirs
    have no evaluation of a kind, ValueError if lists, galleries or queries differ.
    """
    workdirs = first, second
    readers = (read_evaluation, read_gallery, read_log)
    lists, galleries, logs = ([read(workdir) for workdir in workdirs] for read in readers)
    if not (all(lists) or all(galleries) or all(logs)):
        _raise_missing(workdirs, lists)
    steps = [
        (x["figures"] if x else y or z).get("checkpoint_step") for x, y, z in zip(lists, galleries, logs, strict=True)
    ]
    named = zip("ab", workdirs, steps, strict=True)
    figures = {name: {"workdir": str(workdir), "checkpoint_step": step} for name, workdir, step in named}
    if all(lists):
        figures |= _compare_lists(workdirs, lists)
    if all(galleries):
        figures["full"] = _compare_galleries(workdirs, galleries)
    if all(logs):
        figures["log"] = _compare_logs(workdirs, logs)
    return figures


def _compare_lists(workdirs: tuple, evaluations: list[dict]) -> dict:
    _check_alike(workdirs, evaluations)
    figures = {}
    for direction in DIRECTIONS:
        rankings = ([r["rank"] for r in x["rankings"] if r["direction"] == direction] for x in evaluations)
        before, ranks = map(np.array, rankings)
        if len(ranks):
            figures[direction] = _compare_ranks(before, ranks)
    about = evaluations[0]["figures"]
    return figures | {name: about[name] for name in ("num_queries", "candidates_sha256")}


def _compare_galleries(workdirs: tuple, evaluations: list[dict]) -> dict:
    abouts = [{name: x["figures"][name] for name in ("gallery", "num_queries")} for x in evaluations]
    if abouts[0] != abouts[1] or evaluations[0]["ids_sha256"] != evaluations[1]["ids_sha256"]:
        asked = ("{num_queries:,} queries over {gallery:,} products".format(**about) for about in abouts)
        raise ValueError(
            f"{workdirs[0]} and {workdirs[1]} were evaluated over different galleries or queries ({', '.join(asked)}): "
            f"run fbjax evaluate --protocol full with the same --data and --queries for both"
        )
    figures = abouts[0]
    for direction in DIRECTIONS:
        before, ranks = (x["ranks"][direction] for x in evaluations)
        figures[direction] = {kind: _compare_ranks(np.array(before[kind]), np.array(ranks[kind])) for kind in KINDS}
    return figures


def _compare_logs(workdirs: tuple, evaluations: list[dict]) -> dict:
    """Of each unit that asks in both: every unit of A's gallery against the first of B's."""
    a, b = (x["figures"] for x in evaluations)
    if a["sha256"] != b["sha256"] or a["gallery"] != b["gallery"]:
        raise ValueError(
            f"{workdirs[0]} and {workdirs[1]} were asked different queries of a log: run fbjax evaluate --protocol log "
            "with the same --log and --queries for both"
        )
    before, after = (x["ranks"] for x in evaluations)
    units = {}
    for mine in (unit for unit in before if unit in after):
        theirs, ranks = next(iter(after[mine].items()))
        for unit, old in before[mine].items():
            named = f"{mine} > {unit} against {mine} > {theirs}"
            units[named] = _compare_ranks(np.array(old), np.array(ranks))
    return {"gallery": a["gallery"], "num_queries": a["num_queries"], "units": units}


def _compare_ranks(before: np.ndarray, ranks: np.ndarray) -> dict:
    rates = {"a": metrics.hit_rates(before), "b": metrics.hit_rates(ranks), "num_queries": len(ranks)}
    figures = rates | metrics.gains(ranks, before)
    for k in metrics.RANKS:
        low, high = figures[f"gain@{k}.ci"]
        figures[f"detectable@{k}"] = max((high - low) / 2, FEWEST_DIFFERENCES / len(ranks))
    return figures


def _raise_missing(workdirs: tuple, lists: list[dict | None]) -> None:
    """Raises FileNotFoundError for the first workdir without an evaluation over lists."""
    workdir = next(workdir for workdir, evaluation in zip(workdirs, lists, strict=True) if not evaluation)
    if not as_path(workdir).is_dir():
        raise FileNotFoundError(f"no workdir {workdir}")
    command = f"fbjax evaluate --workdir {workdir} --candidates LISTS.jsonl"
    raise FileNotFoundError(f"{workdir} has no evaluation over lists yet: run {command}")


def _check_alike(workdirs: tuple, evaluations: list[dict]) -> None:
    """Raises ValueError if lists or queries differ, with the command that makes them the same."""
    a, b = (evaluation["figures"] for evaluation in evaluations)
    given = evaluations[0]["candidates"]
    again = f"fbjax evaluate --workdir {workdirs[1]}" + (f" --candidates {given}" if given else "")
    if a["num_queries"] != b["num_queries"]:
        raise ValueError(
            f"{workdirs[0]} was asked {a['num_queries']:,} queries a direction, {workdirs[1]} {b['num_queries']:,}: "
            f"evaluate both with the same --queries, such as {again} --queries {a['num_queries']}"
        )
    if a["candidates_sha256"] != b["candidates_sha256"]:
        raise ValueError(
            f"{workdirs[0]} and {workdirs[1]} were evaluated over different lists ({a['candidates_sha256'][:12]}, "
            f"{b['candidates_sha256'][:12]}): run {again}"
        )
    queries = [[(r["direction"], r["query"], r["positive"]) for r in x["rankings"]] for x in evaluations]
    if queries[0] != queries[1]:
        raise ValueError(f"{workdirs[0]} and {workdirs[1]} were asked different queries of the same lists: run {again}")


def print_figures(figures: dict, say: Callable[[str], None]) -> None:
    """Prints the comparison."""
    for name in "ab":
        step = figures[name]["checkpoint_step"]
        say(f"{name.upper()}: {figures[name]['workdir']}" + ("" if step is None else f", checkpoint {step}"))
    if "candidates_sha256" in figures:
        say(f"{figures['num_queries']:,} queries a direction, lists {figures['candidates_sha256'][:12]}")
    for direction in DIRECTIONS:
        if direction in figures:
            _print_rates(direction, figures[direction], say)
    if gallery := figures.get("full"):
        say(f"{gallery['num_queries']:,} queries a direction, gallery of {gallery['gallery']:,} products")
        for direction in DIRECTIONS:
            for kind, name in KINDS.items():
                _print_rates(direction, gallery[direction][kind], say, f"{name}: ")
    if log := figures.get("log"):
        say(f"{log['num_queries']:,} queries of a log, {log['gallery']:,} products")
        for named, rates in log["units"].items():
            _print_rates("log", rates, say, f"{named}: ")


def _print_rates(direction: str, rates: dict, say: Callable[[str], None], name: str = "") -> None:
    for k in metrics.RANKS:
        a, b = (f"{rates[side][f'rank@{k}']:.1%}" for side in "ab")
        metrics.print_row(direction, f"{name}{f'Rank@{k}':8} A {a:>6}  B {b:>6}  {_verdict(rates, k)}", say)


def _verdict(rates: dict, k: int) -> str:
    gain, (low, high) = 100 * rates[f"gain@{k}"], (100 * bound for bound in rates[f"gain@{k}.ci"])
    if low > 0:
        return f"B is ahead of A by {gain:.1f} points [{low:.1f}, {high:.1f}]"
    if high < 0:
        return f"A is ahead of B by {-gain:.1f} points [{-high:.1f}, {-low:.1f}]"
    return (
        f"cannot be told apart on these {rates['num_queries']:,} queries ({gain:+.1f} [{low:+.1f}, {high:+.1f}]); "
        f"the smallest difference they could have shown is about {100 * rates[f'detectable@{k}']:.1f} points"
    )
