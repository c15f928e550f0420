"""Kaleido-BERT: patches of several scales, and embeddings that know where they lie, against sums by hand."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax.config.checks import contradictions
from fbjax.config.schema import Config
from fbjax.model.grids.cells import pyramid
from fbjax.model.patch_features import build_patch_network
from fbjax.model.rivals.kaleido import coordinates
from tests.support.objectives import CONFIG, MODEL, PATCHES, make_batch, make_objective, make_state

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
    ours = dataclasses.replace(CONFIG.train), dataclasses.replace(PYRAMID, **settings)
    (found,) = [line for line in check(ours[1]) if "scales" in line]
    assert message in found


def test_scales_go_with_their_architecture_and_fit_the_map():
    assert not [line for line in check() if "scales" in line]
    assert any("'fashionbert' with patches.scales (1, 2, 3)" in line for line in check(model=MODEL))
    with pytest.raises(ValueError, match="4 cells a side in its map of 16 pixels, too few for scale 5"):
        build_patch_network(dataclasses.replace(PYRAMID, scales=(1, 5)))
