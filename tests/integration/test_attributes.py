"""A run that predicts attributes: trained, opened, evaluated and continued, from records and from arrays alone."""

import collections
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import accuracy_score, f1_score

import fbjax
from fbjax.cli.main import main
from fbjax.data.batches.classes import Classes
from fbjax.evaluation.recognition.attributes import attribute_figures, predictions_of
from fbjax.export.package import export
from fbjax.inference.attributes import attribute_probabilities
from fbjax.report.page import percent
from fbjax.report.report import write_report
from fbjax.report.sections.attributes import draw
from fbjax.runs.loaded import LoadedRun
from fbjax.runs.run import Run
from fbjax.runs.stored_evaluation import read_attributes, write_attributes
from fbjax.training.loop import train
from tests.support.pages import Page, assert_self_contained
from tests.support.runs import same, tiny_config

FEW = ("train.num_steps=4", "train.save_every=4", "model.num_layers=1", "adaptive.method=fixed", "tasks=attributes,tia")
COLUMNS = ("tasks.attributes.columns=category,make", "tasks.attributes.fewest_products=2")
MAKES = ("north", "south", "", "north")


def add_makes(path, first=MAKES[0]):
    table = pq.read_table(path)
    makes = [first, *(MAKES[i % 4] for i in range(1, len(table)))]
    pq.write_table(table.append_column("make", pa.array(makes)), path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, trains_on_one_device):
    folder = tmp_path_factory.mktemp("attributes")
    tiny_config(folder)  # which writes tables
    add_makes(folder / "train.parquet")
    add_makes(folder / "validation.parquet", first="west")
    for reads in ("pair", "image"):
        train(tiny_config(folder, *FEW, *COLUMNS, f"tasks.attributes.reads={reads}"), folder / reads)
    return folder


def test_figures_are_those_of_scikit_learn_and_unknown_values_are_wrong():
    classes = Classes.of_cells(("kind",), np.array([["a"]] * 3 + [["b"]] * 2 + [["c"], [""]]), fewest=2)
    asked = np.array([["a"], ["b"], ["b"], ["c"], ["z"], [""]])
    chances = [np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4], [0.2, 0.8], [0.5, 0.5]])]
    figures = attribute_figures(classes, asked, chances)["kind"]
    truth, told = ["a", "b", "b", "c", "z"], ["a", "a", "b", "a", "b"]
    assert figures["accuracy"] == pytest.approx(accuracy_score(truth, told))
    assert figures["macro_f1"] == pytest.approx(f1_score(truth, told, average="macro"))
    assert figures["majority"]["value"] == "a" and figures["majority"]["accuracy"] == pytest.approx(1 / 5)
    assert (figures["products"], figures["without"], figures["classes"]) == (5, 1, 2)
    assert figures["rare"] == figures["unseen"] == {"values": 1, "products": 1}
    assert figures["confusions"] == [["b", "a", 1, 2], ["c", "a", 1, 1], ["z", "b", 1, 1]]
    predictions = predictions_of(classes, np.array(list("123456")), asked, chances)["kind"]
    assert predictions[4] == ["5", "z", "b", pytest.approx(0.8)] and len(predictions) == 5
    with pytest.raises(ValueError, match="none of the 1 products has a value in column 'kind'"):
        attribute_figures(classes, asked[5:], [chances[0][5:]])


@pytest.mark.parametrize("reads", ["pair", "image"])
def test_a_run_is_evaluated_by_its_attributes(runs, reads, capsys):
    out = runs / "metrics.json"
    asked = ["evaluate", "--workdir", str(runs / reads), "--protocol", "attributes", "--out", str(out)]
    assert main(asked) == 0, capsys.readouterr().err
    printed, figures = capsys.readouterr().out, json.loads(out.read_text())["attributes"]
    assert figures["reads"] == reads and list(figures["columns"]) == ["category", "make"]
    make = figures["columns"]["make"]
    assert (make["classes"], make["products"], make["without"]) == (2, 18, 6)
    assert make["unseen"] == {"values": 1, "products": 1} and "unseen in training" in printed
    assert make["majority"]["value"] == "north" and make["majority"]["accuracy"] == pytest.approx(11 / 18)


@pytest.mark.parametrize("reads", ["pair", "image"])
def test_probabilities_are_those_of_each_product_alone_and_of_what_is_read(runs, reads):
    loaded = LoadedRun.load(runs / reads)
    records, rows = loaded.records(), np.array([5, 17, 2])
    together = attribute_probabilities(loaded, records, rows)
    for place, row in enumerate(rows):
        alone = attribute_probabilities(loaded, records, np.array([row]))
        for ours, theirs in zip(together, alone, strict=True):
            np.testing.assert_allclose(ours[place], theirs[0], rtol=1e-4, atol=1e-6)
            assert ours[place].sum() == pytest.approx(1, rel=1e-5)


def test_the_report_shows_the_figures_and_right_and_wrong_examples(runs, tmp_path, capsys):
    workdir = shutil.copytree(runs / "image", tmp_path / "run")
    (workdir / "attributes.json").unlink(missing_ok=True)
    page = Page(write_report(workdir, num_queries=4))
    assert "have not been evaluated yet" in capsys.readouterr().err
    assert_self_contained(page)
    stored = read_attributes(workdir)
    predictions = stored["predictions"]["make"]
    assert len(predictions) == 18 and "predicted from the picture alone" in page.text
    section = unspaced(page.text[page.text.index("Attributes: what is it?") :])
    for of in stored["figures"]["columns"].values():
        for kind in ("accuracy", "macro_f1"):
            low, high = (f"{100 * end:.1f}" for end in of[f"{kind}.ci"])
            assert unspaced(f"{percent(of[kind])}{low}–{high}{percent(of['majority'][kind])}") in section
    truth, told, _ = zip(*(row[1:] for row in predictions), strict=True)
    (times, true, wrong), *_ = sorted(
        ((-n, *pair) for pair, n in collections.Counter(zip(truth, told, strict=True)).items() if pair[0] != pair[1])
    )
    assert unspaced(f"{true}{wrong}{-times} of {truth.count(true)}") in section
    shown = draw(predictions)
    assert {row[1] == row[2] for row in shown} == {True, False} and len(shown) == 6
    assert page.source.count('<li class="card right">') >= 3
    for identity, true, predicted, probability in shown:
        state = "right" if true == predicted else "wrong"
        words = f"{state}{percent(probability)}{predicted}" + (f"is: {true}" if true != predicted else "")
        assert unspaced(f"{words}{title_of(runs, identity)}") in section

    write_attributes(workdir, stored | {"checkpoint_step": 1})  # of another checkpoint
    write_report(workdir, num_queries=4)
    assert "have not been evaluated yet" in capsys.readouterr().err
    stored["figures"]["columns"]["make"]["confusions"] = [["<b>&", "{{ 7 * 7 }}", 1, 2]]
    write_attributes(workdir, stored)
    page = Page(write_report(workdir, num_queries=4))
    assert "not been evaluated" not in capsys.readouterr().err and "<b>&{{7*7}}1of2" in unspaced(page.text)


def unspaced(text):
    return "".join(text.split())


def title_of(folder, identity):
    (row,) = pq.read_table(folder / "validation.parquet", filters=[("id", "==", identity)]).to_pylist()
    return row["title"]


def test_a_run_of_the_same_classes_starts_from_the_head_and_one_of_others_does_not(runs, capsys):
    start = f"train.start_from={runs / 'pair'}"
    same_classes = train(tiny_config(runs, *FEW, *COLUMNS, start, "train.learning_rate=1e-12"), runs / "again")
    head = LoadedRun.load(runs / "pair").params["fashionbert"]["attributes"]
    np.testing.assert_allclose(same_classes.params["fashionbert"]["attributes"]["kernel"], head["kernel"], atol=1e-6)
    capsys.readouterr()
    train(tiny_config(runs, *FEW, "tasks.attributes.columns=make,category", COLUMNS[1], start), runs / "other")
    assert "staying as they are, as it lacks them: fashionbert/attributes" in capsys.readouterr().err


def test_arrays_alone_give_the_same_run(runs, tmp_path, capsys):
    flags = [f"--config.{value}" for value in (*FEW, *COLUMNS)]
    arrays = str(tmp_path / "arrays")
    assert main(["prepare", "--config", str(runs / "tiny.py"), *flags, "--arrays", arrays]) == 0
    assert main(["prepare", "--config", str(runs / "tiny.py"), *flags[:-2], "--arrays", arrays]) == 0  # needs no more
    alone = (f"data.arrays={arrays}", "data.train=", "data.validation=")
    state = train(tiny_config(runs, *FEW, *COLUMNS, *alone), tmp_path / "alone")
    assert same(state.params["fashionbert"], LoadedRun.load(runs / "pair").params["fashionbert"])
    with pytest.raises(ValueError, match="does not hold 'title'.* fbjax prepare"):
        train(tiny_config(runs, *FEW, "tasks.attributes.columns=title", *alone), tmp_path / "lacking")


def test_bad_requests_are_refused_in_words(runs, tmp_path, capsys):
    with pytest.raises(ValueError, match="has no column 'colour'"):
        train(tiny_config(runs, *FEW, "tasks.attributes.columns=colour"), tmp_path / "lacking")
    with pytest.raises(ValueError, match="column 'id' has 0 values with at least 10 of the 48"):
        train(tiny_config(runs, *FEW, "tasks.attributes.columns=id"), tmp_path / "ids")
    with pytest.raises(ValueError, match="--format hf: the head of tasks.attributes"):
        export(runs / "pair", "hf", tmp_path / "hf", say=print)
    assert Run.open(runs / "pair").classes.names == ("category", "make")
    assert fbjax.load(runs / "pair").run.scores_pairs
