"""The two towers: their contrast by hand and by brute force, vectors that depend on nothing beside them, and runs that
start from others."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fbjax
from fbjax.config.schema import Config, MeshConfig
from fbjax.data.batches.sampler import Sampler
from fbjax.data.records.builder import build_records
from fbjax.data.sources.base import open_source
from fbjax.evaluation.evaluate import evaluate
from fbjax.inference.embedder import UNITS, Embedder
from fbjax.inference.explain import explain
from fbjax.inference.pair_scorer import PairScorer
from fbjax.model.fashionbert import Reading
from fbjax.parallel.mesh import make_mesh, put_batch
from fbjax.runs.loaded import LoadedRun
from fbjax.runs.run import Run
from fbjax.runs.state import init_state, make_optimizer
from fbjax.tasks.towers.contrast import cosine_matrix, hinge_loss, hits, info_nce, sigmoid_loss, valid_negatives
from fbjax.training.loop import train
from fbjax.training.step import make_step, with_seed
from fbjax.training.warm_start import calibrate_match_bias, in_short, initial_params
from tests.support.objectives import CONFIG, COSINE, MODEL, B, make_batch, make_objective, make_state, make_tasks
from tests.support.runs import make_one_device_mesh, tiny_config
from tests.support.tables import encode, make_products

pytestmark = pytest.mark.slow  # whole trainings

TOWERS = dataclasses.replace(MODEL, num_layers=1)
ITC = make_tasks("itc", itc={"embedding_dim": 8})


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def contrast(texts, images, scale, apart, loss=info_nce):
    """Losses and hits, [B] each."""
    logits = scale * cosine_matrix(jnp.asarray(texts), jnp.asarray(images))
    return loss(logits, jnp.asarray(apart)), hits(logits, jnp.asarray(apart))


def test_the_contrast_of_two_products_by_hand():
    texts, images = np.eye(2, dtype=np.float32), np.array([[0.6, 0.8], [0.0, 1.0]], np.float32)
    # cosines [[.6, 0], [.8, 1]]: text 0 against images .6, 0; image 0 against texts .6, .8
    losses, right = contrast(texts, images, 10.0, ~np.eye(2, dtype=bool))
    expected = [np.log1p(np.exp(-6)) + np.log1p(np.exp(2)), np.log1p(np.exp(-2)) + np.log1p(np.exp(-10))]
    np.testing.assert_allclose(losses, np.array(expected) / 2, rtol=1e-5)
    assert right.tolist() == [0.5, 1.0]


def test_the_sigmoid_and_the_hinge_of_three_products_by_hand():
    """Products 1 and 2 share a group: no pair of theirs counts, in either form."""
    logits = jnp.array([[2.0, -1.0, 0.5], [0.0, 1.0, 9.0], [-3.0, 9.0, 0.0]])
    apart = jnp.array([[False, True, True], [True, False, False], [True, False, False]])
    right = lambda x: np.log1p(np.exp(-x))  # -log sigmoid(x)  # noqa: E731
    expected = [right(2) + right(1) + right(-0.5), right(1) + right(0), right(0) + right(3)]
    np.testing.assert_allclose(sigmoid_loss(logits, apart), expected, rtol=1e-6)
    cosines = jnp.array([[0.5, 0.4, 0.1], [0.2, 0.6, 0.9], [0.45, 0.9, 0.5]])
    # rows: [.2 - .5 + .4, .2 - .5 + .1], [.2 - .6 + .2], [.2 - .5 + .45]; columns: [-.1, .15], [0], [-.2], from 0 on
    np.testing.assert_allclose(hinge_loss(cosines, apart), [0.1 + 0.15, 0.0, 0.15], atol=1e-6)


HINGED = (np.log(1 / 0.07), None)


@pytest.mark.parametrize("form, start", [("sigmoid", (np.log(10), -10)), ("hinge", HINGED), ("hardest", HINGED)])
def test_a_form_of_the_contrast_reads_its_own_parameters(form, start):
    """The task's loss on vectors of its own, from its start; the scale and the bias learn where they count."""
    tasks = make_tasks("itc", itc={"embedding_dim": 8, "form": form})
    objective, batch = make_objective(TOWERS, tasks), make_batch()._replace(negative=None)
    config = dataclasses.replace(CONFIG, model=TOWERS, tasks=tasks)
    params = init_state(objective, make_optimizer(config.train), config, make_one_device_mesh()).params
    model = params["fashionbert"]
    assert float(model["log_scale"]) == pytest.approx(start[0]) and model.get("logit_bias") == start[1]
    loss = lambda p: objective.losses(p, {"patches": {}}, batch, jax.random.key(3))[0][0]  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(loss))(params)

    apply = partial(objective.model.apply, {"params": model})
    text, image = apply(batch.ids, method="embed_text"), objective.patches.apply({}, batch.image)
    image = apply(image, method="embed_image")
    means = apply(text, batch.ids != 0, None, method="encode_alone"), apply(None, None, image, method="encode_alone")
    texts, images = (np.asarray(apply(Reading(mean), method="vector"), np.float64) for mean in means)
    cosines, own, total = texts @ images.T, np.eye(B, dtype=bool), 0.0
    apart = batch.group[:, None] != batch.group
    if form == "sigmoid":
        signs = np.where(own, 1, -1)
        total = np.where(own | apart, np.log1p(np.exp(-signs * (10 * cosines - 10))), 0).sum()
    else:
        for each in (cosines, cosines.T):
            costs = np.where(apart, np.maximum(0, 0.2 - np.diagonal(cosines)[:, None] + each), 0)
            total += (costs.max(axis=1) if form == "hardest" else costs).sum()
    assert float(value) == pytest.approx(total / B, rel=1e-4)
    learned = {name for name in ("log_scale", "logit_bias") if np.any(gradient["fashionbert"].get(name, 0))}
    assert learned == ({"log_scale", "logit_bias"} if form == "sigmoid" else set())
    assert objective.shared(gradient)["fashionbert"].keys() == {"text_embeddings", "image_embeddings", "encoder"}


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=5, max_size=5), st.integers(0, 99))
def test_the_contrast_is_a_softmax_over_products_of_other_groups_and_texts(products, seed):
    """Against loops; a negative that shares group or text is as good as not in the batch."""
    group, text = np.array(products).T
    rng = np.random.default_rng(seed)
    texts, images = unit(rng, 5, 4), unit(rng, 5, 4)
    apart = np.asarray(valid_negatives(jnp.asarray(group), jnp.stack([jnp.full(5, 7), jnp.asarray(text)], axis=1)))
    losses, _ = contrast(texts, images, 5.0, apart)
    for i in range(5):
        negatives = [j for j in range(5) if group[j] != group[i] and text[j] != text[i]]
        assert np.flatnonzero(apart[i]).tolist() == negatives == np.flatnonzero(apart[:, i]).tolist()
        each = []
        for cosines in (texts[i] @ images.T, images[i] @ texts.T):
            each.append(np.log(np.exp(5.0 * (cosines[[i, *negatives]] - cosines[i])).sum()))
        assert float(losses[i]) == pytest.approx(np.mean(each), abs=1e-5)


def test_a_batch_of_one_group_teaches_nothing_and_breaks_nothing():
    objective, mesh = make_objective(TOWERS, ITC), make_one_device_mesh()
    config = dataclasses.replace(CONFIG, model=TOWERS, tasks=ITC)
    batch = put_batch(make_batch()._replace(negative=None, group=np.zeros(B, np.int32)), mesh)
    state = make_state(objective, config, mesh)
    step = make_step(objective, make_optimizer(config.train), config, mesh, state)
    for _ in range(2):  # the first step's learning rate is 0
        state, metrics = step(state, with_seed({"patches": {}}, config), batch)
    assert metrics["itc/loss"] == metrics["gradient_norm"] == metrics["itc/gradient_norm"] == 0
    assert metrics["itc/weight"] == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params)))


@pytest.fixture(scope="module")
def itc():
    """``losses and gradient (batch)`` of the contrast alone; pairs of products share a group."""
    objective = make_objective(TOWERS, ITC)
    config = dataclasses.replace(CONFIG, model=TOWERS, tasks=ITC)
    params = jax.device_get(make_state(objective, config).params)
    loss = lambda p, batch: objective.losses(p, {"patches": {}}, batch, jax.random.key(3))[0][0]  # noqa: E731
    value_and_grad = jax.jit(jax.value_and_grad(loss))
    batch = make_batch()._replace(negative=None, group=np.arange(B, dtype=np.int32) // 2)
    return objective, params, batch, lambda batch: jax.device_get(value_and_grad(params, batch))


def assert_same(one, other, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, other)


def test_device_count_order_and_padding_change_neither_contrast_nor_gradient(itc):
    *_, batch, value_and_grad = itc
    one, eight = make_one_device_mesh(), make_mesh(MeshConfig(8, 1, 1))
    expected = value_and_grad(put_batch(batch, one))
    order = np.random.default_rng(1).permutation(B)
    shuffled = jax.tree.map(lambda x: x[order], batch)
    short = batch._replace(ids=np.where(np.arange(16) < 12, batch.ids, 0))
    trimmed = short._replace(ids=short.ids[:, :12], word_ids=short.word_ids[:, :12])
    assert expected[0] > 0
    for given_, mesh in ((batch, eight), (shuffled, one), (shuffled, eight)):
        assert_same(value_and_grad(put_batch(given_, mesh)), expected, rtol=1e-4, atol=1e-5)
    padded, trimmed = (value_and_grad(put_batch(x, one)) for x in (short, trimmed))
    assert_same(trimmed, padded, rtol=1e-4, atol=1e-5)


def test_padding_changes_no_vector_and_every_vector_has_length_1(itc):
    objective, params, batch, _ = itc

    trained = jax.device_put(params["fashionbert"])

    @jax.jit
    def vectors(ids):
        def apply(*args, method):
            return objective.model.apply({"params": trained}, *args, method=method)

        text, image = (
            apply(ids, method="embed_text"),
            apply(objective.patches.apply({}, batch.image), method="embed_image"),
        )
        means = [apply(text, ids != 0, with_image, method="encode_alone") for with_image in (None, image)]
        return [apply(Reading(mean), method="vector") for mean in means]

    short = np.where(np.arange(16) < 12, batch.ids, 0)
    for padded, trimmed in zip(vectors(short), vectors(short[:, :12]), strict=True):
        np.testing.assert_allclose(padded, trimmed, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(padded, axis=1), 1, rtol=1e-5)


def test_vectors_depend_on_nothing_beside_them(itc):
    """Neither on what else is embedded, nor on order, batch size or device count."""
    *_, batch, _ = itc
    ids = np.where(np.arange(16) < np.linspace(3, 16, B).astype(int)[:, None], batch.ids, 0)
    ids = np.concatenate([ids, np.zeros((B, 8), np.int32)], axis=1)
    ids[:4, :20] = 9 + np.arange(4)[:, None]  # texts of two padded lengths
    longer = make_objective(dataclasses.replace(TOWERS, text_tokens=24), ITC)
    params = jax.device_get(make_state(longer, dataclasses.replace(CONFIG, model=TOWERS, tasks=ITC)).params)
    variables = params | {"patches": {}}

    def embedded(rows, mesh, size):
        towers = Embedder(longer.model, longer.patches, mesh, size)

        def read(places):
            for i in range(0, len(places), towers.batch_size):
                yield batch.image[rows][places[i : i + towers.batch_size]]

        alone = (
            towers.embed_texts(variables, ids[rows]),
            towers.embed_images(variables, read(np.arange(len(rows)))),
            towers.embed_products(variables, ids[rows], read),
        )
        parts = np.array_split(np.arange(len(rows)), 4)
        together = towers.vectors(
            variables, ((part, ids[rows][part], batch.image[rows][part]) for part in parts), UNITS
        )
        for part, found in together:  # in one pass
            for unit, vectors in zip(UNITS, alone, strict=True):
                np.testing.assert_allclose(found[unit], vectors[part], atol=2e-6)
        return alone

    whole = embedded(np.arange(B), make_one_device_mesh(), 5)
    rows = np.random.default_rng(0).permutation(B)[:11]
    for vectors, expected in zip(embedded(rows, make_mesh(MeshConfig(8, 1, 1)), 8), whole, strict=True):
        np.testing.assert_allclose(vectors, expected[rows], atol=2e-6)
    assert all(np.abs(a - b).max() > 0.01 for a, b in zip(whole, whole[1:], strict=False))


def test_products_read_one_batch_of_images_after_another(itc):
    objective, params, batch, _ = itc
    towers, held = Embedder(objective.model, objective.patches, make_one_device_mesh(), 4), []

    def read(rows):
        for i in range(0, len(rows), 4):
            held.append(len(batch.image[rows[i : i + 4]]))
            yield batch.image[rows[i : i + 4]]

    def progress(items, total, label):
        for done, item in enumerate(items):
            assert len(held) == done
            yield item

    assert towers.embed_products(params | {"patches": {}}, batch.ids, read, progress).shape == (B, 8)
    assert held == [4] * 4


@pytest.fixture(scope="module")
def run(tmp_path_factory, trains_on_one_device):
    """A run of the contrast alone, with a token of the whole image: its folder and state."""
    folder = tmp_path_factory.mktemp("towers")
    config = tiny_config(
        folder,
        "tasks=itc",
        "tasks.itc.embedding_dim=16",
        "model.num_layers=1",
        "patches.whole_image=true",
        "train.num_steps=4",
        "train.evaluate_products=8",
        "model.text_bucket=24",
    )
    return folder, config, train(config, folder / "run")


def variant(config: Config, **changes) -> Config:
    """`config` with ``section={setting: value}`` changed."""
    return dataclasses.replace(
        config,
        **{
            name: values if name == "tasks" else dataclasses.replace(getattr(config, name), **values)
            for name, values in changes.items()
        },
    )


def test_the_contrast_alone_trains_evaluates_and_explains(run):
    folder, _, state = run
    assert int(state.step) == 4
    figures = evaluate(folder / "run", num_queries=4)
    assert 0 <= figures["text_to_image"]["rank@1"] <= 1
    model, product = fbjax.load(folder / "run"), make_products(1, seed=1)[0]
    explanation = explain(model, product["title"], product["image"])
    assert explanation.patches.shape == (4, 4) and np.abs(explanation.patches).max() > 0
    assert explanation.score == pytest.approx(model.score([product["title"]], [product["image"]])[0], abs=1e-5)


def test_vectors_that_are_kept_are_those_of_a_model_that_keeps_none(run):
    folder, _, _ = run
    model, forgetful = fbjax.load(folder / "run"), fbjax.load(folder / "run", cache_bytes=0)
    images = [encode(product["image"], product["format"]) for product in make_products(5, seed=1)]
    texts = ["red dress", "a blue shirt for men", "hat", "bag", "red dress"]
    for number in (1, 5, 3):
        for name, inputs in (("embed_text", texts), ("embed_query", texts), ("embed_image", images)):
            found = [getattr(one, name)(inputs[:number]) for one in (model, forgetful)]
            assert np.array_equal(*found) and found[0].shape == (number, 16)
        assert np.array_equal(
            model.score(texts[:number], images[:number]), forgetful.score(texts[:number], images[:number])
        )
    info = model.cache_info()
    assert (info.text_misses, info.image_misses, info.entries) == (8, 5, 13)  # as texts and as queries
    assert model.embed_text([]).shape == model.embed_image([]).shape == (0, 16)


def test_a_run_that_makes_no_vectors_says_how_to_get_some():
    with pytest.raises(ValueError, match="makes no vectors, its tasks are mlm, mpm, tia: train one with the task itc"):
        Embedder(make_objective().model, None, None)


def test_many_arrays_of_one_module_are_told_by_their_number():
    names = ["fashionbert/tia/bias", "fashionbert/tia/kernel", *(f"patches/network/block_{i}/kernel" for i in range(9))]
    assert in_short(names) == "fashionbert/tia/bias, fashionbert/tia/kernel, patches/network (9 arrays)"


def test_a_run_takes_over_another_s_weights_and_the_rest_is_fresh(run, capfd):
    folder, config, _ = run
    tasks = make_tasks("itc", "tia", **COSINE | {"itc": {"embedding_dim": 16}})
    theirs = variant(config, tasks=tasks, model={"num_layers": 2},
                     train={"start_from": str(folder / "run")})  # fmt: skip
    begun = Run.open(folder / "run")
    ours = Run.build(theirs, begun.vocabulary, None)
    mesh = make_mesh(theirs.mesh)
    objective = ours.objective
    fresh = init_state(objective, make_optimizer(theirs.train), theirs, mesh).params
    records = ours.splits()["train"], np.arange(8)
    taken = initial_params(fresh, ours, *records, mesh)
    source = LoadedRun.load(folder / "run").params
    source, before, after = (dict(jax.tree.leaves_with_path(jax.device_get(tree))) for tree in (source, fresh, taken))
    (untrained,) = (path for path in after if jax.tree_util.keystr(path).endswith("['tia']['kernel']"))
    assert not after.pop(untrained).any()
    for path, leaf in after.items():
        np.testing.assert_array_equal(leaf, source.get(path, before[path]), err_msg=str(path))
    assert len(source) < len(after) and "as it lacks them" in capfd.readouterr().err

    longer = variant(theirs, model={"text_tokens": 32})
    ours_longer = Run.build(longer, begun.vocabulary, None)
    objective = ours_longer.objective
    fresh_longer = init_state(objective, make_optimizer(longer.train), longer, mesh).params
    own = np.array(fresh_longer["fashionbert"]["text_embeddings"]["position"])
    positions = initial_params(fresh_longer, ours_longer, *records, mesh)["fashionbert"]["text_embeddings"]["position"]
    np.testing.assert_array_equal(positions[:24], taken["fashionbert"]["text_embeddings"]["position"])
    np.testing.assert_array_equal(positions[24:], own[24:])

    kernel = {"projection": {"kernel": np.zeros((32, 8))}}
    with pytest.raises(ValueError, match=r"do not fit the config:\n  .*projection/kernel \(32, 16\), here \(32, 8\)"):
        initial_params({"fashionbert": kernel}, ours, *records, mesh)
    other = Run.build(variant(theirs, patches={"whole_image": False}), begun.vocabulary, None)
    with pytest.raises(ValueError, match="other image tokens"):
        initial_params(fresh, other, *records, mesh)
    words = type(begun.vocabulary).train(["quite other words"], 60)
    with pytest.raises(ValueError, match="another vocabulary"):
        initial_params(fresh, Run.build(theirs, words, None), *records, mesh)


def test_alignment_starts_from_a_bias_that_splits_pairs_from_mismatches(run, capfd):
    """Set right, it is left as it is; moved, it comes back."""
    folder, config, _ = run
    config = variant(config, tasks=make_tasks("itc", "tia", **COSINE | {"itc": {"embedding_dim": 16}}))
    begun = Run.open(folder / "run")
    ours, mesh = Run.build(config, begun.vocabulary, None), make_mesh(config.mesh)
    objective = ours.objective
    params = jax.device_get(init_state(objective, make_optimizer(config.train), config, mesh).params)
    records = build_records(
        open_source(config.data, config.patches.image_size), ours.vocabulary, config.data.prepared, lambda x, *_: x
    )["train"]
    arguments = (
        ours,
        records,
        Sampler.of(records, config.train, config.model, ours.objective.random_share),
        PairScorer(ours.model, ours.feature_input, mesh),
    )
    split = calibrate_match_bias(params, *arguments)
    bias = split["fashionbert"]["tia"]["bias"]
    assert abs(bias[1] - params["fashionbert"]["tia"]["bias"][1]) > 0.1
    head = split["fashionbert"]["tia"] | {"bias": bias + jnp.array([3.0, -2.0])}
    again = calibrate_match_bias(split | {"fashionbert": split["fashionbert"] | {"tia": head}}, *arguments)
    moved = again["fashionbert"]["tia"]["bias"]
    assert float(moved[1] - moved[0]) == pytest.approx(float(bias[1] - bias[0]), abs=1e-3)
    assert "alignment starts from a bias of 5.0" in capfd.readouterr().err
