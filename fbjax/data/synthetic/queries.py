"""A synthetic click log, derived from a catalogue where there is no real one: for tries and tests, not for a shop.

A query names some attributes of its product and perhaps a word of its text, in any order, with synonyms and typing
errors. It depends on its product's row and the seed alone, so that no split tells anything of another.
"""

import csv
import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from fbjax.core.paths import atomic_write
from fbjax.data.text.stop_words import STOP_WORDS

VERSION = 1
FORMATS = (".parquet", ".csv")
MOST_QUERIES = 3  # of one product
ATTRIBUTE_SHARES = (0.25, 0.5, 0.25)  # of queries with one, two and three attributes
WORD_SHARE, SYNONYM_SHARE, TYPO_SHARE, SINGULAR_SHARE = 0.5, 0.4, 0.12, 0.5
WORD = re.compile(r"[^\W\d_][\w'-]*[^\W_]")
SYNONYMS = {
    "men": ("mens", "gents", "for him", "male"),
    "women": ("womens", "ladies", "for her", "female"),
    "boys": ("boy", "kids", "for boys"),
    "girls": ("girl", "kids", "for girls"),
    "tshirts": ("tees", "t shirts", "t-shirt"),
    "trousers": ("pants", "bottoms"),
    "sunglasses": ("shades", "sun glasses"),
    "handbags": ("purse", "hand bag", "bag"),
    "casual shoes": ("sneakers", "everyday shoes"),
    "sports shoes": ("trainers", "running shoes"),
    "flip flops": ("slippers", "thongs"),
    "sweatshirts": ("hoodie", "jumper"),
    "sweaters": ("pullover", "jumper", "knitwear"),
    "backpacks": ("rucksack", "school bag"),
    "watches": ("wrist watch", "timepiece"),
    "innerwear": ("underwear",),
    "dresses": ("frock", "gown"),
    "grey": ("gray", "charcoal"),
    "navy blue": ("navy", "dark blue"),
    "beige": ("cream", "sand"),
    "maroon": ("burgundy", "wine red"),
    "formal": ("office", "business"),
    "party": ("evening", "night out"),
    "sports": ("gym", "training"),
    "summer": ("for summer", "hot weather"),
    "winter": ("warm", "for winter"),
}


@dataclasses.dataclass(frozen=True)
class Described:
    """What a query may be made of."""

    id: str
    category: str
    attributes: tuple[str, ...]  # their values, "" where there is none
    text: str


def write_log(
    out: str | Path,
    splits: Mapping[str, Sequence[Described]],
    seed: int,
    mismatches: float,
    progress: Callable,
) -> dict[str, int]:
    """Writes the log of all splits, columns query, product, count and co_queries; the number of events of each split.

    With `mismatches` there is a column label, and so many rows, as a share of the others, have label 0: the query with
    a product of the same split and category that lacks one of the query's attributes.
    """
    rows, counts = [], {}
    for split, products in splits.items():
        before = len(rows)
        others: dict[str, list[Described]] = {}
        for product in products:
            others.setdefault(product.category, []).append(product)
        for product in progress(products, len(products), f"queries, {split}"):
            rows += _rows_of(product, others[product.category], seed, mismatches)
        counts[split] = len(rows) - before
    names = ["query", "product", "count", "co_queries"] + ["label"] * bool(mismatches)
    with atomic_write(Path(out)) as partial:
        if Path(out).suffix == ".csv":
            with open(partial, "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerows([names, *rows])
        else:
            about = {b"fbjax_synthetic_log": f"version {VERSION}, seed {seed}".encode()}
            table = pa.table([list(column) for column in zip(*rows, strict=True)], names=names)
            pyarrow.parquet.write_table(table.replace_schema_metadata(about), partial)
    return counts


def queries_of(product: Described, rng: np.random.Generator) -> list[tuple[str, tuple[int, ...]]]:
    """Up to `MOST_QUERIES` different queries of a product, each with the places of the attributes that it names."""
    found: dict[str, tuple[int, ...]] = {}
    filled = [place for place, value in enumerate(product.attributes) if value]
    words = _own_words(product)
    for _ in range(1 + rng.integers(MOST_QUERIES)):
        number = min(1 + int(rng.choice(len(ATTRIBUTE_SHARES), p=ATTRIBUTE_SHARES)), len(filled))
        named = sorted(rng.permutation(filled)[:number].tolist()) if filled else []
        parts = [_said(product.attributes[place].lower(), rng) for place in named]
        if words and (not parts or rng.random() < WORD_SHARE):
            parts.append(str(rng.choice(words)))
        parts = [_mistyped(str(part), rng) if rng.random() < TYPO_SHARE else part for part in rng.permutation(parts)]
        if query := " ".join(parts):
            found.setdefault(query, tuple(named))
    return list(found.items())


def _rows_of(product: Described, others: list[Described], seed: int, mismatches: float) -> Iterator[tuple]:
    digest = hashlib.sha256(f"{seed} {VERSION} {product.id}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    found = queries_of(product, rng)
    for query, named in found:
        co_queries = " ".join(other for other, _ in found if other != query)
        row = (query, product.id, int(rng.zipf(2.0)) if rng.random() < 0.5 else 1, co_queries)
        yield (*row, 1) if mismatches else row
        other = others[int(rng.integers(len(others)))]
        lacks = any(other.attributes[place].lower() != product.attributes[place].lower() for place in named)
        if mismatches and lacks and rng.random() < mismatches:
            yield query, other.id, 1, co_queries, 0


def _own_words(product: Described) -> list[str]:
    """Words of the text that are no attribute's, in order, each once."""
    taken = {word for value in product.attributes for word in WORD.findall(value.lower())}
    words = dict.fromkeys(word.lower() for word in WORD.findall(product.text))
    return [word for word in words if word not in taken and word not in STOP_WORDS and len(word) > 3]


def _said(value: str, rng: np.random.Generator) -> str:
    """An attribute's value as somebody may say it."""
    if value in SYNONYMS and rng.random() < SYNONYM_SHARE:
        return str(rng.choice(SYNONYMS[value]))
    singular = value.endswith("s") and not value.endswith("ss") and len(value) > 4
    return value[:-1] if singular and rng.random() < SINGULAR_SHARE else value


def _mistyped(text: str, rng: np.random.Generator) -> str:
    """`text` with two letters swapped, one left out, or one twice; short ones as they are."""
    if len(text) < 5:
        return text
    place = int(rng.integers(1, len(text) - 1))
    swapped = text[:place] + text[place + 1] + text[place] + text[place + 2 :]
    return str(rng.choice([swapped, text[:place] + text[place + 1 :], text[: place + 1] + text[place:]]))
