"""The events of a log, joined to the products of prepared splits."""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from fbjax.config.data import GROUPS, DataConfig, LogConfig
from fbjax.core.paths import as_path, atomic_write
from fbjax.data.batches.halves import rows_of_half
from fbjax.data.batches.split import Split
from fbjax.data.log.table import Event, read_events
from fbjax.data.sources.base import Skipped
from fbjax.data.text.wordpiece import Vocabulary

MOST_PAIRS = 32  # of one product with others of its group, so that a large group does not fill every batch
TOKENIZE_AT_ONCE = 4096
UNKNOWN, CROSSING = "product is not in the data", "the two products are in different splits"
NO_PIECES, LEAKED, REPEATED = "query without known pieces", "query of training products too", "the same event again"


@dataclasses.dataclass(frozen=True)
class Events:
    """M events of one split. Rows count its products; `queries` or `others` is None."""

    rows: np.ndarray  # [M] int64
    queries: np.ndarray | None  # [M] str
    others: np.ndarray | None  # [M] int64: rows of second products
    counts: np.ndarray  # [M] float
    labels: np.ndarray  # [M] int: 1 where they match

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, places: np.ndarray) -> "Events":
        """The events at `places`."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Events(**{name: None if values is None else values[places] for name, values in fields.items()})

    @property
    def digest(self) -> str:
        """A hash of all of them."""
        fields = (getattr(self, field.name) for field in dataclasses.fields(self))
        content = [None if values is None else values.tolist() for values in fields]
        return hashlib.sha256(repr(content).encode()).hexdigest()

    def matching(self) -> "Events":
        """Those whose two sides match."""
        return self.at(np.flatnonzero(self.labels))

    def of_half(self, groups: np.ndarray, half: str) -> "Events":
        """Those of products in "first" or "second" half of the ``groups [N]``; all of them for ""."""
        inside = np.isin(self.rows, rows_of_half(groups, half))
        if self.others is not None:
            inside &= np.isin(self.others, rows_of_half(groups, half))
        return self.at(np.flatnonzero(inside))

    def repeated(self) -> "Events":
        """Each as often as an epoch has it: 1 + log2(count) times, rounded down."""
        times = 1 + np.floor(np.log2(np.maximum(self.counts, 1))).astype(int)
        return self.at(np.repeat(np.arange(len(self)), times))


@dataclasses.dataclass(frozen=True)
class Joined:
    """A log, joined."""

    splits: dict[str, Events]
    skipped: list[Skipped]

    @property
    def reasons(self) -> dict[str, int]:
        """The number of skipped events by reason, most frequent first."""
        return dict(collections.Counter(found.reason for found in self.skipped).most_common())


def join_log(log: LogConfig, data: DataConfig, splits: Mapping[str, Split], vocabulary: Vocabulary) -> Joined:
    """The events of the log by split: that of their products.

    Skipped, each with its reason: unknown products, pairs across splits, queries without known pieces, repetitions
    (which add to the count), and validation events whose query led to training products too. Raises ValueError where
    training has no event left, or as `read_events`.
    """
    if log.table == GROUPS:
        joined = Joined({name: pairs_of_groups(split.groups) for name, split in splits.items()}, [])
    else:
        joined = _join(read_events(log, data), splits, vocabulary)
    if "train" in splits and not len(joined.splits["train"]):
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in joined.reasons.items()) or "it has no row"
        raise ValueError(f"log.table {log.table}: no event is of a training product ({reasons})")
    return joined


def write_skipped(joined: Joined, folder: str | Path) -> Path:
    """Writes ``{"where", "product", "reason"}`` of each skipped event to log-skipped.jsonl in `folder`."""
    path = as_path(folder) / "log-skipped.jsonl"
    rows = ({"where": event.where, "product": event.id, "reason": event.reason} for event in joined.skipped)
    with atomic_write(path) as file:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def described(joined: Joined) -> list[str]:
    """What is in a log, a line each."""
    lines = []
    for name, events in joined.splits.items():
        kind = "pairs of products" if events.others is not None else "queries"
        distinct = "" if events.queries is None else f" ({len(np.unique(events.queries)):,} different)"
        number = len(np.unique(events.rows))
        lines.append(f"log, {name}: {len(events):,} {kind}{distinct}, of {number:,} products")
    if joined.skipped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in joined.reasons.items())
        first = next(iter(joined.skipped))
        lines.append(f"log, skipped: {reasons} (first {first.where}: {first.reason})")
    return lines


def pairs_of_groups(groups: np.ndarray, most: int = MOST_PAIRS) -> Events:
    """Both orders of every two products of a group, ``groups [N]``; of each product with at most `most` others.

    Of a larger group a product goes with those that follow it, around the group's end.
    """
    order = np.argsort(groups, kind="stable")
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    start, size = np.repeat(starts, sizes), np.repeat(sizes, sizes)  # of the group of each place
    num_others = np.minimum(size - 1, most)
    first = np.repeat(np.arange(len(order)), num_others)
    ahead = np.arange(len(first)) - np.repeat(np.cumsum(num_others) - num_others, num_others) + 1
    second = start[first] + (first - start[first] + ahead) % size[first]
    ones = np.ones(len(first))
    return Events(order[first], None, order[second], ones, ones.astype(int))


def framed_queries(texts: Iterable[str], vocabulary: Vocabulary, num_tokens: int) -> np.ndarray:
    """Framed piece ids of queries, int32 [M, Q]; equal texts are read once."""
    distinct, places = np.unique(np.asarray(list(texts), str), return_inverse=True)
    framed = [vocabulary.frame(pieces, num_tokens) for pieces, _ in _in_parts(distinct.tolist(), vocabulary)]
    return np.stack(framed)[places].astype(np.int32) if framed else np.empty((0, num_tokens), np.int32)


def query_key(text: str) -> str:
    """What makes two queries the same: their words, whatever the case."""
    return " ".join(text.casefold().split())


def _in_parts(texts: list[str], vocabulary: Vocabulary) -> Iterator[tuple[list[int], list[int]]]:
    for start in range(0, len(texts), TOKENIZE_AT_ONCE):
        yield from vocabulary.pieces(texts[start : start + TOKENIZE_AT_ONCE])


def _join(events: Iterable[Event | Skipped], splits: Mapping[str, Split], vocabulary: Vocabulary) -> Joined:
    places = {str(identity): (name, row) for name, split in splits.items() for row, identity in enumerate(split.ids)}
    found: dict[str, dict[tuple, list]] = {name: {} for name in splits}  # key -> [event, its rows, count]
    skipped: list[Skipped] = []
    for event in events:
        if isinstance(event, Skipped):
            skipped.append(event)
            continue
        ends = [places.get(identity) for identity in (event.product, event.other)[: 1 + bool(event.other)]]
        if None in ends or len({name for name, _ in ends}) > 1:
            skipped.append(Skipped(event.where, event.product, UNKNOWN if None in ends else CROSSING))
            continue
        name, row = ends[0]
        other = ends[-1][1] if event.other else -1
        key = (row, other, query_key(event.query), event.label)
        if key in found[name]:
            found[name][key][2] += event.count
            skipped.append(Skipped(event.where, event.product, REPEATED))
        else:
            found[name][key] = [event, (row, other), event.count]
    return _without_leaks({name: _known(mine, vocabulary, skipped) for name, mine in found.items()}, skipped)


def _known(found: dict[tuple, list], vocabulary: Vocabulary, skipped: list[Skipped]) -> list[list]:
    """The events whose query has pieces that the vocabulary knows; the others join `skipped`."""
    events = list(found.values())
    if not events or events[0][0].other:
        return events
    texts = list(dict.fromkeys(event.query for event, *_ in events))
    pieces = zip(texts, _in_parts(texts, vocabulary), strict=True)
    known = {text for text, (ids, _) in pieces if any(i != vocabulary.unk_id for i in ids)}
    skipped += [Skipped(event.where, event.product, NO_PIECES) for event, *_ in events if event.query not in known]
    return [each for each in events if each[0].query in known]


def _without_leaks(found: dict[str, list[list]], skipped: list[Skipped]) -> Joined:
    """Events of validation without those whose query is a training query too."""
    seen = {query_key(event.query) for event, *_ in found.get("train", ()) if not event.other}
    leaks = [each for each in found.get("validation", ()) if query_key(each[0].query) in seen]
    if leaks and "train" in found:
        skipped += [Skipped(event.where, event.product, LEAKED) for event, *_ in leaks]
        left = {id(each) for each in leaks}
        found["validation"] = [each for each in found["validation"] if id(each) not in left]
    return Joined({name: _as_events(events) for name, events in found.items()}, skipped)


def _as_events(found: list[list]) -> Events:
    rows = np.array([ends for _, ends, _ in found], np.int64).reshape(-1, 2)
    has_pairs = bool(found) and found[0][0].other != ""
    counts, labels = np.array([count for *_, count in found], float), np.array([e.label for e, *_ in found], int)
    queries = None if has_pairs else np.array([event.query for event, *_ in found], str)
    return Events(rows[:, 0], queries, rows[:, 1] if has_pairs else None, counts, labels)
