"""Token-patch alignment against an exact solver, the loops of the papers, and what must not change it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from fbjax.config.load import load_config
from fbjax.config.schema import AdaptiveConfig, MeshConfig
from fbjax.tasks.alignment.transport import transport_distance, transport_plan
from tests.support.objectives import CONFIG, MODEL, TRAIN, make_batch, make_objective, make_state, make_tasks
from tests.unit.test_objective import assert_same_step, losses_of, stepped

TASKS = make_tasks("tia", "tpa")


def costs(rng, *shape):
    return rng.uniform(0, 2, shape).astype(np.float32)


def exact(cost):
    """The cheapest plan of ``cost [T, P]`` by linear programming."""
    t, p = cost.shape
    rows, columns = np.kron(np.eye(t), np.ones(p)), np.kron(np.ones(t), np.eye(p))
    found = linprog(cost.ravel(), A_eq=np.vstack([rows, columns]), b_eq=[1 / t] * t + [1 / p] * p)
    return found.fun, found.x.reshape(t, p)


def ipot_by_loops(cost, step_size, num_steps):
    """Algorithm 1 of Xie et al. 2020 with one inner step, as UNITER has it."""
    t, p = cost.shape
    plan, kernel, b = np.ones((t, p)), np.exp(-cost / step_size), np.full(p, 1 / p)
    for _ in range(num_steps):
        q = kernel * plan
        a = 1 / (t * q @ b)
        b = 1 / (p * q.T @ a)
        plan = a[:, None] * q * b
    return plan


@pytest.mark.parametrize("shape", [(3, 4), (6, 4), (1, 5), (7, 16)])
def test_a_plan_is_that_of_loops_and_comes_to_the_exact_one(shape):
    cost = costs(np.random.default_rng(sum(shape)), *shape)
    words = jnp.ones(shape[0], bool)
    np.testing.assert_allclose(
        transport_plan(cost, words, 0.5, 20), ipot_by_loops(cost.astype(float), 0.5, 20), rtol=1e-3, atol=1e-6
    )
    cheapest, plan = exact(cost)
    few, many = (transport_plan(cost, words, 0.5, steps) for steps in (50, 3000))
    assert float(transport_distance(cost, few)) == pytest.approx(cheapest, abs=0.01)
    assert float(transport_distance(cost, many)) == pytest.approx(cheapest, abs=1e-4)
    np.testing.assert_allclose(many, plan, atol=1e-3)  # costs drawn at random have one cheapest plan


@pytest.mark.parametrize("seed", range(20))
def test_all_words_go_and_all_patches_are_filled(seed):
    rng = np.random.default_rng(seed)
    (t, p), scale = rng.integers(1, 12, 2), 10.0 ** rng.integers(-3, 1)
    cost, words = scale * costs(rng, t, p), np.arange(t) < rng.integers(1, t + 1)
    plan = np.asarray(transport_plan(cost, words, 0.5, 500))
    assert plan.min() >= 0
    np.testing.assert_allclose(plan.sum(axis=0), 1 / p, rtol=1e-4)
    np.testing.assert_allclose(plan.sum(axis=1), words / words.sum(), rtol=0.02, atol=1e-7)


def test_what_is_no_word_changes_no_plan_and_order_is_kept():
    rng = np.random.default_rng(0)
    cost, words = costs(rng, 2, 6, 5), np.array([[False, True, True, False, True, False], [False] * 6])
    plan = np.asarray(transport_plan(cost, words, 0.5, 50))
    alone = transport_plan(cost[0][words[0]], jnp.ones(3, bool), 0.5, 50)
    np.testing.assert_allclose(plan[0][words[0]], alone, rtol=1e-4, atol=1e-7)
    assert not plan[0][~words[0]].any() and not plan[1].any()
    rows, columns = rng.permutation(6), rng.permutation(5)
    moved = transport_plan(cost[:, rows][:, :, columns], words[:, rows], 0.5, 50)
    np.testing.assert_allclose(moved, plan[:, rows][:, :, columns], rtol=1e-4, atol=1e-7)


def alignment_by_loops(words, patches):
    """The exact distance of hidden states ``words [t, D], patches [p, D]``."""
    units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (words.astype(float), patches.astype(float))]
    cost = 1 - units[0] @ units[1].T
    return (ipot_by_loops(cost, 0.5, 50) * cost).sum()


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("margin", [0.01, 2.0])
def test_the_loss_is_that_of_loops_over_hidden_states(first, margin):
    """With a margin of 2 it is UNITER's difference, plus 2. The token of the whole image takes no part."""
    patches = dataclasses.replace(CONFIG.patches, whole_image=bool(first))
    objective = make_objective(tasks=make_tasks("tia", "tpa", tpa={"margin": margin}), patches=patches)
    params, batch = make_state(objective).params, make_batch()
    apply = lambda *x, **k: objective.model.apply({"params": params["fashionbert"]}, *x, **k)  # noqa: E731
    text, distances = apply(batch.ids, method="embed_text"), []
    for image in (batch.image, batch.negative):
        embedded = apply(objective.patches.apply({}, image).astype(np.float32), method="embed_image")
        hidden = np.asarray(apply(text, batch.ids != 0, embedded, method="encode"))
        t = batch.ids.shape[1]
        distances.append(
            [alignment_by_loops(h[:t][w >= 0], h[t + first :]) for h, w in zip(hidden, batch.word_ids, strict=True)]
        )
    own, other = np.array(distances)
    hinges = np.maximum(0, margin + own - other)
    assert 0 < (hinges > 0).mean() <= 1 and (margin < 2 or (hinges > 0).all())
    assert float(losses_of(objective, params, batch)[1]) == pytest.approx(hinges.mean(), rel=1e-3)


def test_the_plan_is_held_constant_and_the_whole_encoder_learns():
    rng = np.random.default_rng(1)
    cost, words = jnp.asarray(costs(rng, 3, 4)), jnp.ones(3, bool)
    distance = lambda c: transport_distance(c, transport_plan(c, words, 0.5, 50))  # noqa: E731
    np.testing.assert_array_equal(jax.grad(distance)(cost), transport_plan(cost, words, 0.5, 50))
    objective, batch = make_objective(tasks=TASKS), make_batch()
    params = make_state(objective).params
    loss = lambda p: objective.losses(p, {"patches": {}}, batch, jax.random.key(3))[0][1]  # noqa: E731
    found = jax.tree.map(lambda x: float(np.abs(x).max()), jax.jit(jax.grad(loss))(params)["fashionbert"])
    assert all(np.isfinite(jax.tree.leaves(found)))
    assert found["image_embeddings"]["projection"]["kernel"] > 0 and found["tia"]["kernel"] == 0


def test_a_text_without_words_has_a_finite_loss_and_gradient():
    objective, batch = make_objective(tasks=TASKS), make_batch()
    ids, word_ids = batch.ids.copy(), batch.word_ids.copy()
    ids[0], word_ids[0] = [2, 3, *[0] * (ids.shape[1] - 2)], -1
    batch, params = batch._replace(ids=ids, word_ids=word_ids), make_state(objective).params
    loss = lambda p: objective.losses(p, {"patches": {}}, batch, jax.random.key(3))[0][1]  # noqa: E731
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(params)))


def test_padding_changes_no_loss():
    objective, padded = make_objective(tasks=TASKS), make_batch()
    ids, word_ids = padded.ids.copy(), padded.word_ids.copy()
    ids[:, 8:], word_ids[:, 8:] = 0, -1
    padded = padded._replace(ids=ids, word_ids=word_ids)
    trimmed, params = padded._replace(ids=ids[:, :8], word_ids=word_ids[:, :8]), make_state(objective).params
    np.testing.assert_allclose(*(losses_of(objective, params, b) for b in (trimmed, padded)), rtol=1e-4)


def test_eight_devices_and_micro_batches_change_no_step():
    config = dataclasses.replace(
        CONFIG, model=dataclasses.replace(MODEL, num_layers=1), tasks=TASKS, adaptive=AdaptiveConfig(method="fixed")
    )
    in_parts = dataclasses.replace(config, train=dataclasses.replace(TRAIN, micro_batches=2))
    assert_same_step(stepped(config), stepped(in_parts, mesh=MeshConfig(8, 1, 1)))


def test_a_run_without_negatives_is_told():
    with pytest.raises(ValueError, match="tasks.tpa compares a text with two images, .*: add tia"):
        load_config("catalogue_alignment", ["tasks=mlm,tpa"])
