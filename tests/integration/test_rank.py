"""Rankings and explanations of a tiny run against the Python interface, pair by pair."""

import numpy as np
import pytest

import fbjax
from fbjax.core.console import progress
from fbjax.data.records.builder import build_records
from fbjax.data.sources.base import open_source
from fbjax.data.sources.images import normalise_image
from fbjax.inference.explain import explain
from fbjax.inference.rank import format_table, rank
from fbjax.training.loop import train
from tests.support.runs import tiny_config
from tests.support.tables import encode, make_products, write_csv

pytestmark = pytest.mark.slow  # whole trainings


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranked")
    train(tiny_config(folder, "train.num_steps=6"), folder / "run")
    return folder / "run"


def text_of(product):
    return f"{product['title']} {product['caption']}"


def test_a_ranking_is_the_order_of_the_pairs_scores(run, tmp_path):
    products = make_products(24, seed=1)
    photo = tmp_path / "photo.png"
    photo.write_bytes(encode(products[3]["image"]))
    model = fbjax.load(run)
    query, images = text_of(products[0]), [encode(p["image"], p["format"]) for p in products]
    for ranking, scores in (
        (rank(run, text=query, top=24), model.score([query] * 24, images)),
        (rank(run, image=photo, top=24), model.score([text_of(p) for p in products], [photo] * 24)),
    ):
        best = np.argsort(-scores, kind="stable")
        assert [product.id for product in ranking.products] == [products[i]["id"] for i in best]
        np.testing.assert_allclose(ranking.scores, scores[best], rtol=1e-4, atol=1e-5)
        assert ranking.products[0].text == text_of(products[best[0]])


def test_a_table_of_its_own_and_one_category_are_ranked(run, tmp_path):
    products = make_products(20, seed=5)
    path = write_csv(tmp_path / "other.csv", products)
    ranking = rank(run, text="red bag", data=str(path), category="bag", top=50)
    assert {p.id for p in ranking.products} == {p["id"] for p in products if p["category"] == "bag"}
    assert ranking.num_candidates == 5
    with pytest.raises(ValueError, match="no category 'sofa'; there are bag, dress, hat, shirt"):
        rank(run, text="red bag", data=str(path), category="sofa")


def test_vectors_choose_the_candidates_that_are_scored(run, tmp_path):
    both = tmp_path / "both"
    train(tiny_config(run.parent, "train.num_steps=4", "train.save_every=4", "tasks=tia,itc"), both)
    products = make_products(24, seed=1)
    photo, query = tmp_path / "photo.png", text_of(products[0])
    photo.write_bytes(encode(products[3]["image"]))
    model, path = fbjax.load(both), str(write_csv(tmp_path / "other.csv", products))
    images, texts = [encode(p["image"], p["format"]) for p in products], [text_of(p) for p in products]
    of_query, of_photo = model.embed_text([query])[0], model.embed_image([photo])[0]
    for asked, cosines, scores in (
        ({"text": query}, model.embed_image(images) @ of_query, model.score([query] * 24, images)),
        ({"image": photo}, model.embed_text(texts) @ of_photo, model.score(texts, [photo] * 24)),
    ):
        near = np.argsort(-cosines)[:6]
        expected = [products[i]["id"] for i in near[np.argsort(-scores[near])]]
        ranking = rank(both, data=path, top=6, scored=6, **asked)
        assert [product.id for product in ranking.products] == expected
        assert (ranking.num_candidates, ranking.num_scored) == (24, 6)
        assert "the 6 with the nearest vectors were scored" in format_table(ranking, 80)[-1]
        assert rank(both, data=path, top=6, scored=0, **asked).num_scored == 24


@pytest.mark.parametrize(
    "query, said",
    [
        ("红色 dress", "not known to this model, so not searched for: 红, 色\n"),
        ("红色连衣裙!", "no word of the query is known to this model: 红, 色, 连, 衣, 裙; its scores mean nothing\n"),
        ("the red dress.", ""),
    ],
)
def test_words_that_the_model_does_not_know_are_said(run, capsys, query, said):
    image = encode(make_products(1)[0]["image"])
    rank(run, text=query, top=1)
    assert capsys.readouterr().err == said
    fbjax.load(run).rank(query, [image, image])
    assert capsys.readouterr().err == said


def test_the_table_keeps_to_the_width_of_the_terminal(run):
    lines = format_table(rank(run, text="a red bag", top=5), width=60)
    assert len(lines) == 7 and max(map(len, lines)) <= 60 and lines[1].startswith("  1 ")


def test_an_explanation_is_the_fall_of_the_score_when_a_part_is_hidden(run):
    product = make_products(1, seed=1)[0]
    model, text, image = fbjax.load(run), text_of(product), encode(product["image"], product["format"])
    explanation = explain(model, text, image, "occlusion")
    assert explanation.score == pytest.approx(model.score([text], [image])[0], rel=1e-4)
    assert [word for word, _ in explanation.words] == text.replace(".", " .").split()
    assert explanation.patches.shape == (4, 4)

    hidden, (first, drop) = text.replace(text.split()[1], "[MASK]", 1), explanation.words[1]
    assert first == text.split()[1]
    without = model.score([hidden], [image])[0]
    assert drop == pytest.approx(explanation.score - without, rel=1e-3, abs=1e-5)
    assert np.abs(explanation.patches).max() > 0


def test_what_is_kept_changes_no_bit_of_a_score(run, tmp_path):
    products = make_products(24, seed=1)
    texts, images = [text_of(p) for p in products], [encode(p["image"], p["format"]) for p in products]
    model, forgetful = fbjax.load(run), fbjax.load(run, cache_bytes=0)
    calls = [(texts[:1], images[:1]), (texts, images), (texts[:2] * 12, images), (texts[3:4], images[5:6])]
    for of, with_ in calls:
        assert np.array_equal(model.score(of, with_), forgetful.score(of, with_))
    info = model.cache_info()
    assert (info.image_hits, info.image_misses, info.entries) == (1 + 24 + 1, 24, 24)
    assert forgetful.cache_info()[2:] == (0, 50, 0, 0, 0)
    few = fbjax.load(run, cache_bytes=info.bytes // 24 * 3)
    few.score(texts, images)
    assert few.cache_info().entries == 3 and few.cache_info().bytes <= few.cache_bytes
    (tmp_path / "copy.png").write_bytes(images[0])  # by content: the same picture elsewhere is no other one
    model.score(texts[:1], [tmp_path / "copy.png"])
    assert model.cache_info().image_misses == 24
    model.cache_clear()
    assert model.cache_info()[:6] == (0,) * 6
    one = fbjax.load(run, rows=1)
    np.testing.assert_allclose(one.score(texts, images), model.score(texts, images), rtol=1e-4, atol=1e-5)


def test_a_run_without_towers_gives_no_vectors(run):
    with pytest.raises(ValueError, match="this run makes no vectors, its tasks are mlm, mpm, tia"):
        fbjax.load(run).embed_text(["red bag"])


def test_products_are_read_back_as_they_stood_in_the_table(run):
    config, vocabulary = fbjax.load(run).run.config, fbjax.load(run).run.vocabulary
    records = build_records(
        open_source(config.data, config.patches.image_size), vocabulary, config.data.prepared, progress
    )["validation"]
    products = make_products(24, seed=1)
    for read, product in zip(records.products([0, 7]), (products[0], products[7]), strict=True):
        assert (read.id, read.text, read.category) == (product["id"], text_of(product), product["category"])
        assert read.image == normalise_image(encode(product["image"], product["format"]), 32)
