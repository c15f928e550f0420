"""The drawn catalogue: text and picture say the same, and both say all of it."""

import functools
import io
import itertools
import re

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fbjax.data.synthetic import garments, words
from fbjax.data.synthetic import products as drawn

KINDS = list(garments.CATEGORIES)
TABLES = {kind: words.FABRICS | words.SHAPES[kind] for kind in KINDS}


@functools.cache
def listing(kind, attribute):
    """Every phrase of an attribute without its article, the longest first, and the value it stands for."""
    pairs = [
        (re.sub(r"^an? ", "", phrase), value)
        for value in TABLES[kind][attribute]
        for phrase in itertools.chain(*words.phrases(kind, attribute, value))
    ]
    return sorted(pairs, key=lambda pair: -len(pair[0]))


def named(kind, attribute, text):
    """The values of an attribute that a text names."""
    values, text = set(), text.lower()
    for phrase, value in listing(kind, attribute):
        text, times = re.subn(rf"(?<![\w-]){re.escape(phrase)}(?![\w-])", "_", text)
        values |= {value} if times else set()
    return values


@functools.cache
def thumbnail(kind, garment, seed=7):
    with Image.open(io.BytesIO(garments.draw(kind, dict(garment), seed))) as image:
        return np.asarray(image.resize((64, 64), Image.Resampling.BOX), np.float32)


def changed(kind, one, other):
    """Share of the 64 x 64 pixels that two garments, photographed alike, plainly differ in."""
    pictures = [thumbnail(kind, tuple(garment.items())) for garment in (one, other)]
    return (np.abs(pictures[0] - pictures[1]).max(-1) > 20).mean()


def all_words(row):
    return f"{row['title']} {row['caption']}"


@given(st.sampled_from(KINDS), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_text_names_each_attribute_and_no_other_value_of_it(kind, number, seed):
    garment = garments.combination(kind, number % garments.num_combinations(kind))
    title, caption = words.describe(kind, garment, np.random.default_rng(seed))
    text = f"{title} {caption}"
    assert 3 <= len(title.split()) <= 6 and len(text.split()) <= 28, text
    for attribute in TABLES[kind]:
        wanted = {garment[attribute]} if attribute in garment else set()  # no accent on plain cloth
        assert named(kind, attribute, text) == wanted, text


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_has_words_and_no_phrase_stands_for_two(kind):
    for attribute in TABLES[kind]:
        assert len({phrase for phrase, _ in listing(kind, attribute)}) == len(set(listing(kind, attribute)))


@pytest.mark.parametrize("kind", KINDS)
def test_two_values_of_an_attribute_are_told_apart_at_64_pixels(kind):
    usual = {name: list(values)[0] for name, values in words.SHAPES[kind].items()}
    for colour, (name, values) in itertools.product(("beige", "black"), words.SHAPES[kind].items()):
        for one, other in itertools.combinations(values, 2):
            plain = {"colour": colour, "pattern": "plain"} | usual
            assert changed(kind, plain | {name: one}, plain | {name: other}) > 0.006, (colour, name, one, other)


def test_colours_patterns_and_accents_are_told_apart_at_64_pixels():
    shape = {"neckline": "round", "sleeve": "short", "length": "regular"}
    fabrics = [{"colour": colour, "pattern": "plain"} for colour in garments.COLOURS]
    worn = [
        {"colour": "purple", "pattern": pattern, "accent": "cream"} for pattern in list(words.FABRICS["pattern"])[1:]
    ]
    worn += [{"colour": "purple", "pattern": "dotted", "accent": accent} for accent in list(garments.ACCENTS)[1:]]
    for one, other in itertools.combinations(fabrics + worn, 2):
        assert changed("t-shirt", one | shape, other | shape) > 0.05, (one, other)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    first, again, other = (
        [drawn.draw_product(order, seed) for order in drawn.plan(120, seed)[:4]] for seed in (3, 3, 4)
    )
    assert first == again
    assert [row["image"] for row in first] != [row["image"] for row in other]


def test_groups_are_distinct_garments_and_stay_in_one_split():
    orders = drawn.plan(8000, 0)
    of_group = {(order.group, order.kind, tuple(order.garment.items()), order.validation) for order in orders}
    assert len(of_group) == len({group for group, *_ in of_group})
    assert len({(kind, garment) for _, kind, garment, _ in of_group}) == len(of_group)
    assert len({order.id for order in orders}) == 8000
    for kind in KINDS:
        assert sum(order.kind == kind for order in orders) == 1000
        assert sum(order.kind == kind and order.validation for order in orders) >= 150


@pytest.mark.parametrize("num_products", [99, 10**6])
def test_a_number_out_of_range_is_named(num_products):
    with pytest.raises(ValueError, match=f"{num_products} products.* from 100 to"):
        drawn.plan(num_products, 0)


def test_a_catalogue_is_written_once(tmp_path):
    seen = []

    def progress(items, total, label):
        for item in items:
            seen.append(item)
            yield item

    files = drawn.write_catalogue(tmp_path, 100, 0, progress)
    assert len(seen) == 100 and drawn.is_drawn(tmp_path, 100, 0) and not drawn.is_drawn(tmp_path, 100, 1)
    assert drawn.write_catalogue(tmp_path, 100, 0, progress) == files and len(seen) == 100
    assert sorted(path.name for path in tmp_path.iterdir()) == ["examples", "train.parquet", "validation.parquet"]
    rows = {split: pyarrow.parquet.read_table(file).to_pylist() for split, file in files.items()}
    assert not {row["group"] for row in rows["train"]} & {row["group"] for row in rows["validation"]}
    for row in rows["validation"]:
        with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
            assert (image.size, image.mode, image.format) == ((192, 256), "RGB", "JPEG")
        assert named(row["subcategory"], "colour", all_words(row)) == {row["colour"]}
