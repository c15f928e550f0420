"""Captioning: what a position may see, the loss by brute force, and what must not change its step."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax.config.schema import AdaptiveConfig, MeshConfig, PatchConfig
from fbjax.model.fashionbert import _prefix_mask
from fbjax.parallel.mesh import make_mesh, put_batch
from fbjax.runs.state import make_optimizer
from fbjax.training.step import make_step, with_seed
from tests.support.objectives import (
    CONFIG,
    MODEL,
    PATCHES,
    TRAIN,
    T,
    make_batch,
    make_objective,
    make_state,
    make_tasks,
)
from tests.support.runs import make_one_device_mesh
from tests.unit.test_objective import assert_same_step, losses_of

KINDS = {
    "fashionbert": (MODEL, PATCHES),
    "gated": (dataclasses.replace(MODEL, cross_attention="gated"), PATCHES),
    "kaleido": (
        dataclasses.replace(MODEL, architecture="kaleido"),
        PatchConfig(network="pixels", image_size=16, patch_size=4, geometry="feature_map", scales=(1, 2, 4)),
    ),
    "vlbert": (dataclasses.replace(MODEL, architecture="vlbert"), dataclasses.replace(PATCHES, whole_image=True)),
}


def objective_of(*names, kind="fashionbert"):
    model, patches = KINDS[kind]
    return make_objective(model, make_tasks(*names), patches)


def test_the_mask_by_hand():
    mask = jnp.array([[True, True, True, True, True], [True, True, False, True, True]])
    whole = [[1, 0, 0, 1, 1], [1, 1, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1]]
    padded = [[1, 0, 0, 1, 1], [1, 1, 0, 1, 1], [1, 1, 0, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1]]
    assert np.asarray(_prefix_mask(mask, 2)).astype(int).tolist() == [whole, padded]


@pytest.mark.parametrize("kind", KINDS)
def test_a_position_sees_the_image_and_no_later_piece(kind):
    objective, batch = objective_of("caption", "tia", kind=kind), make_batch()
    params = make_state(objective).params["fashionbert"]
    apply = partial(objective.model.apply, {"params": params})
    ids, place = np.array(batch.ids), 3
    features = objective.patches.apply({}, batch.image)

    def states(ids, features):
        image = apply(features, method="embed_image")
        return np.asarray(apply(ids, image, method="read_left_to_right"))

    before = states(ids, features)
    changed = ids.copy()
    changed[:, place] = np.where(ids[:, place] == 7, 8, 7)
    after = states(changed, features)
    np.testing.assert_allclose(after[:, :place], before[:, :place], atol=1e-5)
    assert (np.abs(after - before)[:, place:][ids[:, place:] != 0].max(axis=-1) > 1e-4).all()
    shown = states(ids, features[::-1])
    assert (np.abs(shown - before)[ids != 0].max(axis=-1) > 1e-4).all()
    cut = states(ids[:, : place + 1], features)  # what is not yet written does not matter
    np.testing.assert_allclose(cut, before[:, : place + 1], atol=1e-5)


@pytest.mark.parametrize("kind", ["fashionbert", "gated"])
def test_the_image_sees_no_text(kind):
    objective, batch = objective_of("caption", "tia", kind=kind), make_batch()
    params = make_state(objective).params["fashionbert"]
    apply = partial(objective.model.apply, {"params": params}, method="encode", left_to_right=True)
    image = objective.model.apply({"params": params}, objective.patches.apply({}, batch.image), method="embed_image")
    text = objective.model.apply({"params": params}, batch.ids, method="embed_text")

    def of_image(text):
        return apply(text, batch.ids != 0, image)[:, text.shape[1] :]

    np.testing.assert_allclose(of_image(text), of_image(text[::-1]), atol=1e-5)
    slope = jax.grad(lambda text: jnp.square(of_image(text)).sum())(text)
    assert float(np.abs(slope).max()) == 0


def test_the_loss_is_that_of_every_prefix_read_alone():
    """By the first t pieces of one product, all others padding, and its image, whatever other tasks hide."""
    objective, batch = objective_of("caption", "mlm", "mpm", "tia"), make_batch()
    params = make_state(objective).params
    apply = partial(objective.model.apply, {"params": params["fashionbert"]})
    images = apply(objective.patches.apply({}, batch.image), method="embed_image")

    @jax.jit
    def next_piece(ids, image):
        hidden = apply(ids[None], image[None], method="read_left_to_right")[0]
        return jax.nn.log_softmax(apply("mlm", "logits", hidden, method="run_head"))

    losses, right = [], []
    for ids, image in zip(batch.ids, images, strict=True):
        for end in range(1, int((ids != 0).sum())):
            said = np.asarray(next_piece(np.where(np.arange(T) < end, ids, 0), image))[end - 1]
            losses.append(-said[ids[end]])
            right.append(said.argmax() == ids[end])
    found, metrics = jax.jit(objective.losses)(params, {"patches": {}}, batch, jax.random.key(3))
    assert found[0] == pytest.approx(np.mean(losses), rel=1e-4)
    assert float(metrics["caption_right"]) == pytest.approx(np.mean(right))


def test_the_head_is_that_of_mlm():
    """One set of parameters, whether one of both tasks is trained or both; another task's loss stays as it is."""
    both, mlm = objective_of("caption", "mlm", "tia"), objective_of("mlm", "tia")
    params = make_state(both).params
    assert jax.tree.structure(params) == jax.tree.structure(make_state(mlm).params)
    assert jax.tree.structure(params) == jax.tree.structure(make_state(objective_of("caption", "tia")).params)
    np.testing.assert_allclose(
        losses_of(both, params, make_batch())[1:], losses_of(mlm, params, make_batch()), rtol=1e-6
    )


def stepped(config, mesh=None):
    devices = make_mesh(mesh) if mesh else make_one_device_mesh()
    objective = make_objective(config.model, config.tasks)
    state, seen, batch = make_state(objective, config, devices), [], make_batch()
    step = make_step(objective, make_optimizer(TRAIN), config, devices, state)
    with jax.set_mesh(devices):
        for _ in range(2):
            state, metrics = step(state, with_seed({"patches": {}}, config), put_batch(batch, devices))
            seen.append(jax.device_get((state.task_weights, metrics)))
    return jax.device_get(state.params), *zip(*seen, strict=True)


@pytest.mark.parametrize("mesh", [MeshConfig(8, 1, 1), MeshConfig(2, 2, 2)])
def test_eight_devices_and_micro_batches_change_no_step(mesh):
    tasks, adaptive = make_tasks("caption", "mlm", "tia"), AdaptiveConfig(method="gradient")
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, num_layers=1), tasks=tasks, adaptive=adaptive)
    in_parts = dataclasses.replace(config, train=dataclasses.replace(TRAIN, micro_batches=2))
    assert_same_step(stepped(config), stepped(in_parts, mesh))


def test_what_is_left_of_the_text_is_said_in_the_report():
    task = make_tasks("caption")["caption"]
    assert task.note({"caption_right": 0.25, "caption/loss": np.log(8)}) == (
        "At the end 25.0% of the pieces were predicted correctly, with a perplexity of 8.0."
    )
    assert task.note({}) == ""
