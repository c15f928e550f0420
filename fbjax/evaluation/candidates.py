"""Candidate lists: a query, its positive, and the other candidates. Reads, checks, draws and hashes them."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np

from fbjax.core.paths import numbered_lines
from fbjax.data.batches.negatives import NegativeSampler

DIRECTIONS = ("image_to_text", "text_to_image")
FIELDS = ("direction", "query", "positive", "candidates")


@dataclasses.dataclass(frozen=True)
class CandidateList:
    """One query, all by product id: its image and candidates' texts, or its text and candidates' images."""

    direction: str
    query: str
    positive: str
    candidates: tuple[str, ...]

    @property
    def others(self) -> tuple[str, ...]:
        return tuple(candidate for candidate in self.candidates if candidate != self.positive)


def read_lists(path: str | Path, num_queries: int | None = None) -> tuple[list[CandidateList], str]:
    """The lists of a JSONL file, the first `num_queries` a direction, and the SHA-256 of the whole file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no candidate lists at {path}")
    lists = [_parse(line, where) for where, line in numbered_lines(path)]
    if not lists:
        raise ValueError(f"{path} holds no candidate list")
    if num_queries is not None:
        by_direction = ([x for x in lists if x.direction == direction] for direction in DIRECTIONS)
        lists = [x for some in by_direction for x in some[:num_queries]]
    return lists, hashlib.sha256(path.read_bytes()).hexdigest()


def draw_lists(records, num_others: int, num_queries: int, seed: int) -> tuple[list[CandidateList], str]:
    """Lists drawn from prepared records, and the SHA-256 of their JSONL form.

    Others are distinct, of the query's category, and not of its group. A small category gives shorter lists; a
    category with one group gives none.
    """
    rng = np.random.default_rng(seed)
    by_category = {code: np.flatnonzero(records.categories == code) for code in np.unique(records.categories)}
    lists = []
    for direction in DIRECTIONS:
        drawn = 0
        for row in rng.permutation(len(records)):
            if drawn == num_queries:
                break
            pool = by_category[records.categories[row]]
            pool = pool[records.groups[pool] != records.groups[row]]
            if not len(pool):
                continue
            others = rng.choice(pool, min(num_others, len(pool)), replace=False)
            query = str(records.ids[row])
            lists.append(CandidateList(direction, query, query, (query, *(str(i) for i in records.ids[others]))))
            drawn += 1
    if not lists:
        raise ValueError("no candidate list can be drawn: no category holds two groups")
    return lists, hashlib.sha256("\n".join(json.dumps(dataclasses.asdict(x)) for x in lists).encode()).hexdigest()


def any_category_negatives(lists: list[CandidateList], records, seed: int = 0) -> list[str]:
    """For each list a random product of any category and of another group than the query's."""
    rows = records.rows([x.query for x in lists])
    negatives = NegativeSampler(records.categories, records.groups)
    uniform = np.random.default_rng(seed).random(len(rows))
    return [str(i) for i in records.ids[negatives.draw(rows, uniform, np.ones(len(rows), bool))]]


def _parse(line: str, where: str) -> CandidateList:
    try:
        fields = json.loads(line)
        if not isinstance(fields["candidates"], list):
            raise TypeError("candidates is no list")
        ids = str(fields["query"]), str(fields["positive"]), tuple(map(str, fields["candidates"]))
        parsed = CandidateList(fields["direction"], *ids)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{where} is no candidate list ({error!r}); it needs {', '.join(FIELDS)}") from None
    if parsed.direction not in DIRECTIONS:
        raise ValueError(f"{where}: direction {parsed.direction!r} is none of {', '.join(DIRECTIONS)}")
    if parsed.candidates.count(parsed.positive) != 1 or len(set(parsed.candidates)) != len(parsed.candidates):
        raise ValueError(f"{where}: candidates must be distinct and hold the positive {parsed.positive!r} once")
    if len(parsed.candidates) < 2:
        raise ValueError(f"{where}: a list needs at least one other candidate")
    return parsed
