"""The baselines against known answers, and as a command on the tiny tables."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cross_decomposition import CCA

from fbjax.cli.main import main
from fbjax.evaluation.baselines.cca import fit_cca
from fbjax.evaluation.baselines.features import text_features
from fbjax.evaluation.baselines.vse import fit_vse
from fbjax.evaluation.compare import compare
from fbjax.tasks.towers.contrast import hinge_loss
from tests.support.runs import write_config


def correlated(num, correlations, rng):
    """Centred features [N, K + 1] and [N, K] whose canonical correlations are known."""
    k = len(correlations)
    basis = rng.normal(size=(num, 2 * k + 1))
    basis = np.linalg.qr(basis - basis.mean(axis=0))[0]
    own, other, rest = basis[:, :k], basis[:, k : 2 * k], basis[:, 2 * k :]
    texts = np.concatenate([own, rest], axis=1) @ rng.normal(size=(k + 1, k + 1))
    images = (own * correlations + other * np.sqrt(1 - correlations**2)) @ rng.normal(size=(k, k))
    return texts + 3.0, images - 5.0


def test_cca_finds_known_correlations_and_counts_directions_by_them():
    correlations = np.array([0.9, 0.6, 0.2])
    texts, images = correlated(400, correlations, np.random.default_rng(0))
    text, image = fit_cca(texts, images, dims=3, ridge=1e-12)
    x, y = ((features - m.mean) @ m.matrix for features, m in ((texts, text), (images, image)))
    np.testing.assert_allclose(x.T @ y / len(x), np.diag(correlations**3), atol=1e-6)  # c of them, c of either's weight
    np.testing.assert_allclose(x.T @ x / len(x), np.diag(correlations**2), atol=1e-6)


def test_cca_has_the_correlations_of_scikit_learn():
    rng = np.random.default_rng(1)
    texts, images = rng.normal(size=(300, 4)), rng.normal(size=(300, 3))
    images[:, 0] += texts[:, 1]
    images[:, 1] -= 0.5 * texts[:, 2]
    theirs = CCA(3, tol=1e-10, max_iter=5000).fit(texts, images).transform(texts, images)
    text, image = fit_cca(texts, images, dims=3, ridge=1e-12)
    ours = ((texts - text.mean) @ text.matrix, (images - image.mean) @ image.matrix)
    pairwise = [[np.corrcoef(x[:, i], y[:, i])[0, 1] for i in range(3)] for x, y in (ours, theirs)]
    np.testing.assert_allclose(*pairwise, atol=1e-4)


@given(st.integers(2, 5), st.integers(0, 99), st.booleans())
def test_the_hinge_is_that_of_a_double_loop(num, seed, hardest):
    rng = np.random.default_rng(seed)
    cosines, groups = rng.uniform(-1, 1, (num, num)), rng.integers(0, 3, num)
    apart = groups[:, None] != groups
    total = 0.0
    for i in range(num):
        for row in (cosines[i], cosines[:, i]):
            costs = [max(0.0, 0.2 - row[i] + row[j]) for j in range(num) if apart[i, j]]
            total += (max(costs, default=0.0) if hardest else sum(costs)) / num
    assert float(hinge_loss(cosines, apart, hardest).mean()) == pytest.approx(total, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("hardest", [False, True])
def test_vse_learns_a_linear_relation_and_carries_it_to_products_it_never_saw(hardest):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(8200, 8))
    texts, images = (hidden @ np.linalg.qr(rng.normal(size=(width, 8)))[0].T for width in (12, 10))
    text, image = fit_vse(texts[:8000], images[:8000], np.arange(8000), 8, hardest, seed=0)
    cosines = text(texts[8000:]) @ image(images[8000:]).T
    assert (cosines.argmax(axis=1) == np.arange(200)).mean() > 0.7  # chance .005


def test_text_features_of_new_texts_are_those_of_the_words_that_were_learned():
    train = ["red dress", "blue dress", "red hat", "blue hat"] * 3
    features, others = text_features(train, ["red dress", "red dress unheard"], 50, seed=0)
    assert features.shape[1] == others.shape[1] <= 8
    np.testing.assert_allclose(others, features[[0, 0]], atol=1e-5)


@pytest.mark.parametrize("family", [["cca"], ["vse", "--hardest"]])
def test_the_command_writes_the_figures_of_every_protocol(family, tmp_path, capsys):
    config, out, workdir = write_config(tmp_path), tmp_path / "metrics.json", str(tmp_path / "kept")
    asked = ["--config", str(config), "--protocol", "candidates,matching,full", "--queries", "9", "--out", str(out)]
    asked += ["--workdir", workdir]
    assert main(["baseline", *family, *asked]) == 0, capsys.readouterr().err
    figures = json.loads(out.read_text())
    assert figures["num_queries"] == figures["full"]["num_queries"] == 9 and figures["full"]["gallery"] == 24
    for table in (figures, figures["full"]):
        for direction in ("image_to_text", "text_to_image"):
            low, high = table[direction]["rank@1.ci"]
            assert 0 <= low <= table[direction]["rank@1"] <= high <= 1
    assert "auc" in figures["matching"] and not [name for name in figures["matching"] if "accuracy" in name]
    assert "full gallery" in capsys.readouterr().out
    compared = compare(workdir, workdir)
    assert compared["text_to_image"]["a"]["rank@1"] == figures["text_to_image"]["rank@1"]
    strict = compared["full"]["image_to_text"]["strict"]
    assert strict["a"]["rank@1"] == figures["full"]["image_to_text"]["rank@1.strict"] and strict["gain@1"] == 0


def test_an_evaluation_does_not_land_in_the_folder_of_a_run(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    asked = ["--config", str(write_config(tmp_path)), "--workdir", str(tmp_path / "run")]
    assert main(["baseline", "vse", *asked]) == 1
    assert "holds a run: choose another folder" in capsys.readouterr().err


def test_wrong_numbers_are_an_error_that_names_them(tmp_path, capsys):
    config = write_config(tmp_path)
    for flag, value in (("--dims", "0"), ("--ridge", "-1"), ("--svd", "0")):
        assert main(["baseline", "cca", "--config", str(config), flag, value]) == 1
        assert f"{flag} {value}: give a " in capsys.readouterr().err
