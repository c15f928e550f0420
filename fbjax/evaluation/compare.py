"""Two runs' last evaluations over the same lists: is one ahead? Query by query, so that hard queries do not blur it.

Reads what evaluations have left in two workdirs; scores nothing.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fbjax.core.paths import as_path
from fbjax.evaluation import metrics
from fbjax.evaluation.candidates import DIRECTIONS
from fbjax.runs.stored_evaluation import read_evaluation

# In a resample of Q queries, those d in which two runs differ, all one way, are all missing with a chance of e^-d: for
# less than 4 of them that is more than 2.5 %, and the interval holds 0.
FEWEST_DIFFERENCES = math.ceil(-math.log(0.025))


def compare(first: str | Path, second: str | Path) -> dict:
    """``{"a": {"workdir", "checkpoint_step"}, "b": .., direction: {"a", "b": hit rates, "gain@k", "gain@k.ci",
    "detectable@k"}, "num_queries", "candidates_sha256"}``.

    A gain is the hit rate of `second` less that of `first`, its interval a paired bootstrap over queries;
    "detectable@k" the smallest difference that would have kept 0 out of such an interval. Raises FileNotFoundError
    where a workdir has no evaluation over lists, ValueError where they are of different lists or queries.
    """
    workdirs, evaluations = (first, second), [_read(workdir) for workdir in (first, second)]
    _check_alike(workdirs, evaluations)
    figures = {}
    for name, workdir, evaluation in zip("ab", workdirs, evaluations, strict=True):
        figures[name] = {"workdir": str(workdir), "checkpoint_step": evaluation["figures"]["checkpoint_step"]}
    for direction in DIRECTIONS:
        ranks = [
            np.array([r["rank"] for r in evaluation["rankings"] if r["direction"] == direction])
            for evaluation in evaluations
        ]
        if len(ranks[0]):
            figures[direction] = _compare_ranks(*ranks)
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
    evaluation = read_evaluation(workdir)
    if evaluation is None:
        if not as_path(workdir).is_dir():
            raise FileNotFoundError(f"no workdir {workdir}")
        raise FileNotFoundError(
            f"{workdir} has no evaluation over lists yet: "
            f"run fbjax evaluate --workdir {workdir} --candidates LISTS.jsonl"
        )
    return evaluation


def _check_alike(workdirs: tuple, evaluations: list[dict]) -> None:
    """Raises ValueError where the two were not asked the same, with the command that would."""
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
    """The comparison in words."""
    for name in "ab":
        say(f"{name.upper()}: {figures[name]['workdir']}, checkpoint {figures[name]['checkpoint_step']}")
    say(f"{figures['num_queries']:,} queries a direction, lists {figures['candidates_sha256'][:12]}")
    for direction in DIRECTIONS:
        for k in metrics.RANKS if direction in figures else ():
            rates = figures[direction]
            a, b = (f"{rates[name][f'rank@{k}']:.1%}" for name in "ab")
            verdict = _verdict(rates, k)
            say(f"{direction.replace('_', ' '):14} {f'Rank@{k}':8} A {a:>6}  B {b:>6}  {verdict}")


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
