"""The linear branch of the towers: trained alone and beside the encoder, by hand in NumPy, exported and taken back."""

import collections
import json

import jax
import numpy as np
import pytest

import fbjax
from fbjax.cli.main import main
from fbjax.config.schema import MeshConfig
from fbjax.data.batches.sampler import Sampler
from fbjax.data.text.stop_words import STOP_WORDS
from fbjax.evaluation.evaluate import evaluate
from fbjax.export.importing import import_checkpoint
from fbjax.export.package import export
from fbjax.inference.catalogue.embed_catalogue import embed
from fbjax.inference.embedder import make_embedder
from fbjax.inference.known_words import known_words
from fbjax.model.ngrams import _FACTORS as FACTORS
from fbjax.parallel.mesh import make_mesh, put_batch
from fbjax.runs.feature_cache import text_inputs
from fbjax.runs.loaded import LoadedRun
from fbjax.runs.run import NGRAMS
from fbjax.training.loop import train
from tests.support.runs import make_one_device_mesh, same, tiny_config, without_steps_after, write_config
from tests.support.tables import encode, make_products
from tests.support.untrained import silent

READS = 16  # tokens of the encoder
PRODUCTS = make_products(5, seed=7)
TEXTS, IMAGES = [f"{p['title']} {p['caption']}" for p in PRODUCTS], [encode(p["image"]) for p in PRODUCTS]
Trained = collections.namedtuple("Trained", "folder config state loaded")


def train_branches(folder, branches):
    settings = ("tasks=itc", "tasks.itc.embedding_dim=16", f"tasks.itc.branches={branches}", "model.num_layers=1")
    settings += (
        f"tasks.itc.encoder_tokens={READS}",
        "tasks.itc.image_weight=0.3",
        "patches.whole_image=true",
        "train.evaluate_products=8",
    )
    config = tiny_config(folder, *settings, "train.num_steps=4", "train.save_every=2")
    state = train(config, folder / "run")
    return Trained(folder, config, state, LoadedRun.load(folder / "run", 4, make_one_device_mesh()))


@pytest.fixture(scope="module")
def linear(tmp_path_factory, trains_on_one_device):
    return train_branches(tmp_path_factory.mktemp("linear"), "linear")


@pytest.fixture(scope="module")
def both(tmp_path_factory, trains_on_one_device):
    return train_branches(tmp_path_factory.mktemp("both"), "both")


@pytest.fixture(params=["linear", "both"])
def trained(request):
    return request.getfixturevalue(request.param)


def test_a_word_that_no_bag_holds_is_not_known(linear, both):
    query = "the red zebra, 红"
    assert linear.loaded.run.vocabulary.known_words(query)[2] == ("zebra", True)  # it has pieces
    assert known_words(linear.loaded.run, query) == {"red": True, "zebra": False, "红": False}
    assert known_words(both.loaded.run, query) == {"the": True, "red": True, "zebra": True, "红": False}


def wrapped(number: int) -> int:
    return (number + 2**31) % 2**32 - 2**31


def codes_by_hand(vocabulary, ids) -> list[int]:
    """Hashes of a text's words, then of its pairs of neighbouring words, from the spelling of its pieces."""
    factors, words = FACTORS.tolist(), []
    for i in ids:
        if not (piece := vocabulary.rows[i]).startswith("["):
            words += [[]] * (not piece.startswith("##"))
            words[-1] = [*words[-1], int(i)]
    kept = []
    for word in words:
        spelt = [vocabulary.rows[i] for i in word]
        if any(map(str.isalnum, spelt[-1])) and (len(spelt) > 1 or spelt[0] not in STOP_WORDS):
            kept.append(wrapped(sum((i + 1) * f for i, f in zip(word[::-1], factors[:8], strict=False))))
    return kept + [wrapped(a * factors[8] + b * factors[9]) for a, b in zip(kept, kept[1:], strict=False)]


def text_by_hand(loaded, ids) -> np.ndarray:
    ngrams, table = loaded.run.ngrams, np.asarray(loaded.params["fashionbert"]["linear"]["ngrams"], np.float64)
    row_of = {code: row for row, code in enumerate(ngrams["codes"].tolist())}
    rows = [row_of[code] for code in codes_by_hand(loaded.run.vocabulary, ids) if code in row_of][: len(ids)]
    weights = ngrams["idf"][rows].astype(np.float64)
    return weights / max(np.linalg.norm(weights), 1e-6) @ table[rows]


def roots_by_hand(run, images) -> np.ndarray:
    flat = np.asarray(run.patches.apply({}, images), np.float64).reshape(len(images), -1)
    return flat / np.sqrt(np.abs(flat) + 0.01)


def image_by_hand(loaded, images) -> np.ndarray:
    branch = {name: np.asarray(array, np.float64) for name, array in loaded.params["fashionbert"]["linear"].items()}
    return (roots_by_hand(loaded.run, images) - branch["mean"]) / branch["deviation"] @ branch["cells"]


def encoder_part(loaded, ids=None, images=None) -> np.ndarray:
    """The projected means of the encoder, 0 in a run without it."""
    params, model = loaded.params["fashionbert"], loaded.run.model
    if "projection" not in params:
        return 0.0
    apply = lambda *args, method: model.apply({"params": params}, *args, method=method)  # noqa: E731
    if images is None:
        ids = ids[:, :READS]
        mean = apply(apply(ids, method="embed_text"), ids != 0, None, method="encode_alone")
    else:
        image = apply(loaded.run.patches.apply({}, images), method="embed_image")
        mean = apply(None, None, image, method="encode_alone")
    return np.asarray(mean, np.float64) @ np.asarray(params["projection"]["kernel"], np.float64)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def side_by_side(loaded, linear, encoder):
    """Both branches at length 1, the encoder's times the root of its share; the linear branch alone without encoder."""
    if "projection" not in loaded.params["fashionbert"]:
        return unit(linear)
    share = np.exp(float(loaded.params["fashionbert"]["log_share"]))
    return unit(np.concatenate([unit(linear), np.sqrt(share) * unit(encoder)], axis=1))


def images_of(loaded, split):
    records, patches = loaded.run.splits()[split], loaded.run.config.patches
    return next(records.images(np.arange(len(records)), patches.image_size, len(records), patches.fit))


def test_ngrams_and_moments_are_those_of_the_training_split(trained):
    loaded = trained.loaded
    records, ngrams = loaded.run.splits()["train"], loaded.run.ngrams
    texts = text_inputs(loaded.run, records, np.arange(len(records)))
    counts = collections.Counter(code for ids in texts for code in set(codes_by_hand(loaded.run.vocabulary, ids)))
    expected = {code: count for code, count in sorted(counts.items()) if count >= 2}
    assert ngrams["codes"].tolist() == list(expected)
    idf = 1 + np.log(49 / (1 + np.array(list(expected.values()))))
    np.testing.assert_allclose(ngrams["idf"], idf, rtol=1e-6)
    roots, branch = roots_by_hand(loaded.run, images_of(loaded, "train")), loaded.params["fashionbert"]["linear"]
    np.testing.assert_allclose(branch["mean"], roots.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(branch["deviation"], np.maximum(roots.std(axis=0), 1e-3), atol=1e-5)


def test_vectors_are_those_of_numpy(trained, tmp_path):
    loaded = trained.loaded
    records = loaded.run.splits()["validation"]
    ids, images = text_inputs(loaded.run, records, np.arange(len(records))), images_of(loaded, "validation")
    texts = np.stack([text_by_hand(loaded, row) for row in ids])
    assert np.linalg.matrix_rank(texts) > 8
    expected = {
        "text": side_by_side(loaded, texts, encoder_part(loaded, ids=ids)),
        "image": side_by_side(loaded, image_by_hand(loaded, images), encoder_part(loaded, images=images)),
    }
    if "projection" not in loaded.params["fashionbert"]:
        expected["product"] = unit(unit(texts) + 0.3 * unit(image_by_hand(loaded, images)))
    for what, vectors in expected.items():
        found = np.load(embed(trained.folder / "run", tmp_path / "v.npz", units=(what,), step=4))["vectors"]
        np.testing.assert_allclose(found, vectors, atol=2e-5)


def test_a_linear_run_has_no_encoder(linear, both):
    alone, beside = (run.loaded.params["fashionbert"] for run in (linear, both))
    assert alone.keys() == {"linear", "log_scale"}
    encoders = {"projection", "encoder", "text_embeddings", "image_embeddings"}
    assert beside.keys() == {"linear", "log_scale", "log_share", *encoders}


def test_a_run_stopped_in_the_middle_ends_the_same_bit_for_bit(trained, tmp_path, capfd):
    workdir = without_steps_after(trained.folder / "run", 2, tmp_path / "run")
    before = LoadedRun.load(workdir, 2, make_one_device_mesh()).params["fashionbert"]["linear"]
    resumed = train(trained.config, workdir)
    assert "resuming at step 2 of 4" in capfd.readouterr().err and same(resumed, trained.state)
    after = resumed.params["fashionbert"]["linear"]
    moved = {name for name in after if not np.array_equal(before[name], after[name])}
    assert moved == {"ngrams", "cells"}


def test_it_is_evaluated_over_lists_and_over_the_whole_gallery(trained):
    figures = evaluate(trained.folder / "run", protocols=("candidates", "full"), num_queries=4)
    assert figures["full"]["gallery"] == 24
    for table in (figures, figures["full"]):
        assert table["num_queries"] == 4
        for direction in ("text_to_image", "image_to_text"):
            assert 0 <= table[direction]["rank@1"] <= table[direction]["rank@10"] <= 1


def test_eight_devices_learn_and_embed_as_one(trained):
    loaded = trained.loaded
    run, config = loaded.run, trained.config
    objective, records = run.objective, run.splits()["train"]
    sampler = Sampler.of(records, config.train, config.model, objective.random_share)
    sizes = {"num_steps": 4, "image_size": 32, "fit": config.patches.fit, "with_negatives": False}
    batch = next(records.train_batches(sampler, run.vocabulary, **sizes))
    params, frozen = jax.device_get((loaded.params, {"patches": {}} | run.frozen))
    loss = lambda p, batch: objective.losses(p, frozen, batch, jax.random.key(3))[0][0]  # noqa: E731
    value_and_grad = jax.jit(jax.value_and_grad(loss))
    ids = text_inputs(run, records, np.arange(9))
    found = []
    for mesh in (make_one_device_mesh(), make_mesh(MeshConfig(8, 1, 1))):
        vectors = make_embedder(run, mesh).embed_texts(params | frozen, ids)
        found.append((jax.device_get(value_and_grad(params, put_batch(batch, mesh))), vectors))
    assert found[0][0][0] > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)
    gradient = found[0][0][1]["fashionbert"]["linear"]
    assert np.any(gradient["ngrams"]) and np.any(gradient["cells"])
    assert not np.any(gradient["mean"]) and not np.any(gradient["deviation"])


@pytest.mark.parametrize(
    "form", ["hf", *(pytest.param(form, marks=pytest.mark.slow) for form in ("stablehlo", "onnx"))]
)
def test_both_branches_are_exported(both, form, tmp_path):
    content = export(both.folder / "run", form, tmp_path / form, step=4, say=silent)
    names = {"embed_text", "embed_image_features", "embed_product_features"}
    assert names < content["functions"].keys() and all(content["proof"]["real"][name] for name in names)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory, trains_on_one_device):
    """The run of ``fbjax baseline ngrams`` and its figures."""
    folder = tmp_path_factory.mktemp("baseline")
    flags = ["--config", write_config(folder), "--workdir", folder / "run", "--dims", "16", "--seed", "5"]
    flags += ["--queries", "9", "--protocol", "candidates,full", "--out", folder / "metrics.json"]
    assert main(["baseline", "ngrams", *map(str, flags)]) == 0
    return folder / "run", json.loads((folder / "metrics.json").read_text())


def test_the_baseline_of_ngrams_leaves_a_run_like_any_other(baseline):
    workdir, figures = baseline
    assert figures["num_queries"] == figures["full"]["num_queries"] == 9
    loaded = LoadedRun.load(workdir, mesh=make_one_device_mesh())
    assert loaded.params["fashionbert"].keys() == {"linear", "log_scale"}
    assert loaded.run.config.train.seed == 5
    assert evaluate(workdir, protocols=("full",), num_queries=9)["full"] == figures["full"]


@pytest.mark.parametrize(
    "form", [*(pytest.param(form, marks=pytest.mark.slow) for form in ("hf", "onnx")), "stablehlo"]
)
def test_the_baseline_is_exported(baseline, form, tmp_path):
    workdir, _ = baseline
    content = export(workdir, form, tmp_path / form, say=silent)
    assert not {"match", "mlm"} & content["functions"].keys()
    live = fbjax.load(workdir)
    expected = live.embed_text(TEXTS), live.embed_image(IMAGES), live.embed_product(TEXTS, IMAGES)
    if form == "stablehlo":
        loaded = fbjax.load_exported(tmp_path / form)
        found = loaded.embed_text(TEXTS), loaded.embed_image(IMAGES), loaded.embed_product(TEXTS, IMAGES)
        for vectors, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(vectors, theirs, atol=1e-4)
    if form == "hf":
        import_checkpoint(tmp_path / form, tmp_path / "back", silent)
        ours, back = (np.load(folder / NGRAMS) for folder in (workdir, tmp_path / "back"))
        assert {name: ours[name].dtype for name in ours} == {name: back[name].dtype for name in back}
        assert all(ours[name].tobytes() == back[name].tobytes() for name in ours)
        live = fbjax.load(tmp_path / "back")
        again = live.embed_text(TEXTS), live.embed_image(IMAGES), live.embed_product(TEXTS, IMAGES)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(again, expected, strict=True))


def test_an_import_without_its_ngrams_or_with_rounded_ones_says_so(both, tmp_path):
    from safetensors.numpy import load_file, save_file

    export(both.folder / "run", "hf", tmp_path / "hf", step=4, say=silent)
    path = tmp_path / "hf" / "model.safetensors"
    arrays = load_file(path)
    codes = arrays.pop("ngrams.codes")
    save_file(arrays, path)
    with pytest.raises(ValueError, match="lacks ngrams.codes: save the whole model"):
        import_checkpoint(tmp_path / "hf", tmp_path / "back", silent)
    save_file(arrays | {"ngrams.codes": codes.astype(np.float32)}, path)
    with pytest.raises(ValueError, match="holds ngrams.codes as float32: save it as int32"):
        import_checkpoint(tmp_path / "hf", tmp_path / "back", silent)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--svd", "9"], "--svd is not for ngrams"),
        (["--ridge", "0.1", "--hardest"], "--ridge, --hardest is not for ngrams"),
        (["--dims", "0"], "--dims 0: give a whole number from 1"),
        (["--seed", "-1"], "--seed -1: give a whole number from 0"),
        (["--protocol", "mixed"], "protocol mixed needs a run that was trained on half of the groups"),
        (["--protocol", "queries", "--relevant", "nowhere.jsonl"], "no queries at nowhere.jsonl"),
    ],
)
def test_flags_that_ngrams_do_not_take_are_an_error(tmp_path, capsys, flags, message):
    assert main(["baseline", "ngrams", "--config", str(write_config(tmp_path)), *flags]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "prepared").exists()
