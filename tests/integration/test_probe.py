"""The linear probe against scikit-learn's figures and known answers, and on tiny runs of both kinds."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

import fbjax
from fbjax.cli.main import main
from fbjax.evaluation.baselines.probe import fit, label_figures, pooled_pairs, probe
from fbjax.evaluation.recognition.classification import classification
from tests.support.runs import train_towers_and_matcher

pytestmark = pytest.mark.slow  # whole trainings


@pytest.mark.filterwarnings("ignore:A single label was found", "ignore:y_pred contains classes not in y_true")
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_figures_are_those_of_scikit_learn(pairs):
    truth, told = np.array(pairs).T
    figures = classification(truth, told)
    assert figures["accuracy"] == pytest.approx(accuracy_score(truth, told))
    assert figures["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, told))
    assert figures["macro_f1"] == pytest.approx(f1_score(truth, told, average="macro"))
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        low, high = figures[f"{name}.ci"]
        assert 0 <= low <= high <= 1


def clouds(num, rng):
    """Three labels as clouds of points, and a fourth number that is noise of a thousand times their size."""
    labels = rng.integers(0, 3, num)
    return np.concatenate(
        [3 * np.eye(3)[labels] + rng.normal(size=(num, 3)), 1e3 * rng.normal(size=(num, 1))], 1
    ), labels


def test_what_is_there_linearly_is_found_and_what_is_not_is_not():
    rng = np.random.default_rng(0)
    (features, labels), (other, asked) = clouds(300, rng), clouds(300, rng)
    told, strength = fit(features, labels, np.arange(300), other)
    assert (told == asked).mean() > 0.9
    told, weak = fit(rng.normal(size=(300, 40)), labels, np.arange(300), rng.normal(size=(300, 40)))
    assert (told == asked).mean() < 0.45 and weak < strength or weak == 1e-3  # nothing to learn: the strongest penalty


def test_the_strength_is_never_chosen_on_what_it_is_tested_on():
    """What is asked does not reach the choice: only its predictions follow."""
    rng = np.random.default_rng(0)
    (features, labels), (other, _) = clouds(200, rng), clouds(50, rng)
    _, strength = fit(features, labels, np.arange(200), other)
    assert strength == fit(features, labels, np.arange(200), rng.normal(size=(7, 4)))[1]


def test_a_group_is_never_on_both_sides_of_the_choice():
    """What tells groups apart and nothing else is learned by heart, and helps with no other group."""
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat(np.arange(60), 4))
    labels = (rng.random(60) < 0.3).astype(int)[groups]
    assert fit(np.eye(60)[groups], labels, groups, np.eye(60))[1] == 1e-3
    assert fit(np.eye(60)[groups], labels, np.arange(240), np.eye(60))[1] > 1e-3


def test_products_without_a_label_or_with_an_unseen_one_are_counted():
    features = {"representation": (np.eye(4)[[0, 0, 1, 1, 2]], np.eye(4)[[0, 1, 1, 3]])}
    named = [np.array(["a", "a", "b", "b", ""]), np.array(["a", "b", "", "z"])]
    figures = label_figures(features, named, np.arange(5), "kind")
    assert figures["without_label"] == {"train": 1, "validation": 1} and figures["unseen"] == {
        "labels": 1,
        "products": 1,
    }
    assert (figures["classes"], figures["train"], figures["validation"]) == (2, 4, 3)
    assert figures["representation"]["accuracy"] == pytest.approx(2 / 3)  # "z" cannot be told
    assert figures["majority"]["accuracy"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="'kind' has 1 labels among 2"):
        label_figures(features, [np.array(["a", "a", "", "", ""]), named[1]], np.arange(5), "kind")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, trains_on_one_device):
    folder = tmp_path_factory.mktemp("probed")
    train_towers_and_matcher(folder)
    return folder


def test_both_kinds_of_run_are_probed(runs, capsys):
    out = runs / "probe.json"
    for name, size, what in (("towers", 16, "product vector"), ("matcher", 32, "pooled [CLS]")):
        asked = ["--labels", "category,title", "--products", "40", "--out", str(out)]
        assert main(["probe", "--workdir", str(runs / name), *asked]) == 0, capsys.readouterr().err
        figures, printed = json.loads(out.read_text()), capsys.readouterr().out
        assert (figures["representation"], figures["size"]) == (what, size)
        assert (figures["train_products"], figures["validation_products"]) == (40, 24)
        category = figures["labels"]["category"]
        assert category["classes"] == 4 and category["majority"]["accuracy"] == 0.25
        assert category["text"]["accuracy"] > 0.9  # the texts name it
        assert figures["labels"]["title"]["unseen"]["products"] > 0 and "unseen in training" in printed


def test_pooled_vectors_are_those_of_each_pair_alone(runs):
    model = fbjax.load(runs / "matcher")
    records = model.records()
    rows = np.array([5, 17, 2])
    vectors = pooled_pairs(model, records, rows)
    products = records.products(rows)
    head = model.variables["fashionbert"]["tia"]
    logits = vectors @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    scores = model.score([p.text for p in products], [p.image for p in products])
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], scores, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_probed_is_an_error_that_names_it(runs, capsys):
    assert main(["probe", "--workdir", str(runs / "matcher"), "--labels", "colour"]) == 1
    assert "no column 'colour'; it has id, title" in capsys.readouterr().err
    assert main(["probe", "--workdir", str(runs / "matcher"), "--products", "1"]) == 1
    assert "--products 1" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="no checkpoint 3"):
        probe(runs / "matcher", step=3)
