"""Fixed candidate lists: rules that hold for every catalogue, and a file that is kept."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fbjax.cli.main import main
from fbjax.evaluation.candidates import DIRECTIONS, draw_lists, read_lists
from fbjax.evaluation.fixed_lists import (
    SMALL,
    Rules,
    describe,
    make_lists,
    print_record,
    record_path,
    serialized,
    write_lists,
)
from tests.support.runs import write_config

catalogues = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=40)
rules = st.builds(Rules, st.integers(1, 6), st.integers(1, 8), st.integers(0, 3), st.sampled_from(SMALL))


def make_records(products):
    """What the drawing reads of prepared records: product i, "pi", is of this (category, group)."""
    categories, groups = np.array(products).T
    ids = np.array([f"p{i}" for i in range(len(products))])

    class Records(SimpleNamespace):
        def __len__(self):
            return len(self.ids)

    names = np.array([f"c{i}" for i in range(4)])
    return Records(ids=ids, categories=categories, groups=groups, category_names=names, digest="0")


def place(identity):
    return int(identity[1:])


def others_in_reach(products, row):
    category, group = products[row]
    return {g for c, g in products if c == category} - {group}


def drawable(products, rules):
    """Rows that may ask, by the rules' words."""
    reach = [len(others_in_reach(products, row)) for row in range(len(products))]
    needed = {"exclude": rules.others, "fill": 0, "short": 1}[rules.small]
    enough = rules.small != "fill" or len({g for _, g in products}) > rules.others
    return [row for row in range(len(products)) if reach[row] >= needed] if enough else []


@given(catalogues, rules)
def test_lists_keep_their_rules_on_any_catalogue(products, rules):
    records, may_ask = make_records(products), drawable(products, rules)
    if not may_ask:
        with pytest.raises(ValueError, match="--others|--small fill"):
            make_lists(records, rules)
        return
    lists = make_lists(records, rules)
    for direction in DIRECTIONS:
        asking = [place(x.query) for x in lists if x.direction == direction]
        groups = [products[row][1] for row in asking]
        assert set(asking) <= set(may_ask) and len(set(groups)) == len(groups)
        assert len(asking) == min(rules.queries, len({products[row][1] for row in may_ask}))
    for x in lists:
        row, others = place(x.query), [place(i) for i in x.others]
        groups = [products[other][1] for other in others]
        near = others_in_reach(products, row)
        assert x.positive == x.query and x.candidates.count(x.positive) == 1
        assert len(set(others)) == len(others) == len(x.candidates) - 1
        assert products[row][1] not in groups and len(set(groups)) == len(groups)
        same_category = [other for other in others if products[other][0] == products[row][0]]
        assert len(same_category) == min(rules.others, len(near))
        assert len(others) == (len(same_category) if rules.small == "short" else rules.others)


@given(catalogues, rules)
def test_the_same_seed_gives_the_same_file_and_fewer_queries_its_first(products, rules):
    if not drawable(products, rules):
        return
    records = make_records(products)
    lists = make_lists(records, rules)
    assert serialized(make_lists(records, rules)) == serialized(lists)
    first = make_lists(records, Rules(rules.others, 1, rules.seed, rules.small))
    assert first == [next(x for x in lists if x.direction == direction) for direction in DIRECTIONS]


def test_every_other_product_is_drawn_at_times_and_the_positive_has_no_place_of_its_own():
    products = [(0, 0), (0, 0), (0, 1), (0, 1), (0, 2), (1, 3)]
    lists = [x for seed in range(60) for x in make_lists(make_records(products), Rules(2, 9, seed, "exclude"))]
    assert {x.query for x in lists} == {"p0", "p1", "p2", "p3", "p4"}
    assert {i for x in lists if x.query == "p0" for i in x.others} == {"p2", "p3", "p4"}
    assert {x.candidates.index(x.positive) for x in lists} == {0, 1, 2}
    filled = [x for seed in range(60) for x in make_lists(make_records(products), Rules(3, 9, seed, "fill"))]
    assert {i for x in filled if x.query == "p5" for i in x.others} == {"p0", "p1", "p2", "p3", "p4"}
    assert all("p5" in x.others for x in filled if x.query == "p4")


def test_the_record_counts_what_was_left_out_and_the_report_says_it():
    records = make_records([(0, 0), (0, 1), (0, 2), (1, 3), (1, 3), (2, 4)])
    for small, doing in (("exclude", "no query"), ("fill", "4 lists"), ("short", "0 lists")):
        rules, said = Rules(2, 9, 0, small), []
        record = describe(make_lists(records, rules), records, rules)
        assert record["small_categories"] == {"c1": 1, "c2": 1} and record["products_in_small_categories"] == 3
        assert record["products"] == 6 and record["groups"] == 5 and record["categories"] == 3
        print_record(record, said.append)
        assert f"2 of 3, with 3 of 6 products; {doing}" in "".join(said)


def test_a_file_is_kept_and_never_replaced_by_another(tmp_path):
    records = make_records([(0, i) for i in range(9)])
    path = tmp_path / "lists.jsonl"
    rules = Rules(3, 4, 0, "exclude")
    lists = make_lists(records, rules)
    record = describe(lists, records, rules)
    assert write_lists(path, lists, record)
    assert read_lists(path) == (lists, record["sha256"]) and json.loads(record_path(path).read_text()) == record
    assert {frozenset(json.loads(line)) for line in path.read_text().splitlines()} == {
        frozenset(("direction", "query", "positive", "candidates"))
    }
    record_path(path).unlink()  # a kill between the two files
    assert not write_lists(path, lists, record) and record_path(path).is_file()
    before = path.read_bytes()
    with pytest.raises(ValueError, match="holds something else"):
        write_lists(path, make_lists(records, Rules(3, 4, 1, "exclude")), record)
    assert path.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == [
        path.name,
        path.name + ".json",
    ]


def test_lists_that_evaluations_draw_themselves_stay_those_of_their_seed():
    """Published figures rest on them."""
    _, digest = draw_lists(make_records([(i % 3, i % 25) for i in range(60)]), 5, 10, seed=0)
    assert digest == "972c5548ba5d4958d0928687f66a00342c07c70a42dc4f6dc82c773135c5bafa"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--others", "0"], "--others 0"),
        (["--others", "500"], "--others 3 or fewer, or --small fill"),
        (["--others", "500", "--small", "fill"], "groups, which fill lists of"),
        (["--data", "t.csv", "--split", "train"], "leave --split train out"),
    ],
)
def test_what_cannot_be_drawn_is_an_error_that_names_the_flag(flags, message, tmp_path, capsys):
    config = write_config(tmp_path)
    assert main(["candidates", "--config", str(config), "--out", str(tmp_path / "lists.jsonl"), *flags]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "lists.jsonl").exists()
