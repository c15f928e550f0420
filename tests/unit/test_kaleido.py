"""Kaleido-BERT: patches of several scales, and embeddings that know where they lie, against sums by hand."""

import dataclasses
import itertools
from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy

from fbjax.config.checks import contradictions
from fbjax.config.schema import TASKS, Config
from fbjax.model.fashionbert import InputSpec
from fbjax.model.grids.cells import pyramid
from fbjax.model.patch_features import build_patch_network
from fbjax.model.rivals.kaleido import coordinates
from fbjax.tasks import masking
from fbjax.tasks.base import Example, PairView, Views
from fbjax.tasks.pictures.scales import Targets
from tests.support.objectives import CONFIG, MODEL, PATCHES, make_batch, make_objective, make_state, make_tasks

SCALES = (1, 2, 3)
P = 14
PYRAMID = dataclasses.replace(PATCHES, geometry="feature_map", scales=SCALES)  # 16 pixels, cells of 4
KALEIDO = dataclasses.replace(MODEL, architecture="kaleido")
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("size", [5, 7, 8])
def test_a_scale_averages_the_cells_that_each_of_its_patches_touches(size):
    feature_map = RNG.normal(size=(2, size, size, 3)).astype(np.float32)
    expected = []
    for s in (1, 2, 3, 4, 5):
        for row in range(s):
            for column in range(s):
                # cell i covers [i, i + 1] / size, the patch [row, row + 1] / s
                rows = [i for i in range(size) if (i + 1) * s > row * size and i * s < (row + 1) * size]
                columns = [i for i in range(size) if (i + 1) * s > column * size and i * s < (column + 1) * size]
                expected.append(feature_map[:, rows][:, :, columns].mean(axis=(1, 2)))
    found = pyramid(jnp.asarray(feature_map), (1, 2, 3, 4, 5))
    assert found.shape == (2, 55, 3)
    np.testing.assert_allclose(found, np.stack(expected, axis=1), rtol=1e-5, atol=1e-6)


def test_a_network_of_scales_gives_their_cells_and_has_a_fingerprint_of_its_own():
    network, grid = (build_patch_network(dataclasses.replace(PYRAMID, scales=s)) for s in (SCALES, ()))
    images = RNG.integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
    features, cells = (n.apply(n.params, images) for n in (network, grid))
    assert network.num_patches == features.shape[1] == P
    assert network.fingerprint != grid.fingerprint
    np.testing.assert_allclose(features[:, 0], cells.mean(axis=1), rtol=1e-5)
    lower_right = np.asarray(cells).reshape(2, 4, 4, -1)[:, 2:, 2:].mean(axis=(1, 2))
    np.testing.assert_allclose(features[:, 4], lower_right, rtol=1e-5)


def test_coordinates_are_left_right_top_bottom_and_area():
    found = coordinates((1, 2))
    expected = [[0, 1, 0, 1, 1], [0, 0.5, 0, 0.5, 0.25], [0.5, 1, 0, 0.5, 0.25], [0, 0.5, 0.5, 1, 0.25]]
    np.testing.assert_allclose(found, [*expected, [0.5, 1, 0.5, 1, 0.25]])


def test_an_image_token_is_the_norm_of_feature_place_and_scale():
    model = make_objective(KALEIDO, patches=PYRAMID).model
    size = model.spec.feature_size
    inputs = jnp.ones((1, 8), jnp.int32), jnp.ones((1, 8), bool), jnp.ones((1, P, size))
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), *inputs)["params"])
    features = RNG.normal(size=(2, P, size)).astype(np.float32)
    own = params["image_embeddings"]
    assert {name: sorted(own[name]) for name in ("projection", "location")} == {
        "projection": ["kernel"],
        "location": ["kernel"],
    }
    x = features @ own["projection"]["kernel"] + coordinates(SCALES) @ own["location"]["kernel"]
    x = x + np.repeat(np.asarray(own["scale"]), [1, 4, 9], axis=0)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    found = model.apply({"params": params}, features, method="embed_image")
    np.testing.assert_allclose(found, x, rtol=1e-3, atol=1e-4)


def test_the_papers_tasks_train_on_scales():
    objective, batch = make_objective(KALEIDO, patches=PYRAMID), make_batch()
    state = make_state(objective, dataclasses.replace(CONFIG, model=KALEIDO, patches=PYRAMID))
    losses = partial(objective.losses, frozen={"patches": objective.patches.params}, batch=batch, key=jax.random.key(0))
    gradients, found = jax.jit(jax.grad(lambda p: (losses(p)[0].sum(), losses(p)[0]), has_aux=True))(state.params)
    assert np.isfinite(found).all()
    image = nn.unbox(gradients)["fashionbert"]["image_embeddings"]
    assert all(np.abs(leaf).max() > 0 for name in ("projection", "location") for leaf in image[name].values())
    assert (np.abs(np.asarray(image["scale"])).max(axis=1) > 0).all()


def check(patches=PYRAMID, model=KALEIDO, **sections):
    config = Config(patches=patches, model=model, tasks=CONFIG.tasks, train=CONFIG.train)
    return contradictions(dataclasses.replace(config, **sections))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"geometry": "per_patch"}, "set patches.geometry to 'feature_map', not 'per_patch'"),
        ({"whole_image": True}, "takes no patches.whole_image: scale 1 is the whole image"),
        ({"scales": (2, 1)}, r"must rise from 1 or more"),
        ({"scales": (0, 1)}, r"must rise from 1 or more"),
        ({"scales": ()}, "'kaleido' reads patches of several scales"),
    ],
)
def test_scales_that_do_not_fit_are_refused(settings, message):
    (found,) = [line for line in check(dataclasses.replace(PYRAMID, **settings)) if "scales" in line]
    assert message in found


def test_scales_go_with_their_architecture_and_fit_the_map():
    assert not [line for line in check() if "scales" in line]
    assert any("'fashionbert' with patches.scales (1, 2, 3)" in line for line in check(model=MODEL))
    with pytest.raises(ValueError, match="4 cells a side in its map of 16 pixels, too few for scale 5"):
        build_patch_network(dataclasses.replace(PYRAMID, scales=(1, 5)))


PICTURES = ("rotation", "jigsaw", "camouflage", "grey", "blank")
FINE = dataclasses.replace(
    PATCHES,
    geometry="feature_map",
    image_size=20,
    patch_size=4,
    patch_input_size=4,
    scales=(1, 2, 3, 4, 5),
    variants=True,
)
SPEC = InputSpec(60, 4, 16, 55, 7, scales=(1, 2, 3, 4, 5), num_variants=19)
FIRST = {1: 0, 2: 1, 3: 5, 4: 14, 5: 30}  # place of each scale's first cell


def corrupted(name, seed=0):
    """(source [2, 55], hidden [2, 55], targets) of a task on an example of two images."""
    source = jnp.broadcast_to(jnp.arange(55), (2, 55))
    example = Example(jnp.zeros(16, int), jnp.zeros(16, int), jnp.zeros((2, 1)), jnp.zeros((2, 55), bool), source)
    example, targets = TASKS[name]().corrupt(jax.random.key(seed), example, SPEC)
    return np.array(example.source), np.array(example.hidden), targets


def test_a_row_comes_from_the_own_image_or_from_the_other():
    features = np.arange(12.0).reshape(1, 2, 3, 2)  # rows [0, 1], [2, 3], [4, 5] and [6, 7], [8, 9], [10, 11]
    found = masking.rearranged(jnp.asarray(features), jnp.array([[[2, 3, 1], [0, 5, 1]]]))
    np.testing.assert_array_equal(found[0], [[[4, 5], [6, 7], [2, 3]], [[6, 7], [4, 5], [8, 9]]])


@pytest.mark.parametrize("seed", range(4))
def test_what_each_task_shows_and_asks(seed):
    for name in PICTURES:
        source, hidden, targets = corrupted(name, seed)
        places, scale, answers = np.array(targets.places), TASKS[name]().scale, np.array(targets.answers)
        first, expected, expected_hidden = FIRST[scale], np.tile(np.arange(55), (2, 1)), np.zeros((2, 55), bool)
        for image in range(2):
            if name in ("rotation", "jigsaw", "camouflage"):
                assert places[image].tolist() == list(range(first, first + scale**2))
            if name == "rotation" and answers[image]:
                expected[image, 0] = 55 + answers[image] - 1
            elif name == "jigsaw":
                expected[image, 1:5] = 1 + np.array(list(itertools.permutations(range(4)))[answers[image]])
            elif name == "camouflage":
                expected[image, 5 + answers[image]] = 55 + 19 + 5 + answers[image]
            elif name == "grey":
                assert len({*places[image]}) == 2 and all(14 <= place < 30 for place in places[image])
                expected[image, places[image]] = 55 + 3 + places[image] - 14
            elif name == "blank":
                assert len({*places[image]}) == 3 and all(30 <= place < 55 for place in places[image])
                expected_hidden[image, places[image]] = True
        np.testing.assert_array_equal(source, expected)
        np.testing.assert_array_equal(hidden, expected_hidden)


def test_losses_are_cross_entropy_of_the_angle_and_divergence_of_hidden_features():
    weight = jnp.array([0.25, 0.75])
    batch = SimpleNamespace(weight=weight)
    logits = RNG.normal(size=(2, 4)).astype(np.float32)
    targets = Targets(jnp.zeros((2, 2, 1), int), jnp.array([[1, 0], [3, 0]]))
    views = Views(pairs=PairView(None, jnp.zeros((2, 1, 1, 5)), None, None))
    found, metrics = TASKS["rotation"]().loss(lambda *_: jnp.asarray(logits), views, targets, batch)
    losses = [scipy.special.logsumexp(logits[i]) - logits[i, answer] for i, answer in enumerate((1, 3))]
    np.testing.assert_allclose(found, 0.25 * losses[0] + 0.75 * losses[1], rtol=1e-5)
    assert metrics["rotation_accuracy"] == weight @ (logits.argmax(1) == [1, 3])

    features, guess = RNG.normal(size=(2, 1, 55, 7)), RNG.normal(size=(2, 3, 7))
    places = np.array([[[30, 41, 54], [0, 0, 0]], [[33, 34, 35], [0, 0, 0]]])
    views = Views(pairs=PairView(None, jnp.zeros((2, 1, 3, 5)), None, jnp.asarray(features)))
    found, _ = TASKS["blank"]().loss(lambda *_: jnp.asarray(guess), views, Targets(jnp.asarray(places)), batch)
    p, q = scipy.special.softmax(features[[[0], [1]], 0, places[:, 0]], -1), scipy.special.softmax(guess, -1)
    np.testing.assert_allclose(found, [0.25, 0.75] @ (p * np.log(p / q)).sum(-1).mean(-1), rtol=1e-4)


def test_variants_are_the_turned_and_the_grey_picture():
    images = RNG.integers(0, 255, (2, 20, 20, 3), dtype=np.uint8)
    network, plain = build_patch_network(FINE), build_patch_network(dataclasses.replace(FINE, variants=False))
    features = np.array(network.apply(network.params, images))
    assert features.shape[1] == network.num_rows == 55 + 19 and network.num_patches == 55
    np.testing.assert_array_equal(features[:, :55], plain.apply(plain.params, images))
    for k in (1, 2, 3):
        turned = plain.apply(plain.params, np.rot90(images, k, axes=(1, 2)).copy())
        np.testing.assert_allclose(features[:, 54 + k], turned[:, 0], rtol=1e-4, atol=1e-5)
    flat = np.broadcast_to((images @ [0.299, 0.587, 0.114]).round()[..., None], images.shape).astype(np.uint8)
    grey = plain.apply(plain.params, flat)[:, 14:30]
    np.testing.assert_allclose(features[:, 58:], grey, atol=0.02)


def test_all_tasks_train_together_and_each_reaches_its_head():
    tasks = make_tasks("mlm", "tia", *PICTURES)
    objective = make_objective(KALEIDO, tasks, FINE)
    images = RNG.integers(0, 255, (2, 16, 20, 20, 3), dtype=np.uint8)
    batch = make_batch()._replace(image=images[0], negative=images[1])
    config = dataclasses.replace(CONFIG, model=KALEIDO, patches=FINE, tasks=tasks)
    state, frozen = make_state(objective, config), {"patches": objective.patches.params}

    def losses(params):
        found = objective.losses(params, frozen, batch, jax.random.key(0))[0]
        return found.sum(), found

    gradients, found = jax.jit(jax.grad(losses, has_aux=True))(state.params)
    assert found.shape == (7,) and np.isfinite(found).all()
    for name in PICTURES:
        assert np.abs(nn.unbox(gradients)["fashionbert"][name]["kernel"]).max() > 0


def test_tasks_name_the_scale_and_the_variants_that_they_miss():
    patches = dataclasses.replace(FINE, scales=(1, 2, 4), variants=False)
    found = check(patches, tasks=make_tasks("tia", *PICTURES))
    for name, scale in (("camouflage", 3), ("blank", 5)):
        assert f"task {name} reads scale {scale}, which is not in patches.scales (1, 2, 4) (add it)" in found
    assert sum("set patches.variants to true" in line for line in found) == 2
