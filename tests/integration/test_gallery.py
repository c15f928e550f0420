"""The whole gallery against brute force: ranks with and without the rest of a query's group, re-ranking, gains."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import fbjax
from fbjax.cli.main import main
from fbjax.evaluation import metrics
from fbjax.evaluation.evaluate import evaluate
from fbjax.evaluation.galleries.gallery import choose_queries, full_figures, reranked, search
from fbjax.evaluation.protocols import print_figures
from fbjax.inference.catalogue.embed_catalogue import embed_records
from fbjax.inference.embedder import make_embedder
from fbjax.report.report import write_report
from fbjax.runs.loaded import LoadedRun
from tests.support.runs import train_towers_and_matcher
from tests.support.tables import make_products, write_parquet

few_values = st.sampled_from([-1.0, 0.0, 0.5, 1.0])  # so that ties abound, and products are exact


@st.composite
def galleries(draw):
    """Vectors of queries and gallery [N, 3], groups [N], how many are re-ranked, and a score for every pair [N, N]."""
    num = draw(st.integers(1, 7))
    queries, gallery = (draw(arrays(np.float32, (num, 3), elements=few_values)) for _ in range(2))
    groups = draw(arrays(np.int32, num, elements=st.integers(0, 3)))
    scores = draw(arrays(np.float64, (num, num), elements=few_values))
    return queries, gallery, groups, draw(st.integers(1, 8)), scores


def rank_among(scores, own, rivals):
    return 1 + sum(scores[j] >= scores[own] for j in rivals if j != own)


def apart_from(own, groups):
    return [j for j in range(len(groups)) if groups[j] != groups[own]]


@given(galleries())
def test_ranks_are_those_of_a_double_loop_with_ties_lost(case):
    queries, gallery, groups, size, _ = case
    found = search(queries, gallery, np.arange(len(groups)), groups, size)
    for q, cosines in enumerate(queries @ gallery.T):
        assert found.strict[q] == rank_among(cosines, q, range(len(groups)))
        assert found.apart[q] == rank_among(cosines, q, apart_from(q, groups))
        rivals = sorted(cosines[[q, *apart_from(q, groups)]])[-size:]
        assert sorted(found.cosines[q])[-len(rivals) :] == rivals


@given(galleries())
def test_a_new_order_of_the_nearest_is_that_of_a_loop_and_leaves_ranks_beyond_them(case):
    queries, gallery, groups, size, scores = case
    found = search(queries, gallery, np.arange(len(groups)), groups, size)
    ranks = reranked(found, np.take_along_axis(scores, found.nearest, axis=1))
    for q in range(len(groups)):
        listed = set(found.nearest[q].tolist()) & {q, *apart_from(q, groups)}
        assert ranks[q] == (found.apart[q] if found.apart[q] > size else rank_among(scores[q], q, listed))


def test_the_figures_of_a_gallery_by_hand():
    # 0 and 1 are variants with the same image; text 3 points at image 2 first
    texts = np.array([[1, 0, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0.96, 0.28]], np.float32)
    images = np.array([[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0.6, 0.8]], np.float32)
    asked = []

    def score(pairs):  # only the own pairs are likely
        asked.append(pairs.tolist())
        return np.where(pairs[:, 0] == pairs[:, 1], 3.0, -3.0)

    figures, _ = full_figures(texts, images, np.array([0, 0, 1, 2]), size=2, score=score, scale=100.0)
    assert (figures["gallery"], figures["num_queries"], figures["rerank"]) == (4, 4, 2)
    by_text = figures["text_to_image"]
    assert (by_text["rank@1"], by_text["rank@1.strict"], by_text["rank@5"]) == (0.75, 0.25, 1.0)
    assert figures["image_to_text"]["rank@1.strict"] == 0.75
    alone, both = figures["reranked_alone"]["text_to_image"], figures["reranked"]["text_to_image"]
    assert (by_text["rank@1"], alone["rank@1"], both["rank@1"]) == (0.75, 1.0, 0.75)
    assert (alone["gain@1"], both["gain@1"]) == (0.25, 0.0)  # 16 of the cosines against 6 of the scores
    (pairs,) = asked
    assert sorted(map(tuple, pairs)) == sorted(set(map(tuple, pairs)))


@st.composite
def photographed(draw):
    """Vectors of texts and photos [N, 3], groups [N] and text codes [N]: 1 to 6 photos a text, 1 or 2 texts a group."""
    photos = draw(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 2)), min_size=1, max_size=6))
    codes = np.repeat(np.arange(len(photos)), [count for count, _ in photos])
    groups = np.array([sum(new > 0 for _, new in photos[: i + 1]) for i in range(len(photos))])[codes]
    order = draw(st.permutations(range(len(codes))))
    vectors = [draw(arrays(np.float32, (size, 3), elements=few_values)) for size in (len(photos), len(codes))]
    return vectors[0][codes][order], vectors[1][order], groups[order], codes[order]


@settings(max_examples=20)  # each with its intervals
@given(photographed())
def test_ranks_by_product_are_those_of_a_double_loop(case):
    texts, photos, groups, codes = case
    figures, _ = full_figures(texts, photos, groups, text_codes=codes)
    products = sorted(set(zip(groups.tolist(), codes.tolist(), strict=True)))
    if len(products) == len(codes):
        assert "products" not in figures and not [name for name in figures["text_to_image"] if "product" in name]
        return
    assert (figures["products"], figures["photos"]) == (len(products), len(codes))
    text_of = {product: texts[[p == product for p in zip(groups, codes, strict=True)]][0] for product in products}
    of_text, of_photo = [], []
    for (group, code), vector in text_of.items():
        cosines = photos @ vector
        best = max(c for c, g, t in zip(cosines, groups, codes, strict=True) if (g, t) == (group, code))
        of_text.append(1 + sum(c >= best for c, g in zip(cosines, groups, strict=True) if g != group))
    for photo, group, code in zip(photos, groups, codes, strict=True):
        own = photo @ text_of[group, code]
        of_photo.append(1 + sum(photo @ vector >= own for (g, _), vector in text_of.items() if g != group))
    for direction, ranks in {"text_to_image": of_text, "image_to_text": of_photo}.items():
        for k in (1, 5, 10):
            assert figures[direction][f"rank@{k}.product"] == pytest.approx(np.mean(np.array(ranks) <= k))


def test_galleries_of_any_size_are_ranked_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    texts, photos = rng.normal(size=(2, 30, 4)).astype(np.float32)
    groups, codes = np.repeat(np.arange(10), 3), np.repeat(np.arange(15), 2)
    whole = full_figures(texts, photos, groups, text_codes=codes)
    monkeypatch.setattr("fbjax.evaluation.galleries.gallery.COSINES_AT_ONCE", 70)
    assert full_figures(texts, photos, groups, text_codes=codes) == whole


def test_several_photos_by_hand():
    # product 0 has photos 0 and 1, product 1 photo 2, whose text likes photo 1 best
    texts = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    photos = np.array([[0.6, 0, 0.8], [0.8, 0.6, 0], [0, 0.28, 0.96]], np.float32)
    figures, _ = full_figures(texts, photos, np.array([7, 7, 3]), text_codes=np.array([5, 5, 2]))
    assert figures["text_to_image"]["rank@1.product"] == 0.5  # the text of product 0 finds photo 1, once
    assert figures["text_to_image"]["rank@1.strict"] == pytest.approx(1 / 3)  # photo 1, but not photo 0
    assert figures["image_to_text"]["rank@1.product"] == 1.0
    assert figures["image_to_text"]["rank@1.strict"] == pytest.approx(1 / 3)  # a tie between the texts of 0 and 1
    said = []
    print_figures({"full": figures}, said.append)
    assert sum("by product: 2 with 3 photos" in line for line in said) == 2


def test_a_gain_is_paired():
    before, ranks = np.array([1, 2, 1, 3] * 25), np.array([1, 1, 1, 3] * 25)
    figures = metrics.gains(ranks, before)
    assert figures["gain@1"] == 0.25 and figures["gain@5"] == 0.0 and figures["gain@5.ci"] == [0.0, 0.0]
    low, high = figures["gain@1.ci"]
    assert 0.15 < low < 0.25 < high < 0.35
    assert metrics.gains(before, ranks)["gain@1"] == -0.25


def test_fewer_queries_are_drawn_from_the_whole_split():
    rows = choose_queries(1000, 50)
    assert len(set(rows.tolist())) == 50 and rows.max() > 800 and rows.tolist() == sorted(rows)
    assert choose_queries(9, None).tolist() == list(range(9)) == choose_queries(9, 20).tolist()


def test_vectors_that_are_not_finite_raise():
    with pytest.raises(ValueError, match="not finite"):
        search(np.full((2, 3), np.nan), np.ones((2, 3)), np.arange(2), np.arange(2), 1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, trains_on_one_device):
    return train_towers_and_matcher(tmp_path_factory.mktemp("towers"))


def vectors_and_scores(towers, matcher):
    """Cosines and match scores [24, 24] of every text with every image of the validation split, and its groups."""
    loaded, model = LoadedRun.load(towers), fbjax.load(matcher)
    records, embedder = loaded.records(), make_embedder(loaded.run, loaded.mesh)
    texts, images = (embed_records(loaded, embedder, records, what) for what in ("text", "image"))
    products = records.products(range(24))
    pairs = [(text, image) for text in products for image in products]
    scores = model.score([text.text for text, _ in pairs], [image.image for _, image in pairs])
    scale = float(np.exp(loaded.params["fashionbert"]["log_scale"]))
    return texts @ images.T, scores.reshape(24, 24), scale, records.groups


def test_a_run_is_re_ranked_with_the_towers_of_another_as_by_brute_force(runs, capsys):
    towers, matcher = runs
    figures = evaluate(matcher, protocols=("full",), towers=towers, rerank=4)
    assert figures.keys() == {"full", "checkpoint_step", "pairs_per_second"}
    cosines, scores, scale, groups = vectors_and_scores(towers, matcher)
    for direction, (c, s) in {"text_to_image": (cosines, scores), "image_to_text": (cosines.T, scores.T)}.items():
        for name, order in {"reranked": s + scale * c, "reranked_alone": s}.items():
            ranks = []
            for q in range(24):
                rivals = apart_from(q, groups)
                listed = sorted([q, *rivals], key=lambda j: -c[q][j])[:4]
                plain = rank_among(c[q], q, rivals)
                ranks.append(rank_among(order[q], q, listed) if plain <= 4 else plain)
            for k in (1, 5, 10):
                assert figures["full"][name][direction][f"rank@{k}"] == pytest.approx(np.mean(np.array(ranks) <= k))
    print_figures(figures, print)
    assert "24 products, 24 queries" in capsys.readouterr().out


def test_towers_alone_decide_nothing_and_are_not_re_ranked(runs):
    towers, _ = runs
    with pytest.raises(ValueError, match="--rerank 4 needs a run that scores pairs"):
        evaluate(towers, protocols=("full",), rerank=4)
    figures = evaluate(towers, protocols=("candidates", "matching", "draws", "legacy", "full"), num_queries=8)
    drawn, alone = figures["draws"], figures["text_to_image"]
    assert drawn["candidates_sha256"][0] == figures["candidates_sha256"] and len(set(drawn["candidates_sha256"])) == 5
    assert (
        drawn["text_to_image"]["rank@5.each"][0]
        == alone["rank@5"]
        == figures["legacy"]["text_to_image"]["correct"]["rank@5"]
    )
    assert figures["full"]["rerank"] == 0 and "reranked" not in figures["full"]
    assert 0 <= figures["matching"]["auc"] <= 1 and not [name for name in figures["matching"] if "accuracy" in name]
    print_figures(figures, lambda line: None)
    page = write_report(towers).read_text()
    assert "Matching AUC" in page and "Balanced accuracy" not in page and "a match" not in page


def test_a_table_of_several_photos_a_product_is_counted_by_product(runs, tmp_path, capsys):
    products, rows = make_products(6, seed=2), []
    for number, p in enumerate(products):
        rows += [p | {"id": f"{p['id']}-{i}", "group": p["id"]} for i in range(1 + number % 4)]
    rows[-1] |= {"caption": "a variant with a text of its own"}
    table, towers = write_parquet(tmp_path / "photos.parquet", rows), runs[0]
    figures = evaluate(towers, data=str(table), protocols=("full",))["full"]
    assert (figures["gallery"], figures["photos"], figures["products"]) == (13, 13, 7)
    assert figures["image_to_text"]["rank@10.product"] == 1.0  # of 7 texts
    hits = 7 * figures["text_to_image"]["rank@5.product"]  # each text asks once
    assert hits == pytest.approx(round(hits))
    print_figures({"full": figures}, print)
    assert "by product: 7 with 13 photos" in capsys.readouterr().out


def test_a_run_without_trained_towers_is_told_which_to_give(runs, capsys):
    towers, matcher = runs
    assert main(["evaluate", "--workdir", str(matcher), "--protocol", "full"]) == 1
    assert f"--towers, such as the run it started from, {towers}" in capsys.readouterr().err
    assert main(["evaluate", "--workdir", str(towers), "--protocol", "full", "--towers", str(matcher)]) == 1
    assert "its tasks have no itc" in capsys.readouterr().err
    assert main(["evaluate", "--workdir", str(towers), "--protocol", "full", "--rerank", "-1"]) == 1
    assert "--rerank -1" in capsys.readouterr().err
