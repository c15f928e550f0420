"""The release's tab-separated files: read row by row, trained on, and scored by the correct metric."""

import json
import re

import numpy as np
import pytest

from fbjax.cli.main import main
from fbjax.config.load import load_config
from fbjax.data.records.builder import build_records
from fbjax.data.sources import release
from fbjax.data.sources.base import Skipped, open_source
from fbjax.data.sources.release import PREDICTION, TRAINING, Pair, Reader
from fbjax.data.text.wordpiece import Vocabulary
from fbjax.evaluation import metrics
from fbjax.evaluation.released.prediction_file import Scored, release_figures
from fbjax.inference.model import Model
from fbjax.model.patch_features import given_features
from fbjax.runs.feature_cache import cached_features
from fbjax.runs.vocabulary import make_vocabulary
from tests.support import release_files as made

CONFIG = """
from fbjax.config import defaults

def get_config():
    c = defaults()
    c.data.train, c.data.holdout, c.data.prepared = {train!r}, 0.25, {prepared!r}
    c.data.source, c.data.num_patches, c.data.feature_size = "release", 4, 6
    c.patches.mode = "cached"
    c.model.vocabulary = {vocabulary!r}
    c.model.num_layers, c.model.width, c.model.num_heads, c.model.mlp_dim, c.model.text_tokens = 1, 16, 2, 32, 8
    c.train.batch_size, c.train.num_steps, c.train.warmup_steps, c.train.learning_rate = 8, 2, 1, 1e-3
    c.train.save_every, c.train.evaluate_products = 2, 8
    return c
"""


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return Vocabulary.from_file(made.write_vocabulary(tmp_path_factory.mktemp("vocabulary") / "vocab.txt"))


def read(path, vocabulary):
    return list(Reader(vocabulary, made.PATCHES, made.SIZE).pairs(path))


@pytest.mark.parametrize(
    "columns, rows",
    [(TRAINING, made.training_rows(3)), (PREDICTION, made.prediction_rows(2, 3))],
    ids=["train", "eval"],
)
def test_what_is_written_reads_as_it_was(columns, rows, tmp_path, vocabulary):
    rows = list(rows)
    pairs = read(release.write(tmp_path / "file.tsv", rows, columns), vocabulary)
    assert len(pairs) == len(rows)
    for number, (pair, row) in enumerate(zip(pairs, rows, strict=True), start=1):
        assert pair.where == f"file.tsv line {number}"
        np.testing.assert_array_equal(pair.features, row["image_feature"])
        assert pair.matched == row["nx_sent_labels"]
        expected = row["input_ids"].copy()
        if columns == TRAINING:
            expected[1] = row["masked_lm_ids"][0]  # the one real slot of two: [MASK] gives way to what it hides
        assert pair.pieces == expected[1:4].tolist()
        for name, value in zip(
            PREDICTION[6:], (pair.description, pair.text_id, pair.image_id, pair.photo_id), strict=True
        ):
            assert value == row.get(name, "")


def broken(row, how):
    row = {name: np.array(value) if isinstance(value, np.ndarray) else value for name, value in row.items()}
    match how:
        case "2047":
            row["image_feature"] = row["image_feature"][:, :-1]
        case "nan":
            row["image_feature"][2, 5] = np.nan
        case "inf":
            row["image_feature"][0, 1] = 1e9
        case "ids":
            row["input_ids"][2] = len(made.PIECES)
        case "label":
            row["nx_sent_labels"] = 2
        case "mask":
            row["input_mask"][0] = 7
        case "hidden":
            row["image_mask"][1] = 0
        case "place":
            row["masked_lm_positions"][0] = made.TOKENS
        case "cls":
            row["input_ids"][0] = 9
        case "empty":
            row["input_mask"][:] = 0
        case "word":
            row["segment_ids"] = ",".join(["x"] * made.TOKENS)
    return row


BROKEN = {
    "2047": "image_feature has 20 values, expected 24",
    "nan": "image_feature has nan at patch 2, feature 5",
    "inf": "image_feature has 1e+09 at patch 0, feature 1",
    "ids": "input_ids has 23, expected 0 to 22",
    "label": "nx_sent_labels has 2, expected 0 to 1",
    "mask": "input_mask has 7, expected 0 to 1",
    "hidden": "image_mask hides patches, which here all take part",
    "place": "masked_lm_positions has 8, expected 0 to 7",
    "cls": "input_ids begin with 9, not with [CLS], 2: another vocabulary?",
    "empty": "empty text",
    "word": "segment_ids is not all whole numbers",
}


@pytest.mark.parametrize("first", [True, False], ids=["first line", "later line"])
def test_each_malformed_row_is_reported_with_file_line_and_reason(first, tmp_path, vocabulary):
    good = list(made.training_rows(2))
    bad = [broken(good[0], how) for how in BROKEN]
    path = release.write(tmp_path / "eval.tsv", [*bad, *good] if first else [*good, *bad], TRAINING)
    with open(path, "a") as stream:
        stream.write("1,2,3\t4\n\n")  # too few columns, and a blank line
    found = read(path, vocabulary)
    shift = 0 if first else len(good)
    for number, (how, reason) in enumerate(BROKEN.items(), start=1 + shift):
        skipped = found[number - 1]
        assert skipped.where == f"eval.tsv line {number}" and skipped.reason.startswith(reason), how
    assert found[-1] == Skipped(f"eval.tsv line {len(BROKEN) + len(good) + 1}", "", "2 columns, expected 10")
    assert sum(isinstance(row, Pair) for row in found) == len(good)


def test_a_file_of_another_shape_or_kind_is_an_error_before_the_work(tmp_path, vocabulary):
    path = release.write(tmp_path / "a.tsv", made.training_rows(2), TRAINING)
    with pytest.raises(ValueError, match="a.tsv has 4 patches of 6 features, this run reads 64 of 2048"):
        Reader(vocabulary, 64, 2048).layout(path)
    (tmp_path / "b.tsv").write_text("id\ttitle\n1\tred dress\n")
    with pytest.raises(ValueError, match="b.tsv is no file of the release: its first line has 2 columns"):
        Reader(vocabulary, 4, 6).layout(tmp_path / "b.tsv")


def write_config(folder, train="train.tsv"):
    made.write_vocabulary(folder / "vocab.txt")
    names = {
        "train": str(folder / train),
        "vocabulary": str(folder / "vocab.txt"),
        "prepared": str(folder / "prepared"),
    }
    (folder / "c.py").write_text(CONFIG.format(**names))
    return folder / "c.py"


def test_true_rows_become_products_and_their_features_the_cache(tmp_path):
    rows = list(made.training_rows(20))
    rows[2] = broken(rows[2], "nan")
    rows.append(rows[0])  # another photo of the same text, say
    release.write(tmp_path / "train.tsv", rows, TRAINING)
    config = load_config(write_config(tmp_path))
    vocabulary = Vocabulary.from_file(config.model.vocabulary)
    splits = build_records(
        open_source(config.data, config.patches.image_size), vocabulary, tmp_path, lambda rows, total, label: rows
    )
    report = splits["train"].report()
    assert report["skipped"] == {release.MISMATCHED: 20, "image_feature has nan at patch 2, feature 5": 1}
    assert sum(report["splits"].values()) == 20 and report["groups"]["train"] + report["groups"]["validation"] == 19
    network = given_features(config.data)
    for records in splits.values():
        features = cached_features(records, network, 64, tmp_path, lambda rows, total, label: rows, batch_size=3)
        products = records.products(range(len(records)))
        for product, feature in zip(products, features, strict=True):
            line = int(product.id.removeprefix("train.tsv line "))
            row = rows[line - 1]
            np.testing.assert_array_equal(feature, row["image_feature"].astype(np.float16))
            text = made.text_of((line - 1) // 2 if line <= 40 else 0)
            assert product.text == f"{made.PIECES[text[1]]} {made.PIECES[text[2]]}ing"
            assert product.category == "all" and product.image == b""


@pytest.mark.parametrize("wrong", ["shape", "dtype", "nan", "cut"])
def test_a_cache_of_another_network_or_with_nan_is_an_error_that_names_the_file(wrong, tmp_path):
    release.write(tmp_path / "train.tsv", made.training_rows(20), TRAINING)
    config = load_config(write_config(tmp_path))
    vocabulary = Vocabulary.from_file(config.model.vocabulary)
    records = build_records(
        open_source(config.data, config.patches.image_size), vocabulary, tmp_path, lambda rows, *_: rows
    )["train"]
    network = given_features(config.data)
    fill = lambda: cached_features(records, network, 64, tmp_path, lambda rows, total, label: rows)  # noqa: E731
    features = np.array(fill())
    (path,) = tmp_path.glob("features-*.npy")
    path.with_name(f"{path.name}.crc32").unlink()  # as of a file that was copied there alone
    if wrong == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    else:
        other = {"shape": features[:, :3], "dtype": features.astype(np.float32), "nan": features.copy()}[wrong]
        other[3, 0, 0] = np.nan if wrong == "nan" else 0
        np.save(path, other)
    named = records.ids[3] if wrong == "nan" else "no readable" if wrong == "cut" else "expected float16"
    with pytest.raises(ValueError) as error:
        fill()
    assert path.name in str(error.value) and named in str(error.value) and "delete it" in str(error.value)


@pytest.mark.parametrize(
    "override, reason",
    [
        ("patches.mode=frozen", "needs patches.mode 'cached'"),
        ("data.num_patches=0", "must both be 0, or both be at least 1"),
        ("data.source=tables", "'tables' gives images, but data.num_patches is 4 and data.feature_size 6"),
        ("data.source=releases", "unknown data source 'releases'.*did you mean 'release'"),
        ("model.vocabulary=train:100", "would not keep"),
    ],
)
def test_settings_that_do_not_go_with_features_are_refused(override, reason, tmp_path):
    release.write(tmp_path / "train.tsv", made.training_rows(2), TRAINING)
    with pytest.raises(ValueError, match=reason):
        config = load_config(write_config(tmp_path), [override])
        open_source(config.data, config.patches.image_size)
        make_vocabulary(config, print)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, trains_on_one_device):
    folder = tmp_path_factory.mktemp("release")
    release.write(folder / "train.tsv", made.training_rows(48), TRAINING)
    release.write(folder / "image.tsv", made.prediction_rows(5, 4), PREDICTION)
    release.write(folder / "text.tsv", made.prediction_rows(5, 4, direction="text_to_image"), PREDICTION)
    assert main(["train", "--config", str(write_config(folder)), "--workdir", str(folder / "run")]) == 0
    return folder


@pytest.mark.parametrize("name, direction", [("image", "image_to_text"), ("text", "text_to_image")])
def test_a_run_trained_on_a_release_file_is_evaluated_on_another(name, direction, trained, monkeypatch, capsys):
    monkeypatch.setattr("fbjax.evaluation.released.prediction_file.CHUNK", 7)  # chunks that cut through lists
    file = str(trained / f"{name}.tsv")
    out = trained / f"{name}.json"
    assert main(["evaluate", "--workdir", str(trained / "run"), "--release", file, "--out", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert figures["num_queries"] == 5 and figures["candidates_per_list"] == 4 and figures["checkpoint_step"] == 2
    scores = by_hand(trained, file).reshape(5, 4)
    ranks = 1 + (np.delete(scores, 2, axis=1) >= scores[:, 2:3]).sum(axis=1)
    assert figures[direction]["rank@1"] == np.mean(ranks == 1)
    assert figures[direction]["rank@101"] == 1.0
    assert figures["matching"]["accuracy_rows"] == np.mean((scores > 0) == [False, False, True, False])
    assert "5 queries of 4 candidates" in capsys.readouterr().out


def by_hand(folder, file):
    """Scores of a file's rows, one pair at a time."""
    model = Model.load(folder / "run")
    run, scorer = model.run, model._scorer(None)
    scores = []
    for pair in Reader(run.vocabulary, made.PATCHES, made.SIZE).pairs(file):
        ids = run.vocabulary.frame(pair.pieces, 8)[None]
        image = scorer.embed_images(model.variables, [pair.features[None].astype(np.float16)])
        scores.append(scorer.score(model.variables, ids, image, np.zeros((1, 2), int))[0])
    return np.array(scores)


def test_what_needs_pictures_says_so_or_leaves_them_out(trained, capsys):
    run = str(trained / "run")
    assert main(["evaluate", "--workdir", run, "--queries", "3"]) == 0
    assert main(["rank", "--workdir", run, "--text", "a b", "--html", str(trained / "ranking.html")]) == 0
    assert main(["report", "--workdir", run]) == 0
    capsys.readouterr()
    picture = trained / "photo.jpg"
    picture.write_bytes(b"any")
    assert main(["rank", "--workdir", run, "--image", str(picture)]) == 1
    assert "reads ready-made features" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--release", "train.tsv"], "is a training file, which names no query"),
        (["--release", "nowhere.tsv"], "no file at"),
        (["--release", "image.tsv", "--queries", "3"], "--queries does not go with --release"),
        (["--direction", "image_to_text"], "is for --release FILE"),
        (["--release", "other.tsv"], "has 3 patches of 6 features, this run reads 4 of 6"),
        (["--release", "nan.tsv"], "nothing usable in .*nan.tsv: 2 image_feature has nan at patch 2, feature 5"),
    ],
)
def test_a_release_evaluation_that_cannot_be_is_refused(arguments, reason, trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    release.write("other.tsv", made.prediction_rows(1, 3, num_patches=3), PREDICTION)
    release.write("nan.tsv", [broken(row, "nan") for row in made.prediction_rows(1, 2)], PREDICTION)
    assert main(["evaluate", "--workdir", "run", *arguments]) == 1
    assert re.search(reason, capsys.readouterr().err)


def test_ranks_count_ties_against_us_and_a_query_of_two_true_rows_twice():
    queries = ("a", "a", "b", "a", "b", "c", "d", "d")
    positive = np.array([1, 0, 1, 1, 0, 1, 0, 0], bool)
    scores = np.array([2.0, 2.0, 5.0, 3.0, 1.0, 9.0, 0.0, 0.0], np.float32)
    figures = release_figures(Scored("text_to_image", queries, positive, scores), scores_matches=True)
    # a: 2 ties with 2, rank 2; 3 is before 2, rank 1; b: rank 1; c has no other row, d no true one
    assert figures["text_to_image"]["rank@1"] == pytest.approx(2 / 3)
    assert (figures["num_queries"], figures["queries_left_out"]) == (3, 2)
    assert figures["matching"]["auc"] == metrics.auc(np.array([2.0, 3.0, 5.0]), np.array([2.0, 2.0, 1.0]))
