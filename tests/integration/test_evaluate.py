"""Evaluation and the Python interface against brute force on a trained tiny run."""

import json
from functools import partial

import numpy as np
import pytest
from PIL import Image

import fbjax
from fbjax.cli.main import main
from fbjax.data.batches.halves import half_of
from fbjax.data.records import pipeline
from fbjax.evaluation.evaluate import evaluate
from fbjax.evaluation.matching.calibration import calibration
from fbjax.inference.pair_scorer import PairScorer
from fbjax.training.loop import train
from tests.support.runs import tiny_config, write_mobilenet
from tests.support.tables import encode, make_products, write_parquet


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    config = tiny_config(folder, "train.num_steps=8", "train.save_every=4")
    train(config, folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def lists(run):
    """Lists over the validation table: every product against five others of its category."""
    products = make_products(24, seed=1)
    rows = []
    for direction in ("image_to_text", "text_to_image"):
        for p in products:
            others = [o["id"] for o in products if o["category"] == p["category"] and o["group"] != p["group"]]
            rows.append(
                {"direction": direction, "query": p["id"], "positive": p["id"], "candidates": [*others[:5], p["id"]]}
            )
    path = run.parent / "lists.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def text_of(product):
    return f"{product['title']} {product['caption']}"


def test_figures_equal_brute_force_through_the_python_interface(run, lists):
    figures = evaluate(run, candidates=str(lists))
    model = fbjax.load(run)
    products = {p["id"]: p for p in make_products(24, seed=1)}
    texts = {i: text_of(p) for i, p in products.items()}
    images = {i: encode(p["image"], p["format"]) for i, p in products.items()}
    hits = {"image_to_text": [], "text_to_image": []}
    wins = []
    for line in lists.read_text().splitlines():
        x = json.loads(line)
        pairs = [(x["query"], c) if x["direction"] == "text_to_image" else (c, x["query"]) for c in x["candidates"]]
        scores = model.score([texts[t] for t, _ in pairs], [images[i] for _, i in pairs])
        hits[x["direction"]].append((scores[:-1] >= scores[-1]).sum() == 0)
        wins.append((scores[-1], scores[0]))
    for direction, hit in hits.items():
        assert figures[direction]["rank@1"] == pytest.approx(np.mean(hit))
        assert figures[direction]["rank@101"] == 1.0
    positive, negative = np.array(wins).T
    assert figures["matching"]["auc"] == pytest.approx((positive[:, None] > negative).mean(), abs=2e-3)
    assert figures["num_queries"] == 24 and figures["checkpoint_step"] in (4, 8)

    queries = [json.loads(line)["query"] for line in lists.read_text().splitlines()]
    records = model.records()
    fitted = half_of(records.groups)[records.rows(queries)]
    expected = calibration(positive, negative, fitted)
    found = figures["matching"]["calibration"]
    assert (found["num_fitted"], found["num_queries"]) == (fitted.sum(), (~fitted).sum())
    for name in ("temperature", "bias"):
        assert found[name] == pytest.approx(expected[name], rel=1e-3)
    for kind in ("raw", "calibrated"):
        assert found[kind]["brier"] == pytest.approx(expected[kind]["brier"], abs=1e-4)

    pair = [texts["p1-0000"]], [images["p1-0001"]]
    logit = model.score(*pair) / found["temperature"] + found["bias"]
    for prior, more in ((0.5, 0.0), (0.01, np.log(0.01 / 0.99))):
        expected = 1 / (1 + np.exp(-logit - more))
        assert model.match_probability(*pair, prior=prior) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="prior 1.0 is no share of matches"):
        model.match_probability(*pair, prior=1.0)
    other = 12 - model.step
    with pytest.raises(
        ValueError, match=f"checkpoint {other} in .* not calibrated: run fbjax evaluate .*--step {other}"
    ):
        fbjax.load(run, step=other).match_probability(*pair)


def test_rank_orders_by_score_in_both_directions(run):
    model = fbjax.load(run)
    products = make_products(6, seed=1)
    texts, images = [text_of(p) for p in products], [p["image"] for p in products]
    for query, candidates, scores in (
        (texts[0], images, model.score([texts[0]] * 6, images)),
        (images[0], texts, model.score(texts, [images[0]] * 6)),
    ):
        ranked = model.rank(query, candidates)
        assert [i for i, _ in ranked] == list(np.argsort(-scores, kind="stable"))
        np.testing.assert_allclose([s for _, s in ranked], np.sort(scores)[::-1], rtol=1e-5)


def test_batches_and_padding_buckets_do_not_change_scores(run):
    model = fbjax.load(run)
    products = make_products(24, seed=1)
    ids = model.run.vocabulary.encode([text_of(p) if i % 3 else p["category"] for i, p in enumerate(products)], 24)
    size = model.run.config.patches.image_size
    images = np.stack([pipeline.decode_image(encode(p["image"]), size) for p in products])
    pairs = np.stack(np.meshgrid(np.arange(24), np.arange(24)), axis=-1).reshape(-1, 2)
    mesh = model.mesh
    found = []
    for batch_size in (8, 64):
        scorer = PairScorer(model.run.model, model.run.patches, mesh, batch_size)
        embedded = scorer.embed_images(model.variables, [images[:8], images[8:16], images[16:]])
        order = np.random.default_rng(batch_size).permutation(len(pairs))
        scores = np.empty(len(pairs))
        scores[order] = scorer.score(model.variables, ids, embedded, pairs[order])
        found.append(scores)
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)
    features = np.asarray(model.run.patches.apply(model.run.patches.params, images))
    apply = partial(model.run.model.apply, {"params": model.variables["fashionbert"]})

    def logits_of(text, image):  # every layer at every position
        embedded = apply(ids[[text]], method="embed_text"), ids[[text]] != 0
        hidden, _ = apply(*embedded, apply(features[[image]], method="embed_image"), method="encode_pair")
        return np.asarray(apply(hidden[:, 0], method="match_logits"))[0]

    logits = [logits_of(*pair) for pair in pairs[:5]]
    np.testing.assert_allclose([b - a for a, b in logits], found[0][:5], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_cached_features_score_like_the_network_itself(tmp_path):
    write_mobilenet(tmp_path / "weights.npz")
    config = tiny_config(tmp_path, "patches.network=mobilenet_v1", f"patches.weights={tmp_path / 'weights.npz'}",
                         "patches.geometry=feature_map", "patches.image_size=64", "patches.patch_size=32",
                         "patches.mode=cached", "train.num_steps=4")  # fmt: skip
    train(config, tmp_path / "run")
    (tmp_path / "weights.npz").unlink()  # a workdir needs nothing beside it
    model, products = fbjax.load(tmp_path / "run"), make_products(24, seed=1)
    lists = [
        {"direction": "text_to_image", "query": p["id"], "positive": p["id"], "candidates": [p["id"], q["id"]]}
        for p, q in zip(products, products[4:] + products[:4], strict=True)
    ]
    (tmp_path / "lists.jsonl").write_text("\n".join(map(json.dumps, lists)))
    figures = evaluate(tmp_path / "run", candidates=str(tmp_path / "lists.jsonl"), step=model.step)
    texts = [text_of(p) for p in products]
    own = model.score(texts, [encode(p["image"], p["format"]) for p in products])
    other = model.score(texts, [encode(p["image"], p["format"]) for p in products[4:] + products[:4]])
    assert figures["text_to_image"]["rank@1"] == pytest.approx((own > other).mean(), abs=0.05)  # cached as float16


def test_lists_that_name_unknown_products_are_an_error_that_names_them(run, tmp_path, capsys):
    path = tmp_path / "lists.jsonl"
    path.write_text(
        '{"direction": "image_to_text", "query": "nobody", "positive": "nobody", "candidates": ["nobody", "x9"]}'
    )
    assert main(["evaluate", "--workdir", str(run), "--candidates", str(path)]) == 1
    assert "2 products are not in the data (24 products): nobody, x9" in capsys.readouterr().err


def test_the_command_writes_the_documented_json_on_any_table(run, tmp_path):
    table = write_parquet(tmp_path / "other.parquet", make_products(16, seed=5))
    out = tmp_path / "metrics.json"
    assert main(["evaluate", "--workdir", str(run), "--data", str(table), "--queries", "5", "--out", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert {"image_to_text", "text_to_image", "matching", "num_queries", "candidates_per_list",
        "candidates_sha256", "checkpoint_step",
            "pairs_per_second"} == figures.keys()  # fmt: skip
    low, high = figures["matching"]["auc.ci"]
    assert 0 <= low <= figures["matching"]["auc"] <= high <= 1
    assert figures["num_queries"] == 5


@pytest.mark.parametrize("arguments", [["--queries", "0"], ["--protocol", "recall"], ["--out", "."], ["--step", "7"]])
def test_wrong_arguments_are_an_error_before_the_work(run, arguments, capsys):
    assert main(["evaluate", "--workdir", str(run), *arguments]) == 1
    said = capsys.readouterr().err
    assert arguments[1] in said and "scoring" not in said


@pytest.mark.parametrize(
    "image, error, message",
    [
        (b"no picture", ValueError, "undecodable image"),
        ("missing.jpg", FileNotFoundError, "no image file missing.jpg"),
        (3, TypeError, "an image is a path"),
    ],
)
def test_an_image_that_is_none_is_a_clear_error(run, image, error, message):
    with pytest.raises(error, match=message):
        fbjax.load(run).score(["a red dress"], [image])


def test_a_wrong_path_or_a_text_without_words_is_named(run):
    model = fbjax.load(run)
    with pytest.raises(ValueError, match="neither the query nor a candidate is an image"):
        model.rank("a red dress", ["nowhere.jpg"])
    with pytest.raises(TypeError, match="candidates is one str"):
        model.rank("a red dress", "nowhere.jpg")
    with pytest.raises(ValueError, match="has no words"):
        model.score([" "], [Image.new("RGB", (8, 8))])
    with pytest.raises(ValueError, match="as many texts as images; got 2 and 1"):
        model.score(["a", "b"], [Image.new("RGB", (8, 8))])
    assert len(repr(model)) < 100


def test_a_text_longer_than_the_limit_is_cut(run):
    model = fbjax.load(run)
    image = Image.new("RGB", (30, 50), "red")
    long = " ".join(["red dress of cotton"] * 40)
    np.testing.assert_allclose(model.score([long], [image]), model.score([long + " and more"], [image]))


def test_a_folder_that_is_no_run_is_a_clear_error(tmp_path, capsys):
    assert main(["evaluate", "--workdir", str(tmp_path)]) == 1
    assert "is no workdir" in capsys.readouterr().err
