"""What a student learns from its teacher: losses by hand and by brute force, and what must not change them."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax.config.schema import AdaptiveConfig, MeshConfig
from fbjax.parallel.mesh import make_mesh, put_batch
from fbjax.runs.state import make_optimizer
from fbjax.tasks.distillation import divergence
from fbjax.tasks.teacher import Teacher, mapped_layers
from fbjax.tasks.towers.contrast import valid_negatives
from fbjax.training.step import make_step, with_seed
from tests.support.objectives import CONFIG, MODEL, TRAIN, B, make_batch, make_objective, make_state, make_tasks
from tests.support.runs import make_one_device_mesh

TERMS = ("hidden", "attention", "logits")
DEEP = dataclasses.replace(MODEL, num_layers=5)
CROSS = make_tasks("tia", "distillation")
TOWERS = make_tasks("itc", "tower_distillation", itc={"embedding_dim": 8}, tower_distillation={"candidates": 3})


def make_taught(tasks=CROSS, model=MODEL, teacher=DEEP):
    """An objective with a teacher, and the teacher's parameters."""
    teaching = make_objective(teacher, make_tasks("tia"))
    objective = dataclasses.replace(make_objective(model, tasks), teacher=Teacher.of(teaching.model))
    return objective, make_state(teaching).params["fashionbert"]


def losses_of(objective, params, taught_by, batch):
    frozen = {"patches": {}, "teacher": taught_by}
    losses, metrics = jax.jit(objective.losses)(params, frozen, batch, jax.random.key(3))
    return dict(zip(objective.names, map(float, losses), strict=True)), {k: float(v) for k, v in metrics.items()}


def test_the_divergence_of_two_classes_by_hand():
    teacher, student = jnp.log(jnp.array([[0.8, 0.2]])), jnp.log(jnp.array([[0.5, 0.5]]))
    expected = 0.8 * np.log(0.8 / 0.5) + 0.2 * np.log(0.2 / 0.5)
    np.testing.assert_allclose(divergence(teacher, student, 1.0), [expected], rtol=1e-5)
    # twice the logits at a temperature of 2 are the same distributions, times 4
    np.testing.assert_allclose(divergence(2 * teacher, 2 * student, 2.0), [4 * expected], rtol=1e-5)
    wider = jnp.concatenate([student, jnp.array([[7.0]])], axis=1), jnp.array([[True, True, False]])
    found = divergence(jnp.concatenate([teacher, jnp.array([[-3.0]])], axis=1), wider[0], 1.0, wider[1])
    np.testing.assert_allclose(found, [expected], rtol=1e-5)


def test_layers_are_evenly_spaced_and_the_last_learns_from_the_last():
    assert mapped_layers(12, 2) == [5, 11] and mapped_layers(12, 4) == [2, 5, 8, 11]
    assert mapped_layers(5, 2) == [1, 4] and mapped_layers(3, 3) == [0, 1, 2]


@pytest.mark.parametrize("term", TERMS)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(term):
    alone = {other: float(other == term) for other in TERMS}
    tasks = make_tasks("tia", "mlm", distillation=alone)  # what mlm hides, it hides from both
    tasks = make_tasks(*tasks, "distillation", distillation=alone)
    objective = make_objective(MODEL, tasks)
    objective = dataclasses.replace(objective, teacher=Teacher.of(objective.model))
    params = make_state(objective).params
    losses, metrics = losses_of(objective, params, params["fashionbert"], make_batch())
    assert losses["distillation"] == pytest.approx(0, abs=1e-9) and losses["mlm"] > 1
    assert {name for name in metrics if name.startswith("distillation")} == {f"distillation_{term}"}
    moved = jax.tree.map(lambda x: 1.1 * x, params["fashionbert"])
    assert losses_of(objective, params, moved, make_batch())[0]["distillation"] > 1e-6


def test_the_terms_equal_a_recomputation_without_padding():
    """Each pair on its own, unpadded, through every layer of both models by hand."""
    objective, taught_by = make_taught()
    params, batch = make_state(objective).params, make_batch()
    apply_layers = partial(_hidden_and_attention, images=(batch.image, batch.negative), patches=objective.patches)
    expected = np.zeros(3)
    for b in range(B):
        for pair in range(2):
            ids = batch.ids[b][batch.ids[b] != 0]
            ours = apply_layers(objective.model, params["fashionbert"], ids, b, pair)
            theirs = apply_layers(objective.teacher.model, taught_by, ids, b, pair)
            rows = [0, *(layer + 1 for layer in mapped_layers(5, 2))]
            expected[0] += np.square(ours[0] - theirs[0][rows]).mean()
            expected[1] += np.square(ours[1] - theirs[1][mapped_layers(5, 2)]).sum(axis=-1).mean()
            expected[2] += float(divergence(theirs[2], ours[2], 2.0))
    losses, metrics = losses_of(objective, params, taught_by, batch)
    found = [metrics[f"distillation_{term}"] for term in TERMS]
    np.testing.assert_allclose(found, expected / (2 * B), rtol=1e-4)
    assert losses["distillation"] == pytest.approx(sum(found), rel=1e-5)


def _hidden_and_attention(model, params, ids, b, pair, images, patches):
    """Hidden states [S + 1, L, D], attention [S, H, L, L] and match logits [2] of one pair."""
    apply = partial(model.apply, {"params": params})
    features = patches.apply({}, images[pair][b : b + 1])
    text, image = apply(ids[None], method="embed_text"), apply(features, method="embed_image")
    x = np.concatenate([text, image], axis=1)[0]
    hidden, attention = [x], []
    for i in range(model.config.num_layers):
        layer = jax.device_get(params["encoder"][f"layer_{i}"])
        split = len(x), model.config.num_heads, -1
        q, k, v = (_dense(x, layer["attention"][name]).reshape(split) for name in ("query", "key", "value"))
        logits = np.einsum("rnh,lnh->nrl", q, k) / np.sqrt(q.shape[-1])
        attention.append(np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True))
        mixed = np.einsum("nrl,lnh->rnh", attention[-1], v).reshape(len(x), -1)
        x = _norm(x + _dense(mixed, layer["attention"]["out"]), layer["attention_norm"])
        inner = np.asarray(jax.nn.gelu(_dense(x, layer["mlp_in"]), approximate=False))
        x = _norm(x + _dense(inner, layer["mlp_out"]), layer["mlp_norm"])
        hidden.append(x)
    logits = np.asarray(apply(jnp.asarray(x[None, 0]), None, method="match_logits"))[0]
    return np.stack(hidden), np.stack(attention), logits


def _dense(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def _norm(x, layer):
    scaled = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-12)
    return scaled * layer["scale"] + layer["bias"]


def test_the_teacher_has_no_gradient_and_no_place_in_the_state():
    objective, taught_by = make_taught()
    state, batch = make_state(objective), make_batch()

    def loss(params, taught_by):
        frozen = {"patches": {}, "teacher": taught_by}
        return objective.losses(params, frozen, batch, jax.random.key(3))[0].sum()

    ours, theirs = jax.jit(jax.grad(loss, argnums=(0, 1)))(state.params, taught_by)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(theirs)) == 0
    assert float(jnp.abs(ours["fashionbert"]["encoder"]["layer_0"]["attention"]["query"]["kernel"]).max()) > 0
    assert state.params.keys() == {"fashionbert"} and "layer_2" not in state.params["fashionbert"]["encoder"]


def test_towers_learn_the_order_of_their_nearest_images():
    """Against each text scored by the teacher with every image; groups of two, so no text's partner is a candidate."""
    objective, taught_by = make_taught(TOWERS)
    params, batch = make_state(objective).params, make_batch()
    losses, _ = losses_of(objective, params, taught_by, batch)
    apply = partial(objective.model.apply, {"params": params["fashionbert"]})
    features = objective.patches.apply({}, batch.image)
    vectors = [
        np.asarray(apply(apply(*inputs, method="read"), method="vector"))
        for inputs in ((batch.ids, None, None), (None, None, features))
    ]
    ours = float(apply(method="logit_scale")) * vectors[0] @ vectors[1].T
    everything = np.tile(np.arange(B), (B, 1))
    theirs = np.asarray(objective.teacher.match(taught_by, batch.ids, features, everything))
    negatives = np.asarray(valid_negatives(jnp.asarray(batch.group), jnp.asarray(batch.ids)))
    expected = 0.0
    for b in range(B):
        others = np.flatnonzero(negatives[b])
        rows = np.array([b, *others[np.argsort(-ours[b, others])][:3]])
        expected += float(divergence(theirs[b, rows], ours[b, rows], 2.0)) / B
    assert losses["tower_distillation"] == pytest.approx(expected, rel=1e-4) and not negatives.all()


def test_a_batch_with_too_few_candidates_still_has_a_loss():
    objective, taught_by = make_taught(TOWERS)
    batch = make_batch()._replace(group=np.zeros(B, np.int32))
    losses, _ = losses_of(objective, make_state(objective).params, taught_by, batch)
    assert losses["tower_distillation"] == pytest.approx(0, abs=1e-6)  # each text's own image alone is left


def stepped(tasks, mesh=None, micro_batches=1, **adaptive):
    """Parameters and metrics after two steps."""
    objective, taught_by = make_taught(tasks)
    config = dataclasses.replace(CONFIG, tasks=tasks, adaptive=AdaptiveConfig(**adaptive))
    config = dataclasses.replace(config, train=dataclasses.replace(TRAIN, micro_batches=micro_batches))
    devices = make_mesh(mesh) if mesh else make_one_device_mesh()
    state = make_state(objective, config, devices)
    step = make_step(objective, make_optimizer(TRAIN), config, devices, state)
    constants = with_seed({"patches": {}, "teacher": jax.device_get(taught_by)}, config)
    with jax.set_mesh(devices):
        for i in range(2):
            state, metrics = step(state, constants, put_batch(make_batch(i), devices))
    return jax.device_get((state.params, metrics))


@pytest.mark.parametrize("tasks", [CROSS, pytest.param(TOWERS, marks=pytest.mark.slow)])
def test_a_taught_step_is_the_same_on_eight_devices_and_in_micro_batches(tasks):
    params, metrics = stepped(tasks)
    for other, other_metrics in (stepped(tasks, MeshConfig(2, 2, 2)), stepped(tasks, micro_batches=4)):
        for name, value in metrics.items():
            np.testing.assert_allclose(other_metrics[name], value, rtol=2e-4, atol=1e-6, err_msg=name)
        difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), params, other)
        assert max(jax.tree.leaves(difference)) < 2e-3  # two steps, of 0 and 5e-3


def test_recomputed_layers_teach_the_same():
    objective, taught_by = make_taught()
    again, _ = make_taught(model=dataclasses.replace(MODEL, remat="layers"))
    params, batch = make_state(objective).params, make_batch()
    losses, metrics = losses_of(objective, params, taught_by, batch)
    for one, other in zip((losses, metrics), losses_of(again, params, taught_by, batch), strict=True):
        assert one == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"distillation": {}}, "tasks.distillation.teacher names no teacher: set it to a workdir"),
        (
            {"distillation": {"teacher": "x", "hidden": 0.0, "attention": 0.0, "logits": 0.0}},
            "weights hidden, attention and logits of 0: raise one",
        ),
        ({"tower_distillation": {"teacher": "x"}}, "teaches towers, which no task here trains: add itc"),
        ({"tower_distillation": {"teacher": "x", "candidates": 16}}, "candidates 16 must be below train.batch_size 16"),
    ],
)
def test_what_cannot_be_taught_is_said(changes, said):
    tasks = make_tasks("tia", *changes, **changes)
    config = dataclasses.replace(CONFIG, tasks=tasks)
    assert any(said in problem for task in tasks.values() for problem in task.check(config))


def test_a_term_that_nothing_computes_is_said():
    task = make_tasks("distillation", distillation={"teacher": "x"})["distillation"]
    model = dataclasses.replace(MODEL, attention="cudnn", dtype="bfloat16")
    patches = dataclasses.replace(CONFIG.patches, mode="trained")
    config = dataclasses.replace(CONFIG, tasks={"distillation": task}, model=model, patches=patches)
    found = " ".join(task.check(config))
    assert "model.attention 'cudnn' never forms (use 'xla'" in found and "add tia (or set it to 0)" in found
    assert "patches.mode 'trained' would change the student's" in found
