"""A log from the command line: drawn, trained on, resumed, evaluated, compared, and what is wrong with it said."""

import json

import jax
import numpy as np
import pytest

import fbjax
from fbjax.cli.main import main
from fbjax.config.load import load_config
from fbjax.data.batches.sampler import Sampler
from fbjax.data.log.batches import Queries, train_batches
from fbjax.data.log.events import join_log
from fbjax.monitoring.logger import read_curves
from fbjax.runs.loaded import LoadedRun
from fbjax.runs.splits import open_splits
from fbjax.runs.vocabulary import make_vocabulary
from fbjax.training.loop import train
from tests.support.runs import same, tiny_config, without_steps_after, write_config
from tests.support.tables import make_products, write_parquet

pytestmark = pytest.mark.usefixtures("trains_on_one_device")
QUERIES = ("tasks=qpc", "tasks.qpc.embedding_dim=16", "adaptive.method=fixed", "model.num_layers=1")
STYLES = ("tasks=style", "tasks.style.embedding_dim=16", "adaptive.method=fixed", "model.num_layers=1")
NEAR = "tasks.style.neighbours=4"
FEW = ("train.num_steps=8", "train.save_every=4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tables, their config, and a synthetic log of them."""
    folder = tmp_path_factory.mktemp("log")
    config = write_config(folder)
    arguments = ["--attributes", "category", "--out", str(folder / "clicks.csv")]
    assert main(["draw-log", "--config", str(config), *arguments]) == 0
    return folder


@pytest.fixture(scope="module")
def searching(folder):
    """A run on the log, evaluated."""
    config = tiny_config(folder, *QUERIES, *FEW, f"log.table={folder / 'clicks.csv'}", "log.count=count")
    train(config, folder / "searching")
    assert main(["evaluate", "--workdir", str(folder / "searching"), "--protocol", "log"]) == 0
    return folder / "searching"


def test_a_drawn_log_is_the_same_for_the_same_seed(folder, tmp_path):
    arguments = ["draw-log", "--config", str(folder / "tiny.py"), "--attributes", "category"]
    for seed in ("0", "1"):
        assert main([*arguments, "--seed", seed, "--out", str(tmp_path / f"{seed}.csv")]) == 0
    assert (tmp_path / "0.csv").read_bytes() == (folder / "clicks.csv").read_bytes()
    assert (tmp_path / "1.csv").read_bytes() != (folder / "clicks.csv").read_bytes()
    table = str(tmp_path / "labelled.parquet")
    arguments = ["draw-log", "--config", str(folder / "tiny.py"), "--attributes", "title", "--mismatches", "1"]
    assert main([*arguments, "--out", table]) == 0
    config = load_config(folder / "tiny.py", [f"log.table={table}", "log.label=label", *QUERIES])
    splits = open_splits(config, vocabulary := make_vocabulary(config, print))
    assert {0, 1} == set(join_log(config.log, config.data, splits, vocabulary).splits["train"].labels.tolist())


@pytest.mark.parametrize("from_arrays", [False, True], ids=["records", "arrays"])
def test_batches_hold_a_query_of_each_product_or_a_partner_of_its_group(folder, tmp_path, from_arrays):
    for options in ((*QUERIES, f"log.table={folder / 'clicks.csv'}"), (*STYLES, "log.table=groups")):
        config = load_config(folder / "tiny.py", options)
        if from_arrays:
            given = [f"--config.{option}" for option in options]
            arrays = str(tmp_path / "arrays")
            assert main(["prepare", "--config", str(folder / "tiny.py"), *given, "--arrays", arrays]) == 0
            config = load_config(folder / "tiny.py", [*options, f"data.arrays={arrays}"])
        vocabulary = make_vocabulary(config, print)
        records = open_splits(config, vocabulary)["train"]
        events = join_log(config.log, config.data, {"train": records}, vocabulary).splits["train"]
        kinds = {"negatives": True, "labelled": False}
        queries = None if events.queries is None else Queries.of(events, vocabulary, 16, **kinds)
        sampler = Sampler.of(records, config.train, config.model, lambda step: 0, events.rows, events.others)

        def stream(start=0, share=None, these=(records, sampler, vocabulary, queries)):
            read = {"num_steps": 20, "image_size": 32, "with_negatives": False}
            return list(train_batches(*these, start=start, share=share, **read))

        batches = stream()
        for batch in batches:
            if queries is None:
                partner = batch.partner
                assert (partner.group == batch.group).all() and (partner.index != batch.index).all()
                own = records.framed_texts(partner.index, vocabulary, partner.ids.shape[1])
                np.testing.assert_array_equal(partner.ids, own)
                assert partner.ids.shape == batch.ids.shape
                images = next(records.images(partner.index, 32, len(partner.index)))
                np.testing.assert_array_equal(partner.image, images)
            else:
                for row, query in zip(batch.index, batch.query, strict=True):
                    assert query.tolist() in queries.framed[events.rows == row].tolist()
        places = np.concatenate([sampler.places(step)[0] for step in range(20)])[: len(events)]
        assert len(np.unique(places)) == min(len(events), 160)  # an epoch draws each event once
        for one, other in zip(batches[7:], stream(start=7), strict=True):
            assert same(one, other)
        for one, other in zip(batches, stream(share=np.array([1, 4])), strict=True):
            assert same(jax.tree.map(lambda x: x[[1, 4]], one), other)


def test_a_run_on_a_log_resumes_to_the_bit_and_refuses_another_log(folder, searching, tmp_path, capsys):
    train(LoadedRun.load(searching, 8).run.config, without_steps_after(searching, 4, tmp_path / "resumed"))
    assert same(*(LoadedRun.load(workdir, 8).params for workdir in (searching, tmp_path / "resumed")))
    rows = (folder / "clicks.csv").read_text().splitlines()
    (tmp_path / "clicks.csv").write_text("\n".join(rows[:1] + rows[10:]))  # without training events
    table = f"--config.log.table={tmp_path / 'clicks.csv'}"
    options = [f"--config.{option}" for option in (*QUERIES, *FEW, "log.count=count")]
    workdir = ["--workdir", str(searching)]
    assert main(["train", "--config", str(folder / "tiny.py"), *options, table, *workdir]) == 1
    assert "the log is not the one that the run in" in capsys.readouterr().err


def test_queries_are_embedded_as_the_run_has_read_them_and_ranked(searching):
    figures = json.loads((searching / "log.json").read_text())
    model = fbjax.load(searching)
    records = model.records()
    events = join_log(model.run.config.log, model.run.config.data, model.run.splits(), model.run.vocabulary)
    asked = events.splits["validation"].queries.tolist()
    queries = model.embed_query(asked[:5])
    products = fbjax_products(model, records)
    distinct = list(dict.fromkeys(text.casefold() for text in asked))
    for text, vector in zip(asked[:5], queries, strict=True):
        rows = events.splits["validation"].rows[[text == other for other in asked]]
        cosines = products @ vector
        expected = 1 + sum(cosines[j] >= cosines[rows].max() for j in range(len(products)) if j not in rows)
        assert figures["ranks"]["query"]["product"][distinct.index(text.casefold())] == expected


def fbjax_products(model, records):
    found = records.products(range(len(records)))
    return model.embed_product([product.text for product in found], [product.image for product in found])


def test_an_export_of_an_encoder_that_reads_queries_is_refused(searching, tmp_path, capsys):
    assert main(["export", "--workdir", str(searching), "--format", "hf", "--out", str(tmp_path / "out")]) == 1
    assert "reads queries in a segment of their own" in capsys.readouterr().err


def test_runs_and_bm25_are_compared_on_one_log(folder, searching, capsys):
    bm25 = ["baseline", "bm25", "--config", str(folder / "tiny.py"), "--workdir", str(folder / "bm25")]
    assert main([*bm25, f"--config.log.table={folder / 'clicks.csv'}"]) == 0
    assert main(["compare", str(folder / "bm25"), str(searching)]) == 0
    said = capsys.readouterr().out
    assert "query > text against query > product" in said and "queries of a log, 24 products" in said
    assert main(["evaluate", "--workdir", str(searching), "--protocol", "log", "--queries", "3"]) == 0
    assert main(["compare", str(folder / "bm25"), str(searching)]) == 1
    assert "different queries of a log" in capsys.readouterr().err


@pytest.mark.slow
def test_triples_go_on_from_a_fashionbert_and_are_ranked_in_lists(folder, tmp_path, capsys):
    plain, log = tmp_path / "plain", f"log.table={folder / 'clicks.csv'}"
    train(tiny_config(folder, "tasks=mlm,mpm,tia", "model.num_layers=1", *FEW), plain)
    triples = ("tasks=mlm,mpm,qta", "model.num_layers=1", log, f"train.start_from={plain}", *FEW)
    train(tiny_config(folder, *triples), tmp_path / "triples")
    labelled = ["draw-log", "--config", str(folder / "tiny.py"), "--attributes", "title", "--mismatches", "1"]
    assert main([*labelled, "--out", str(tmp_path / "labelled.csv")]) == 0
    tuned = ("tasks=qta", "tasks.qta.labelled=True", f"log.table={tmp_path / 'labelled.csv'}", "log.label=label")
    train(tiny_config(folder, *tuned, "model.num_layers=1", f"train.start_from={plain}", *FEW), tmp_path / "tuned")
    for workdir in (plain, tmp_path / "triples"):
        given = ["--workdir", str(workdir), "--protocol", "log", "--log", str(folder / "clicks.csv")]
        assert main(["evaluate", *given, "--queries", "8"]) == 0
    assert "query > list" in capsys.readouterr().out
    assert main(["compare", str(plain), str(tmp_path / "triples")]) == 0
    assert "query > list against query > list" in capsys.readouterr().out
    assert np.isfinite(read_curves(tmp_path / "triples")["qta/loss"][1]).all()


def test_same_style_is_measured_by_each_unit(folder, capsys):
    train(tiny_config(folder, *STYLES, *FEW, "log.table=groups", "tasks.style.locality=1", NEAR), folder / "styles")
    assert main(["evaluate", "--workdir", str(folder / "styles"), "--protocol", "log"]) == 0
    said = capsys.readouterr().out
    for mine in ("product", "image", "text"):
        for theirs in ("product", "image", "text"):
            assert f"{mine} > {theirs}" in said
    assert "over image" in said and "over text" in said


def test_a_run_that_reads_queries_begins_with_the_segment_of_texts(folder, capsys):
    towers = tiny_config(folder, "tasks=itc", "tasks.itc.embedding_dim=16", *FEW, "model.num_layers=1")
    train(towers, folder / "towers")
    config = tiny_config(
        folder, *QUERIES, f"log.table={folder / 'clicks.csv'}", f"train.start_from={folder / 'towers'}",
        "train.num_steps=3", "train.save_every=3", "train.learning_rate=1e-9",
    )  # fmt: skip
    train(config, folder / "begun")
    segment = LoadedRun.load(folder / "begun", 3).params["fashionbert"]["text_embeddings"]["segment"]
    np.testing.assert_allclose(segment[1], segment[0], atol=1e-6)
    before = LoadedRun.load(folder / "towers", 8).params["fashionbert"]["text_embeddings"]["segment"]
    assert np.abs(before[1] - before[0]).max() > 1e-3


@pytest.mark.parametrize(
    "options, message",
    [
        (("tasks=qpc",), "log.table '' has no queries, which task qpc reads"),
        (("tasks=style", "log.table=clicks.csv"), "has no pairs of products, which task style reads"),
        (("tasks=qpc", "log.table=groups"), "log.table 'groups' has no queries"),
        (("tasks=qpc,itc", "log.table=clicks.csv"), "tasks itc and qpc each make the run's vectors"),
        (("tasks=qta,tia", "log.table=clicks.csv"), "tasks qta and tia each have the run's match head"),
        (("tasks=qta", "log.table=clicks.csv", "tasks.qta.labelled=True"), "the log has none (set log.label"),
        (("tasks=qpc", "log.table=clicks.csv", "log.query_tokens=100"), "must be at most model.text_tokens"),
        (("tasks=style", "log.table=groups", "tasks.style.locality=1", "train.batch_size=8"), "tasks.style.neighbours"),
    ],
)
def test_settings_of_a_log_that_contradict_are_one_line(folder, options, message, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    given = [f"--config.{option}" for option in options]
    assert main(["train", "--config", str(folder / "tiny.py"), *given, "--workdir", str(folder / "none")]) == 1
    assert message in capsys.readouterr().err and not (folder / "none").exists()


def test_prepare_checks_a_log_and_lists_what_it_skips(folder, tmp_path, capsys):
    (tmp_path / "log.csv").write_text((folder / "clicks.csv").read_text() + "red dress,nowhere,1,\n")
    options = ["--config.log.table=" + str(tmp_path / "log.csv"), f"--config.data.prepared={tmp_path / 'prepared'}"]
    assert main(["prepare", "--config", str(folder / "tiny.py"), *options]) == 0
    said = capsys.readouterr().out
    assert "log, train:" in said and "1 product is not in the data" in said
    skipped = [json.loads(line) for line in (tmp_path / "prepared" / "log-skipped.jsonl").read_text().splitlines()]
    row = len((folder / "clicks.csv").read_text().splitlines())
    assert {"where": f"log.csv row {row}", "product": "nowhere", "reason": "product is not in the data"} in skipped


def test_a_log_that_no_task_reads_is_refused(folder, tmp_path, capsys):
    given = ["--config", str(folder / "tiny.py"), f"--config.log.table={folder / 'clicks.csv'}"]
    assert main(["train", *given, "--workdir", str(tmp_path / "run")]) == 1
    assert "is read by no task" in capsys.readouterr().err


def test_a_group_that_fills_batches_is_no_negative_of_itself(tmp_path):
    config, products = write_config(tmp_path), make_products(24)
    groups = ["one"] * 20 + ["two"] * 4
    write_parquet(tmp_path / "train.parquet", [p | {"group": g} for p, g in zip(products, groups, strict=True)])
    options = [f"--config.{option}" for option in (*STYLES, *FEW, "log.table=groups", "train.log_every=1")]
    assert main(["train", "--config", str(config), *options, "--workdir", str(tmp_path / "run")]) == 0
    _, losses = read_curves(tmp_path / "run")["loss"]
    assert np.isfinite(losses).all() and (losses == 0).any() and (losses > 0).any()
