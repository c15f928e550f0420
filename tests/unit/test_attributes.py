"""Attributes: classes counted by hand, the loss against scikit-learn's, and what must not change its step."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
import scipy.special
from sklearn.metrics import log_loss

from fbjax.config.schema import AdaptiveConfig, MeshConfig
from fbjax.data.batches.classes import Classes
from fbjax.model.fashionbert import build_model
from fbjax.model.patch_features import build_patch_network
from fbjax.parallel.mesh import make_mesh, put_batch
from fbjax.runs.state import make_optimizer
from fbjax.tasks.objective import Objective
from fbjax.training.step import make_step, with_seed
from tests.support.objectives import CONFIG, MODEL, PATCHES, TRAIN, B, V, make_batch, make_state, make_tasks
from tests.support.runs import make_one_device_mesh
from tests.unit.test_objective import assert_same_step, losses_of

SIZES = (3, 4)
ONE_LAYER = dataclasses.replace(MODEL, num_layers=1)
CELLS = np.array([["a", "x"], ["b", ""], ["a", "y"], ["b", "y"], ["", "y"], ["c", "x"]])


def make_attribute_objective(**settings):
    network, tasks = build_patch_network(PATCHES), tuple(make_tasks("attributes", attributes=settings).values())
    return Objective(build_model(ONE_LAYER, tasks, network, V, 4, 0, SIZES), network, tasks)


def config_of(**settings):
    tasks = make_tasks("attributes", attributes=settings)
    return dataclasses.replace(CONFIG, model=ONE_LAYER, tasks=tasks, adaptive=AdaptiveConfig(method="fixed"))


def labelled_batch():
    """Of 16 products the first lacks both attributes, the second the second."""
    labels = np.random.default_rng(1).integers(0, SIZES, (B, 2)).astype(np.int32)
    labels[0], labels[1, 1] = -1, -1
    return make_batch()._replace(negative=None, attributes=labels)


def test_classes_are_the_frequent_values_of_training_products():
    classes = Classes.of_cells(("kind", "make"), CELLS, fewest=2)
    kind, make = classes.columns
    assert (kind.values, kind.rare, kind.without) == (("a", "b"), {"c"}, 1)
    assert (make.values, make.without, classes.sizes) == (("y", "x"), 1, (2, 2))
    asked = np.array([["b", "x"], ["c", ""], ["", "unseen"]])
    assert classes.codes(asked).tolist() == [[1, 1], [-1, -1], [-1, -1]]
    assert Classes.from_json(classes.to_json()) == classes != Classes.of_cells(("kind", "make"), CELLS, fewest=1)
    assert Classes.from_json(classes.to_json()).columns == classes.columns
    with pytest.raises(ValueError, match=r"'kind' has 0 values with at least 3 of the 6 .*\(3 values in all\)"):
        Classes.of_cells(("kind", "make"), CELLS, fewest=3)


@pytest.mark.parametrize("reads", ["pair", "image", "text"])
def test_the_loss_is_scikit_learns_over_the_products_that_have_the_attribute(reads):
    objective, batch = make_attribute_objective(reads=reads), labelled_batch()
    params = make_state(objective, config_of(reads=reads)).params
    apply = partial(objective.model.apply, {"params": params["fashionbert"]})
    features = objective.patches.apply({}, batch.image)
    text, image, mask = apply(batch.ids, method="embed_text"), apply(features, method="embed_image"), batch.ids != 0
    if reads == "pair":
        read = apply(text, mask, image, method="encode")[:, 0]
    elif reads == "text":
        hidden = np.asarray(apply(text, mask, image[:, :0], method="encode"))
        read = np.stack([h[m].mean(axis=0) for h, m in zip(hidden, mask, strict=True)])
    else:
        read = apply(text[:, :0], mask[:, :0], image, method="encode").mean(axis=1)
    head = params["fashionbert"]["attributes"]
    logits = np.split(np.asarray(read) @ np.asarray(head["kernel"]) + np.asarray(head["bias"]), [SIZES[0]], axis=1)
    total = 0.0
    for place, of_column in enumerate(logits):
        there = batch.attributes[:, place] >= 0
        chances = scipy.special.softmax(of_column[there].astype(float), axis=1)
        total += log_loss(batch.attributes[there, place], chances, normalize=False, labels=range(SIZES[place]))
    assert float(losses_of(objective, params, batch)[0]) == pytest.approx(total / (2 * B), rel=1e-4)


def test_metrics_count_what_is_right_and_what_is_there():
    objective, batch = make_attribute_objective(), labelled_batch()
    params = make_state(objective, config_of()).params
    _, metrics = jax.jit(objective.losses)(params, {"patches": {}}, batch, jax.random.key(3))
    assert float(metrics["attributes_there"]) == pytest.approx(29 / 32)
    (task,) = objective.tasks
    assert task.note({"attributes_right": 0.4, "attributes_there": 0.8}).startswith("At the end 50.0%")
    assert "20.0% of the values are missing" in task.note({"attributes_right": 0.4, "attributes_there": 0.8})


def test_products_without_any_attribute_teach_nothing():
    objective = make_attribute_objective()
    params = make_state(objective, config_of()).params
    batch = labelled_batch()._replace(attributes=np.full((B, 2), -1, np.int32))
    loss = lambda p: objective.losses(p, {"patches": {}}, batch, jax.random.key(3))[0][0]  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(params)
    assert max(float(np.abs(x).max()) for x in jax.tree.leaves(gradient)) == 0


def test_without_the_task_a_model_has_the_parameters_that_it_had():
    """The head is its own: no other parameter is new or drawn anew."""
    beside = Objective(
        build_model(ONE_LAYER, tasks := tuple(make_tasks("tia", "attributes").values()), network(), V, 4, 0, SIZES),
        network(),
        tasks,
    )
    alone = Objective(build_model(ONE_LAYER, tasks[:1], network(), V, 4), network(), tasks[:1])
    ours, theirs = (init(objective) for objective in (beside, alone))
    assert ours.keys() - theirs.keys() == {"attributes"} and tasks[0].name == "tia"
    jax.tree.map(np.testing.assert_array_equal, {name: ours[name] for name in theirs}, theirs)


def network():
    return build_patch_network(PATCHES)


def init(objective):
    ids, features = np.ones((1, 8), np.int32), np.ones((1, 16, 48), np.float32)
    return objective.model.init(jax.random.key(0), ids, ids > 0, features)["params"]


def stepped(config, mesh=None):
    devices = make_mesh(mesh) if mesh else make_one_device_mesh()
    objective = make_attribute_objective()
    state, seen = make_state(objective, config, devices), []
    step = make_step(objective, make_optimizer(TRAIN), config, devices, state)
    with jax.set_mesh(devices):
        for _ in range(2):
            state, metrics = step(state, with_seed({"patches": {}}, config), put_batch(labelled_batch(), devices))
            seen.append(jax.device_get((state.task_weights, metrics)))
    return jax.device_get(state.params), *zip(*seen, strict=True)


def test_eight_devices_and_micro_batches_change_no_step():
    config = config_of()
    in_parts = dataclasses.replace(config, train=dataclasses.replace(TRAIN, micro_batches=2))
    assert_same_step(stepped(config), stepped(in_parts, MeshConfig(8, 1, 1)))
