"""Explanations of scores against identities, NumPy and each other, for runs that score pairs and for towers."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from scipy.stats import spearmanr

import fbjax
from fbjax.inference.explain import METHODS, explain
from fbjax.inference.explain.attention import rollout
from fbjax.inference.explain.request import explain_request
from fbjax.report.sections.explained import write_explanation
from tests.support.tables import encode, make_products
from tests.support.untrained import randomised, tiny, write_untrained

TOWERS = {"tasks": "itc", "tasks__itc__embedding_dim": 16, "patches__whole_image": True}
RUNS = {
    "pairs": {"tasks": "tia,tpa"},
    "linear": TOWERS | {"tasks__itc__branches": "linear"},
    "both": TOWERS | {"tasks__itc__branches": "both", "tasks__itc__encoder_tokens": 8},
}
PRODUCTS = make_products(4, seed=1)
PAIRS = [(f"{p['title']} {p['caption']}", encode(p["image"])) for p in PRODUCTS]
TEXT, IMAGE = PAIRS[0]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explained")

    def load(name, changes):
        config = tiny("quickstart_fashionbert", folder, patches__network="pixels", **changes)
        return fbjax.load(write_untrained(config, folder / name), quiet=True)

    return {name: load(name, changes) for name, changes in RUNS.items()}


@pytest.fixture(params=RUNS)
def model(request, models):
    return models[request.param]


def values(explanation):
    """All values of an explanation's parts."""
    return np.array([value for _, value in explanation.words]), explanation.patches.ravel()


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=tolerance)


def test_integrated_gradients_add_up_to_the_score(model):
    for text, image in PAIRS[:2]:
        found, occluded = (explain(model, text, image, method) for method in ("gradient", "occlusion"))
        words, patches = values(found)
        close(found.score, model.score([text], [image])[0])
        close(words.sum(), found.score - found.without_words, 1e-3)
        close(patches.sum() + (found.whole_image or 0.0), found.score - found.without_patches, 1e-3)
        for end in ("score", "without_words", "without_patches"):
            close(getattr(occluded, end), getattr(found, end))
    assert (found.whole_image is None) == found.scores_matches


def test_hidden_words_are_masked_and_hidden_patches_are_zero(models):
    model = models["pairs"]
    found = explain(model, TEXT, IMAGE, "occlusion")
    (pieces, _), *_ = model.run.vocabulary.pieces([TEXT])
    close(found.without_words, model.score([" ".join(["[MASK]"] * len(pieces))], [IMAGE])[0])
    greys = model.score([TEXT] * 2, [np.full((32, 32, 3), grey, np.uint8) for grey in (127, 128)])  # features about 0
    close(found.without_patches, greys.mean(), 1e-3)


def test_a_hidden_word_leaves_the_bag_with_its_pairs(models):
    model, text = models["linear"], "the red leather bag"
    (the, red, leather, bag), _ = values(explain(model, text, IMAGE, "occlusion"))
    whole = model.score([text], [IMAGE])[0]
    assert the == 0
    close(bag, whole - model.score(["red leather"], [IMAGE])[0])
    close(red, whole - model.score(["leather bag"], [IMAGE])[0])
    close(leather, whole - model.score(["red zebra bag"], [IMAGE])[0])  # no bag holds zebra: red and bag, no pair


def test_gradient_and_occlusion_agree_on_the_order(model):
    agreement = []
    for text, image in PAIRS:
        methods = [values(explain(model, text, image, method)) for method in ("gradient", "occlusion")]
        agreement.append([spearmanr(*parts).statistic for parts in zip(*methods, strict=True)])
    words, patches = np.mean(agreement, axis=0)
    assert words > 0.4 and patches > 0.6


@pytest.mark.parametrize("method", METHODS)
def test_other_weights_have_another_explanation(models, method):
    """The sanity check of Adebayo et al. 2018 (arXiv 1810.03292): what stays is not of the model."""
    model = models["pairs"]
    others = [
        dataclasses.replace(model, params={"fashionbert": randomised(model.params["fashionbert"], seed)})
        for seed in (0, 1, 2)
    ]
    for part in range(2):
        same, *changed = (
            np.mean([spearmanr(*(values(explain(m, *p, method))[part] for m in (model, other)))[0] for p in PAIRS])
            for other in others
        )
        assert same == pytest.approx(1) and max(map(abs, changed)) < 0.6


def test_the_rollout_of_two_layers_by_hand():
    first, second = np.array([[0.5, 0.5], [0.0, 1.0]]), np.array([[0.2, 0.8], [1.0, 0.0]])
    heads = np.stack([np.stack([first, first]), np.stack([second, second])])
    with_residual = [(np.eye(2) + layer) / 2 for layer in (first, second)]  # [[.75, .25], [0, 1]], [[.6, .4], [.5, .5]]
    expected = [[0.6 * 0.75, 0.6 * 0.25 + 0.4], [0.5 * 0.75, 0.5 * 0.25 + 0.5]]
    close(rollout(heads), expected)
    close(with_residual[1] @ with_residual[0], expected)


def test_a_rollout_is_the_sum_over_all_paths():
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(4), (3, 2, 4))  # [S, H, L, L]
    reach, steps = rollout(weights), (weights.mean(axis=1) + np.eye(4)) / 2
    expected = np.zeros((4, 4))
    for path in itertools.product(range(4), repeat=4):  # from the last layer's output back to the input
        expected[path[0], path[-1]] += np.prod([steps[2 - i][path[i], path[i + 1]] for i in range(3)])
    close(reach, expected)
    close(reach.sum(axis=1), 1)
    gated = weights * np.array([1.5, -0.5])[:, None, None]
    close(rollout(gated).sum(axis=1), 1)


def test_words_attend_to_patches(models):
    found = explain(models["pairs"], TEXT, IMAGE, "attention")
    words, patches = values(found)
    assert found.word_patches.shape == (len(words), 4, 4) and found.without_words is None
    assert min(words.min(), patches.min(), found.word_patches.min()) > 0
    assert 0.5 < words.sum() + patches.sum() < 1  # the rest is [CLS] and [SEP]
    assert np.ptp(found.word_patches.sum(axis=(1, 2))) > 0
    close(found.score, models["pairs"].score([TEXT], [IMAGE])[0])
    with pytest.raises(ValueError, match="has towers .tasks itc.: use 'gradient' or 'occlusion'"):
        explain(models["both"], TEXT, IMAGE, "attention")


def test_words_go_to_patches(models, tmp_path):
    """Against the task's own transport over the hidden states of `Model`'s parts; and on the page."""
    model = models["pairs"]
    found = explain(model, TEXT, IMAGE, "alignment")
    words, patches = values(found)
    assert found.word_patches.shape == (len(words), 4, 4) and found.whole_image is None
    close(found.word_patches.sum(axis=(1, 2)), 1)
    close(found.score, model.score([TEXT], [IMAGE])[0])
    (ids, names), *_ = model.run.vocabulary.pieces([TEXT])
    pieces = np.bincount(names)[: len(words)]
    weights = pieces / pieces.sum()
    close(weights @ found.word_patches.reshape(len(words), -1), 1 / 16, 1e-3)
    close(weights @ words, patches.mean(), 1e-3)  # both are the mean cosine over the plan
    page = write_explanation(TEXT, IMAGE, found, tmp_path / "page.html").read_text()
    assert page.count('class="goes') == len(words) and page.count('class="patch"') == len(
        {int(one.argmax()) for one in found.word_patches}
    )
    with pytest.raises(ValueError, match="needs a task that aligns words with patches, and this run has itc"):
        explain(models["both"], TEXT, IMAGE, "alignment")


def test_padding_changes_no_explanation(model, monkeypatch):
    text, of_pairs = "red leather bag", {"attention", "alignment"}
    methods = [m for m in METHODS if m not in of_pairs or model.run.scores_pairs]
    short = [explain(model, text, IMAGE, method) for method in methods]
    monkeypatch.setattr("fbjax.inference.explain.pair.BUCKET", 24)
    for method, expected in zip(methods, short, strict=True):
        for found, wanted in zip(values(explain(model, text, IMAGE, method)), values(expected), strict=True):
            close(found, wanted)


def test_words_that_are_cut_off_or_unknown(model):
    long = explain(model, text := f"{TEXT} {TEXT} {TEXT}", IMAGE)
    close(long.score, model.score([text], [IMAGE])[0])
    assert len(long.words) < 24 and [word for word, _ in long.words[:3]] == TEXT.split()[:3]
    unknown = explain(model, "红 red dress", IMAGE)
    assert [word for word, _ in unknown.words] == ["红", "red", "dress"]
    if not model.run.config.reads_encoder:
        assert unknown.words[0][1] == 0 and unknown.words[1][1] != 0
    with pytest.raises(ValueError, match="text '  ' has no words"):
        explain(model, "  ", IMAGE)
    with pytest.raises(
        ValueError, match="method 'saliency' is unknown .use gradient, occlusion, attention, alignment."
    ):
        model.explain(TEXT, IMAGE, method="saliency")


def test_a_second_explanation_compiles_nothing(models, caplog):
    for method in METHODS:
        explain(models["pairs"], *PAIRS[1], method)
    with jax.log_compiles(), caplog.at_level("DEBUG", logger="jax"):
        for method in METHODS:
            explain(models["pairs"], *PAIRS[0], method)
    assert not [record for record in caplog.messages if "Compiling" in record]


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"text": "a"}, "a text and an image; --id"),
        ({"image": "a.png"}, "a text and an image; --id"),
        ({"text": "a", "image": "a.png", "id": "7"}, "--id 7 says nothing beside"),
        ({"text": "a", "image": "a.png", "data": "t.csv"}, "--data t.csv needs the --id"),
    ],
)
def test_what_is_asked_is_checked_before_the_run_is_read(asked, said):
    with pytest.raises(ValueError, match=said):
        explain_request("nowhere", **asked)
