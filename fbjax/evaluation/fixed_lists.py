"""Candidate lists in a file, drawn once for a catalogue, so that different runs and people can compare figures.

A record of the choices is in ``LISTS.jsonl.json``. Others are of the query's category, never of its group, and no two
are of one group: photos of one product share a text and would tie. No two queries of a direction are of one group,
since intervals assume independent queries. `candidates.draw_lists` has fewer conditions.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fbjax import __version__
from fbjax.core.paths import atomic_write
from fbjax.evaluation.candidates import DIRECTIONS, CandidateList

SMALL = ("exclude", "fill", "short")


@dataclasses.dataclass(frozen=True)
class Rules:
    """The rules for drawing lists. Raises ValueError with the flag if a value is out of range."""

    others: int  # in each list, without the positive
    queries: int  # in each direction, at most
    seed: int
    small: str  # for categories with too few groups: exclude queries, fill from other categories, or shorten lists

    def __post_init__(self):
        for flag, value, least in (("others", self.others, 1), ("queries", self.queries, 1), ("seed", self.seed, 0)):
            if value < least:
                raise ValueError(f"--{flag} {value}: take at least {least}")
        if self.small not in SMALL:
            raise ValueError(f"--small {self.small!r} is unknown (use {', '.join(SMALL)})")


def make_lists(records, rules: Rules) -> list[CandidateList]:
    """Lists of both directions, the positive at a random place. More queries keep the first ones.

    Raises ValueError if no list, or under "fill" no full list, can be drawn.
    """
    sizes = _groups_of_each_category(records)
    num_groups = len(np.unique(records.groups))
    if rules.small == "fill" and num_groups <= rules.others:
        raise ValueError(
            f"--others {rules.others}: the split has {num_groups} groups, which fill lists of {num_groups - 1} at most"
        )
    needed = {"exclude": rules.others, "fill": 0, "short": 1}[rules.small]
    eligible = np.flatnonzero(sizes[records.categories] > needed)
    if not len(eligible):
        fewer = f"--others {sizes.max() - 1} or fewer, or " if rules.small == "exclude" and sizes.max() > 1 else ""
        raise ValueError(
            f"no category holds more than {needed} groups, the largest {sizes.max()}: no list can be drawn "
            f"({fewer}--small fill)"
        )
    members = {code: np.flatnonzero(records.categories == code) for code in np.unique(records.categories)}
    lists = []
    for number, direction in enumerate(DIRECTIONS):
        rng = np.random.default_rng((rules.seed, number))
        for row in _one_a_group(rng, eligible, records.groups)[: rules.queries]:
            others = _draw_others(rng, row, members[records.categories[row]], records.groups, rules)
            query = str(records.ids[row])
            candidates = tuple(str(i) for i in records.ids[rng.permutation([row, *others])])
            lists.append(CandidateList(direction, query, query, candidates))
    return lists


def _draw_others(rng, row: int, category: np.ndarray, groups: np.ndarray, rules: Rules) -> np.ndarray:
    """Rows of the others for the query `row`; `category` are the rows of its category."""
    others = _one_a_group(rng, category[groups[category] != groups[row]], groups)[: rules.others]
    if len(others) < rules.others and rules.small == "fill":
        rest = np.flatnonzero(~np.isin(groups, [groups[row], *groups[others]]))
        others = np.concatenate([others, _one_a_group(rng, rest, groups)[: rules.others - len(others)]])
    return others


def _one_a_group(rng, rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """One row of each group, in random order."""
    shuffled = rng.permutation(rows)
    return shuffled[np.sort(np.unique(groups[shuffled], return_index=True)[1])]


def _groups_of_each_category(records) -> np.ndarray:
    """[number of categories]: the number of groups of each."""
    pairs = np.unique(np.stack([records.categories, records.groups]), axis=1)
    return np.bincount(pairs[0], minlength=len(records.category_names))


def serialized(lists: list[CandidateList]) -> bytes:
    """The file's content: one JSON object a line."""
    return "".join(json.dumps(dataclasses.asdict(x)) + "\n" for x in lists).encode()


def describe(lists: list[CandidateList], records, rules: Rules) -> dict:
    """The record of `lists`: rules, counts and hashes."""
    sizes = _groups_of_each_category(records)
    small = (sizes > 0) & (sizes <= rules.others)
    in_small = small[records.categories]
    names = sorted(np.flatnonzero(small), key=lambda code: -sizes[code])
    ids_in_small = set(records.ids[in_small].tolist())
    lengths = [len(x.candidates) for x in lists]
    return {
        "sha256": hashlib.sha256(serialized(lists)).hexdigest(),
        "rules": dataclasses.asdict(rules),
        "queries": {direction: sum(x.direction == direction for x in lists) for direction in DIRECTIONS},
        "candidates": {"fewest": min(lengths), "most": max(lengths)},
        "products": len(records),
        "groups": len(np.unique(records.groups)),
        "categories": int((sizes > 0).sum()),
        "small_categories": {str(records.category_names[code]): int(sizes[code]) for code in names},  # and their groups
        "products_in_small_categories": int(in_small.sum()),
        "lists_of_small_categories": sum(x.query in ids_in_small for x in lists),
        "records_sha256": records.digest,
        "fbjax": __version__,
    }


def write_lists(path: str | Path, lists: list[CandidateList], record: dict) -> bool:
    """Writes lists and record atomically; returns False if the same lists exist already.

    Raises ValueError if `path` has other content: figures over these lists and those would be mixed up.
    """
    path, content = Path(path), serialized(lists)
    same = path.is_file() and path.read_bytes() == content
    if path.exists() and not same:
        raise ValueError(f"{path} is there and holds something else: give another --out, or delete it first")
    for target, written in ((path, content), (record_path(path), (json.dumps(record, indent=2) + "\n").encode())):
        with atomic_write(target) as file:
            file.write_bytes(written)
    return not same


def record_path(path: str | Path) -> Path:
    return Path(f"{path}.json")


def print_record(record: dict, say: Callable[[str], None]) -> None:
    """Prints the record."""
    rules, fewest, most = record["rules"], record["candidates"]["fewest"], record["candidates"]["most"]
    queries = ", ".join(f"{count:,} {direction.replace('_', ' ')}" for direction, count in record["queries"].items())
    candidates = f"{most}" if fewest == most else f"{fewest} to {most}"
    say(f"queries: {queries}; candidates: {candidates}; seed {rules['seed']}")
    if min(record["queries"].values()) < rules["queries"]:
        say(f"NOTE: fewer than the {rules['queries']:,} queries asked for: no two are of one group")
    small, num_small = record["small_categories"], record["products_in_small_categories"]
    if small:
        listed = ", ".join(f"{name} ({size})" for name, size in list(small.items())[:8])
        doing = {
            "exclude": "no query comes from them",
            "fill": f"{record['lists_of_small_categories']:,} lists of them are filled up from other categories",
            "short": f"{record['lists_of_small_categories']:,} lists of them are shorter",
        }[rules["small"]]
        say(
            f"categories of {rules['others']} groups or fewer: {len(small)} of {record['categories']}, with "
            f"{num_small:,} of {record['products']:,} products; {doing}: {listed}{', ..' if len(small) > 8 else ''}"
        )
    say(f"sha256: {record['sha256']}")
