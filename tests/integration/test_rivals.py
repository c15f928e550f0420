"""The paper's rivals from training to figures: VSE++ as a form of the towers, SCAN as a scorer of its own."""

import numpy as np
import pytest

import fbjax
from fbjax.cli.main import main
from fbjax.evaluation.evaluate import evaluate
from fbjax.export.package import export
from fbjax.inference.explain import explain
from fbjax.inference.rank import rank
from fbjax.inference.token_scorer import TokenScorer
from fbjax.training.loop import train
from tests.support.runs import same, tiny_config, without_steps_after
from tests.support.tables import encode, make_products
from tests.unit.test_scan import score_by_loops

pytestmark = pytest.mark.slow  # whole trainings

FEW = ("train.num_steps=8", "train.save_every=4", "model.num_layers=1", "adaptive.method=fixed")
SCAN = ("tasks=scan", "tasks.scan.embedding_dim=16", "tasks.scan.positions=true", "tasks.scan.pooling=logsumexp")
SCAN += ("tasks.scan.hardest_from=4",)
VSEPP = ("tasks=itc", "tasks.itc.embedding_dim=16", "tasks.itc.form=hardest", "tasks.itc.hardest_from=4")
PRODUCTS = make_products(24, seed=1)
TEXTS = [f"{product['title']} {product['caption']}" for product in PRODUCTS]
IMAGES = [encode(product["image"], product["format"]) for product in PRODUCTS]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of the runs "scan" and "vsepp", and the last state of the first."""
    folder = tmp_path_factory.mktemp("rivals")
    state = train(tiny_config(folder, *FEW, *SCAN), folder / "scan")
    train(tiny_config(folder, *FEW, *VSEPP), folder / "vsepp")
    return folder, state


def test_a_resumed_run_of_scan_ends_bit_identical(runs, tmp_path):
    folder, state = runs
    workdir = without_steps_after(folder / "scan", 4, tmp_path / "run")
    assert same(train(tiny_config(folder, *FEW, *SCAN), workdir), state)


def test_scores_of_scan_are_those_of_loops_over_its_words_and_regions(runs):
    """In batches of any size, with texts of different lengths; and of the Python interface."""
    model = fbjax.load(runs[0] / "scan", quiet=True)
    network = model.run.model
    ids = np.stack([model.encode_text(text) for text in TEXTS[:5] + ["red"]])
    pixels = np.stack([model.read_image(image) for image in IMAGES[:4]])
    pairs = np.stack(np.meshgrid(np.arange(6), np.arange(4)), axis=-1).reshape(-1, 2)

    def apply(*arrays, method):
        return network.apply({"params": model.variables["fashionbert"]}, *arrays, method=method)

    words = np.asarray(apply(apply(ids, method="embed_text"), ids != 0, method="words"), float)
    regions = np.asarray(apply(model.run.patches.apply({}, pixels), method="regions"), float)
    scales = "text_to_image", "logsumexp", 9.0, 6.0
    expected = [score_by_loops(words[t, ids[t] != 0], regions[i], *scales) for t, i in pairs]
    for size in (1, 64):
        scorer = TokenScorer(network, model.run.patches, model.mesh, size)
        batches = [pixels[start : start + scorer.batch_size] for start in range(0, 4, scorer.batch_size)]
        embedded = scorer.embed_images(model.variables, batches)
        np.testing.assert_allclose(scorer.score(model.variables, ids, embedded, pairs), expected, rtol=1e-4)
        assert scorer.expected_seconds(model.variables, ids, embedded, pairs) > 0
    found = model.score([(*TEXTS[:5], "red")[t] for t, _ in pairs], [IMAGES[i] for _, i in pairs])
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_scan_is_evaluated_over_lists_and_re_ranks_what_towers_find(runs):
    folder, _ = runs
    figures = evaluate(
        folder / "scan", protocols=("candidates", "matching", "full"), towers=folder / "vsepp", rerank=24
    )
    scores = np.array(
        fbjax.load(folder / "scan", quiet=True).score([t for t in TEXTS for _ in IMAGES], IMAGES * len(TEXTS))
    ).reshape(24, 24)
    groups = np.array([product["group"] for product in PRODUCTS])
    for direction, by_query in (("text_to_image", scores), ("image_to_text", scores.T)):
        better = (by_query >= np.diagonal(by_query)[:, None]) & (groups[:, None] != groups)
        alone = figures["full"]["reranked_alone"][direction]
        assert alone["rank@5"] == pytest.approx((better.sum(axis=1) < 5).mean())
        assert 0 <= figures[direction]["rank@1"] <= 1
    assert "accuracy" not in figures["matching"] and 0 <= figures["matching"]["auc"] <= 1  # no score says "match"


def test_one_run_may_find_by_vectors_and_re_rank_by_tokens(runs, tmp_path):
    folder, _ = runs
    both = ("tasks=itc,scan", "tasks.itc.embedding_dim=16", "tasks.scan.embedding_dim=8")
    train(tiny_config(folder, *FEW, *both), tmp_path / "both")
    figures = evaluate(tmp_path / "both", protocols=("candidates", "full"), rerank=5)
    assert figures["full"]["rerank"] == 5 and figures["full"].keys() >= {"reranked", "reranked_alone"}
    model = fbjax.load(tmp_path / "both", quiet=True)
    assert model.embed_text(TEXTS[:2]).shape == (2, 16)
    vectors = (model.embed_text(TEXTS[:2]) * model.embed_image(IMAGES[:2])).sum(axis=1)
    assert np.abs(model.score(TEXTS[:2], IMAGES[:2]) - vectors).max() > 1e-3
    assert rank(tmp_path / "both", text=TEXTS[0], top=3, scored=4).num_scored == 4


def test_a_hidden_word_of_scan_is_masked(runs):
    model, text = fbjax.load(runs[0] / "scan", quiet=True), "red leather bag"
    found = explain(model, text, IMAGES[0], "occlusion")
    assert found.score == pytest.approx(model.score([text], [IMAGES[0]])[0], abs=1e-5)
    (pieces, _), *_ = model.run.vocabulary.pieces([text])
    masked = model.score([" ".join(["[MASK]"] * len(pieces))], [IMAGES[0]])[0]
    assert found.without_words == pytest.approx(masked, abs=1e-5) and np.abs(found.patches).max() > 0
    with pytest.raises(ValueError, match="this run compares tokens .scan.: use 'occlusion'"):
        explain(model, text, IMAGES[0])


def test_the_commands_take_scan_like_any_other_run(runs, tmp_path, capfd):
    workdir = str(runs[0] / "scan")
    assert main(["evaluate", "--workdir", workdir, "--protocol", "candidates", "--queries", "5"]) == 0
    assert main(["rank", "--workdir", workdir, "--text", TEXTS[0], "--top", "3"]) == 0
    assert "best 3 of 24 products, by the cosines of tokens" in capfd.readouterr().out
    assert main(["report", "--workdir", workdir, "--out", str(tmp_path / "page.html")]) == 0
    assert "Stacked cross attention" in (tmp_path / "page.html").read_text()


def test_what_a_scorer_of_tokens_cannot_do_is_told_with_a_remedy(runs, tmp_path):
    folder, _ = runs
    with pytest.raises(ValueError, match="protocol full needs trained towers.*--towers"):
        evaluate(folder / "scan", protocols=("full",))
    with pytest.raises(ValueError, match="makes no vectors, its tasks are scan"):
        fbjax.load(folder / "scan", quiet=True).embed_text(["red"])
    with pytest.raises(ValueError, match=r"by its tokens \(task scan\), which exports do not: use it from Python"):
        export(folder / "scan", "stablehlo", tmp_path / "out", say=print)
    with pytest.raises(ValueError, match="needs a run that scores pairs"):
        evaluate(folder / "vsepp", protocols=("full",), rerank=5)


def test_vse_plus_plus_is_evaluated_like_other_towers(runs):
    figures = evaluate(runs[0] / "vsepp", protocols=("candidates", "full"))
    assert {"image_to_text", "text_to_image", "full"} <= figures.keys()
