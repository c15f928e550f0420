"""Compares two runs by their stored evaluations over the same lists, with a bootstrap paired by query."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fbjax.core.paths import as_path
from fbjax.evaluation import metrics
from fbjax.evaluation.candidates import DIRECTIONS
from fbjax.runs.stored_evaluation import read_evaluation

# If two runs differ in d of Q queries, all in one direction, a resample misses all d with probability e^-d. For d < 4
# this is more than 2.5 %, and the interval contains 0.
FEWEST_DIFFERENCES = math.ceil(-math.log(0.025))


def compare(first: str | Path, second: str | Path) -> dict:
    """``{"a": {"workdir", "checkpoint_step"}, "b": .., direction: {"a", "b": hit rates, "gain@k", "gain@k.ci",
    "detectable@k"}, "num_queries", "candidates_sha256"}``.

    A gain is the hit rate of `second` minus that of `first`, with a paired bootstrap interval over queries.
    "detectable@k" is the smallest difference whose interval would exclude 0. Raises FileNotFoundError if a workdir has
    no evaluation over lists, ValueError if lists or queries differ.
    """
    workdirs, evaluations = (first, second), [_read(workdir) for workdir in (first, second)]
    _check_alike(workdirs, evaluations)
    figures = {}
    for name, workdir, evaluation in zip("ab", workdirs, evaluations, strict=True):
        figures[name] = {"workdir": str(workdir), "checkpoint_step": evaluation["figures"]["checkpoint_step"]}
    for direction in DIRECTIONS:
        rankings = ([r["rank"] for r in x["rankings"] if r["direction"] == direction] for x in evaluations)
        before, ranks = map(np.array, rankings)
        if len(ranks):
            figures[direction] = _compare_ranks(before, ranks)
    about = evaluations[0]["figures"]
    return figures | {name: about[name] for name in ("num_queries", "candidates_sha256")}


def _compare_ranks(before: np.ndarray, ranks: np.ndarray) -> dict:
    rates = {"a": metrics.hit_rates(before), "b": metrics.hit_rates(ranks), "num_queries": len(ranks)}
    figures = rates | metrics.gains(ranks, before)
    for k in metrics.RANKS:
        low, high = figures[f"gain@{k}.ci"]
        figures[f"detectable@{k}"] = max((high - low) / 2, FEWEST_DIFFERENCES / len(ranks))
    return figures


def _read(workdir: str | Path) -> dict:
    if evaluation := read_evaluation(workdir):
        return evaluation
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
        say(f"{name.upper()}: {figures[name]['workdir']}, checkpoint {figures[name]['checkpoint_step']}")
    say(f"{figures['num_queries']:,} queries a direction, lists {figures['candidates_sha256'][:12]}")
    for direction in DIRECTIONS:
        for k in metrics.RANKS if direction in figures else ():
            a, b = (f"{figures[direction][name][f'rank@{k}']:.1%}" for name in "ab")
            metrics.print_row(direction, f"{f'Rank@{k}':8} A {a:>6}  B {b:>6}  {_verdict(figures[direction], k)}", say)


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
