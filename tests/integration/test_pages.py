"""The pages for people: one file each, everything escaped, the figures those of the run's files."""

import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from fbjax.data.sources.base import Product
from fbjax.evaluation.matching.calibration import calibration
from fbjax.inference.explain import Explanation
from fbjax.inference.rank import Ranking
from fbjax.monitoring.goodput import split
from fbjax.monitoring.telemetry import read_events
from fbjax.report import report
from fbjax.report.page import percent
from fbjax.report.ranking import write_ranking
from fbjax.report.report import write_report
from fbjax.report.sections.explained import write_explanation
from fbjax.training.loop import train
from tests.support.pages import Page, assert_self_contained, spaced
from tests.support.runs import tiny_config
from tests.support.tables import SHAPES, encode, make_products, write_parquet

HOSTILE = "<script>alert(1)</script> \"><img src=https://x.test/a.png onerror='alert(2)'> {{ 7 * 7 }} &amp;"


def hostile(products):
    """With texts that are HTML once the markup of a shop's export is removed, twice."""
    text, bold = (html.escape(html.escape(markup)) for markup in (HOSTILE, "<b>{}</b>"))
    return [p | {"caption": f"{p['caption']} {text}", "category": bold.format(p["category"])} for p in products]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    config = tiny_config(
        folder, "train.num_steps=8", "train.save_every=4", "adaptive.method=fixed", "model.num_layers=1"
    )
    broken = {"id": "broken", "image": {"bytes": b"no picture", "path": None}}
    products = hostile(make_products(48, seed=0))
    write_parquet(folder / "train.parquet", [*products, products[0] | broken])
    validation = [p | {"group": "v" + p["group"]} for p in make_products(24, seed=1)]
    write_parquet(folder / "validation.parquet", hostile(validation))
    train(config, folder / "run")
    write_report(folder / "run", num_queries=10)
    return folder / "run"


def test_a_report_is_one_file_with_the_figures_of_the_run(run):
    page = Page(run / "report.html")
    assert_self_contained(page)
    figures = json.loads((run / "evaluation.json").read_text())["figures"]
    for direction in ("image_to_text", "text_to_image"):
        for k in (1, 5, 10):
            assert spaced(percent(figures[direction][f"rank@{k}"])) in page.text
    assert f"{figures['matching']['auc']:.3f}".removeprefix("0") in page.text
    assert figures["num_queries"] == 10 and "10 queries a direction" in page.text
    assert "72 products (48 train, 24 validation)" in page.text
    assert "undecodable image" in page.text and "skipped.jsonl" in page.text
    assert "adaptive.method is 'fixed': set once" in page.text
    found = split(read_events(run))
    assert f"{spaced(percent(found.goodput))} went to steps that counted" in page.text and "0 to 8" in page.text
    assert "Utilisation (%)" in page.text and "a matrix product in float32" in page.text
    assert len([tag for tag, _ in page.elements if tag == "svg"]) > 6  # charts, and what scores rest on


def test_every_method_of_weighting_has_its_words(tmp_path):
    with pytest.raises(ValueError, match="adaptive.method") as error:
        tiny_config(tmp_path, "adaptive.method=?")
    assert set(re.findall(r"'(\w+)'", str(error.value))) == report.WEIGHTS.keys()


def test_what_a_table_says_stays_text(run):
    page = Page(run / "report.html")
    assert HOSTILE in " ".join(page.attributes("title"))
    assert any(f"<b>{shape}</b>" in page.text for shape in SHAPES)  # which ones depends on the queries shown


def test_a_second_report_takes_the_evaluation_there_is(run, monkeypatch, capsys):
    monkeypatch.setattr(report, "evaluate", None)
    again = write_report(run, run.parent / "again.html")
    assert again.read_text() == (run / "report.html").read_text()
    assert "taking the evaluation" in capsys.readouterr().err


def test_the_calibration_of_match_scores_is_drawn_and_told(run, monkeypatch):
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(3, 3, 200), rng.normal(-3, 3, 200)
    stored = json.loads((run / "evaluation.json").read_text())
    assert stored["figures"]["matching"]["calibration"] is None  # too few queries, so the page is silent
    assert "read as a probability" not in (run / "report.html").read_text()
    found = calibration(positive, negative, np.arange(200) % 2 == 0)
    stored["figures"]["matching"]["calibration"] = found
    monkeypatch.setattr(report, "read_evaluation", lambda workdir: stored)
    page = Page(write_report(run, run.parent / "calibrated.html"))
    assert_self_contained(page)
    for errors in (found["raw"], found["calibrated"]):
        low, high = errors["ece.ci"]
        assert f"{errors['ece']:.3f}" in page.text and f"{low:.3f} – {high:.3f}" in page.text
    assert "fitted on 100 queries; the figures are of 100 others" in page.text
    (label,) = [label for label in page.attributes("aria-label") if label.startswith("Share of matches")]
    assert f"{found['raw']['ece']:.3f}, and {found['calibrated']['ece']:.3f} with temperature" in label
    chart = page.source.split(label)[1].split("</svg>")[0]
    assert {"var(--accent)", "var(--muted)"} <= set(re.findall(r"var\(--\w+\)", chart))  # light and dark
    assert not re.findall(r"(?:stroke|fill): (?!none|var)[^;\"]+", chart.replace("stroke-", ""))


def test_a_run_that_was_stopped_is_reported_as_far_as_it_got(run, tmp_path, capsys):
    stopped = shutil.copytree(run, tmp_path / "stopped")
    shutil.rmtree(stopped / "checkpoints" / "8")
    shutil.rmtree(stopped / "tensorboard")
    for name in ("evaluation.json", "telemetry.jsonl", "report.html"):
        (stopped / name).unlink()
    page = Page(write_report(stopped, num_queries=4))
    assert "This run is at step 4 of 8" in page.text and "no curves" in page.text
    assert "has no telemetry" in page.text
    assert "checkpoint 4 has not been evaluated yet" in capsys.readouterr().err
    shutil.rmtree(stopped / "checkpoints" / "4")
    with pytest.raises(FileNotFoundError, match="no checkpoint in .*stopped"):
        write_report(stopped)


def test_a_folder_that_is_no_workdir_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no workdir"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("by_image", [False, True])
def test_a_ranking_is_one_file_with_its_products_in_order(tmp_path, by_image):
    found = make_products(4)
    products = [
        Product(p["id"], f"{n} {HOSTILE}", "<i>hat</i>", "", encode(p["image"]), "") for n, p in enumerate(found)
    ]
    query = encode(found[0]["image"]) if by_image else HOSTILE
    page = Page(
        write_ranking(
            Ranking(query, 1234, 1234, products, [2.0, 1.0, 0.5, -3.0], True), tmp_path / "r.html", "<u>Mine</u>"
        )
    )
    assert_self_contained(page)
    assert len(page.attributes("src")) == 4 + by_image
    places = [page.text.index(f"{n} {HOSTILE}") for n in range(4)]
    assert places == sorted(places) and "best 4 of 1,234" in page.text and "\N{MINUS SIGN}3.00" in page.text
    assert "<u>Mine</u>" in page.text and (by_image or HOSTILE in page.text[: places[0]])


@pytest.mark.parametrize("method", ["gradient", "attention"])
def test_an_explanation_is_one_file_with_the_words_and_cells(tmp_path, method):
    text, patches = f"red {HOSTILE} dress", np.array([[0.5, -0.25], [0.0, 0.01]])
    maps = np.stack([patches, -patches]) if method == "attention" else None
    values = {"without_words": -1.0, "without_patches": -2.0} if maps is None else {"word_patches": maps}
    words = [("red", 0.3), ("dress", -0.2)]
    explanation = Explanation(method, 1.25, True, words, patches, 0.125, **values)
    picture = encode(make_products(1)[0]["image"])
    page = Page(write_explanation(text, picture, explanation, tmp_path / "why.html"))
    assert_self_contained(page)
    assert HOSTILE in page.text and "Score +1.25, a match" in page.text and "as a whole: +0.12" in page.text
    cells = [attributes for tag, attributes in page.elements if tag == "rect"]
    assert len(cells) == (2 if maps is None else 6) and {cell["class"] for cell in cells} == {"for", "against"}
    marks = [attributes for tag, attributes in page.elements if tag == "mark"]
    assert [mark["class"].split()[0] for mark in marks] == ["for", "against"]
    assert [mark.get("tabindex") for mark in marks] == [None if maps is None else "0"] * 2
    for number in range(2) if maps is not None else ():
        assert f".word-{number}:is(:hover, :focus)) .map-{number} " in page.source


def test_no_card_and_no_page_scrolls_sideways_on_a_phone():
    """360 pixels: two cards stand side by side, and a table scrolls within its own box."""
    css, *pages = (
        (Path(report.__file__).parent / "templates" / name).read_text()
        for name in ("style.css", "report.html", "attributes.html")
    )
    page = "".join(pages)
    rules = [(names.strip(), body) for names, body in re.findall(r"([^{}]+)\{([^{}]*)\}", css)]
    last = dict(rules)  # of rules of the same names the last one, for the narrowest screen
    assert not any("overflow-x" in body or "flex" in body for names, body in rules if names.startswith(".cards"))
    least = int(re.search(r"repeat\(auto-fill, minmax\((\d+)px, 1fr\)\)", last[".cards"])[1])
    margin = int(re.search(r"padding-left: (\d+)px", last["main, header.top, footer"])[1])
    assert 2 * least + 10 <= 360 - 2 * margin
    assert "overflow-x: auto" in last[".scroll, .narrow"]
    boxes = re.findall(r'<div class="(?:scroll|narrow)[^>]*><table>', page)
    assert len(boxes) == page.count("<table>") > 5
