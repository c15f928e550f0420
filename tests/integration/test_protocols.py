"""Protocols over lists, on any scores: drawings averaged, each pair scored once, the miscount beside the right."""

import json
import statistics

import numpy as np
import pytest

from fbjax.cli.main import main
from fbjax.data.records.builder import build_records
from fbjax.data.sources.base import open_source
from fbjax.evaluation.candidates import draw_lists
from fbjax.evaluation.protocols import list_figures, print_figures, read_request
from fbjax.runs.vocabulary import make_vocabulary
from tests.support.runs import tiny_config, write_config
from tests.support.tables import make_products, write_parquet


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Validation products of which the first four share one text."""
    folder = tmp_path_factory.mktemp("records")
    config = tiny_config(folder)
    products = [p | {"group": "v" + p["group"]} for p in make_products(40, seed=1)]
    for p in products[:4]:
        p |= {"title": "one dress", "caption": "in four photos", "group": "photographed", "category": "dress"}
    write_parquet(folder / "validation.parquet", products)
    source, vocabulary = open_source(config.data, config.patches.image_size), make_vocabulary(config, print)
    return build_records(source, vocabulary, config.data.prepared, lambda items, *_: items)["validation"]


@pytest.fixture(scope="module")
def scores():
    """Of every pair [40, 40]; ties abound."""
    return np.random.default_rng(0).integers(0, 9, (40, 40)).astype(float)


def test_figures_of_drawings_are_those_of_each_alone(records, scores):
    asked = []

    def score(pairs):
        asked.append(pairs)
        return scores[pairs[:, 0], pairs[:, 1]]

    figures, rankings = list_figures(records, ("draws",), None, 12, score, scores_matches=False)
    assert rankings == [] and figures.keys() == {"draws"}
    drawn = figures["draws"]
    each = []
    for seed in range(5):
        lists = draw_lists(records, 100, 12, seed)
        assert drawn["candidates_sha256"][seed] == lists[1] and drawn["num_queries"][seed] == 12
        each.append(list_figures(records, ("candidates",), lists, None, lambda p: scores[p[:, 0], p[:, 1]], False)[0])
    for direction in ("image_to_text", "text_to_image"):
        for k in (1, 5, 10):
            rates = [x[direction][f"rank@{k}"] for x in each]
            assert drawn[direction][f"rank@{k}.each"] == rates
            assert drawn[direction][f"rank@{k}"] == pytest.approx(statistics.mean(rates))
            assert drawn[direction][f"rank@{k}.std"] == pytest.approx(statistics.stdev(rates))
    (pairs,) = asked
    assert len(np.unique(pairs, axis=0)) == len(pairs)


def test_the_miscount_stands_beside_the_right_count_and_says_what_it_is(records, scores):
    score = lambda pairs: scores[pairs[:, 0], pairs[:, 1]]  # noqa: E731
    figures, rankings = list_figures(records, ("candidates", "legacy"), None, 30, score, scores_matches=False)
    said = []
    print_figures(figures, said.append)
    assert any("miscounted on purpose" in line for line in said)
    assert len(rankings) == 60
    alone, none = list_figures(records, ("legacy",), None, 30, score, scores_matches=False)
    assert alone["legacy"] == figures["legacy"] and none == []  # a run's report keeps the figures that it had
    for direction in ("image_to_text", "text_to_image"):
        legacy = figures["legacy"][direction]
        assert legacy["correct"]["queries"] == 30 < legacy["keys"]
        for k in (1, 5, 10):
            assert legacy["correct"][f"rank@{k}"] == figures[direction][f"rank@{k}"]


def test_lists_that_no_protocol_reads_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="draws, full reads no lists"):
        read_request(("draws", "full"), "lists.jsonl", None)


def test_the_same_text_has_the_same_number_however_long_it_is(records):
    codes = records.text_codes()
    assert len(set(codes[:4])) == 1 and codes[0] not in codes[4:]
    products = [f"{p['title']} {p['caption']}" for p in make_products(40, seed=1)][4:]
    same = [[a == b for b in products] for a in products]
    np.testing.assert_array_equal(codes[4:, None] == codes[4:], same)


def test_a_baseline_takes_the_same_protocols(tmp_path, capsys):
    asked = ["--config", str(write_config(tmp_path)), "--protocol", "draws,legacy", "--queries", "5"]
    assert main(["baseline", "cca", *asked]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "5 drawings of 5 queries" in printed and "(correct)" in printed


def test_a_baseline_answers_the_queries_of_a_file_and_knows_no_halves(tmp_path, capsys):
    config, path = write_config(tmp_path), tmp_path / "log.jsonl"
    own = [{"query": f"{p['title']} {p['caption']}", "relevant": [p["id"]]} for p in make_products(24, seed=1)]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*own, {"query": " ", "relevant": ["p1-0000"]}]))
    flags = ["baseline", "cca", "--config", str(config), "--out", str(tmp_path / "metrics.json"), "--protocol"]
    assert main([*flags, "full,queries", "--relevant", str(path)]) == 0, capsys.readouterr().err
    assert "24 queries, 24 products" in capsys.readouterr().out
    figures = json.loads((tmp_path / "metrics.json").read_text())
    # with a product's own text for a query, recall is the strict hit rate of the whole gallery
    assert figures["queries"]["recall@1"] == figures["full"]["text_to_image"]["rank@1.strict"]
    assert figures["queries"]["recall@10"] == figures["full"]["text_to_image"]["rank@10.strict"] > 0
    assert figures["queries"]["skipped"] == {"without words": 1}
    for wrong in (["mixed"], ["full", "--config.train.half=first"]):
        assert main([*flags, *wrong]) == 1
        assert "use fbjax train and fbjax evaluate" in capsys.readouterr().err
