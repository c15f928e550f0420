"""The adaptive loss against the paper's formula, the release's worked examples, and its own definition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fbjax.config.schema import AdaptiveConfig
from fbjax.tasks.objective import Losses, TaskHead
from fbjax.training.micro_batches import join, split
from fbjax.training.task_weights import loss_softmax_weights, norm_shares, solve_weights, weighted_gradient

FIXED = (0.1, 0.2, 0.7)
norms = st.lists(st.floats(0, 2.0**40, width=32, allow_subnormal=False), min_size=3, max_size=3)


def test_eq_6_by_hand():
    # 1/(3-0), 1/(3-1), 1/(3-2) = 1/3, 1/2, 1, which sum to 11/6
    np.testing.assert_allclose(solve_weights(jnp.array([0.0, 1.0, 2.0])), [2 / 11, 3 / 11, 6 / 11], rtol=1e-6)


@given(norms, st.floats(0.03, 0.97))
def test_weights_are_positive_and_sum_to_one_for_any_norms(squared, domain):
    weights = solve_weights(norm_shares(jnp.array(squared, jnp.float32), domain))
    assert (np.asarray(weights) > 0).all()
    assert float(weights.sum()) == pytest.approx(1, abs=1e-5)


@given(norms)
def test_a_domain_of_a_third_holds_the_ratio_of_two_weights_under_three_halves(squared):
    weights = np.asarray(solve_weights(norm_shares(jnp.array(squared, jnp.float32), 1 / 3)))
    assert weights.max() / weights.min() <= 1.5 + 1e-5


def test_scaling_by_hand():
    squared = jnp.array([1.0, 3.0, 0.0])
    np.testing.assert_allclose(norm_shares(squared, 2 / 3), [0.5, 1.5, 0.0])


@pytest.mark.parametrize(
    "losses, weights, effective",  # the release, losses in its order MLM, TIA, MPM
    [
        ([8.0, 0.69, 1.0], [0.428, 0.286, 0.286], [0.431, 0.285, 0.284]),
        ([3.0, 0.60, 0.20], [0.400, 0.300, 0.300], [0.457, 0.266, 0.277]),
        ([1.2, 0.20, 0.03], [0.359, 0.321, 0.320], [0.390, 0.305, 0.305]),
    ],
)
def test_loss_softmax_gives_the_worked_examples_of_the_release(losses, weights, effective):
    losses = jnp.array(losses)
    np.testing.assert_allclose(loss_softmax_weights(losses), weights, atol=6e-4)
    # parameters that are the losses themselves: their gradient is the effective derivative
    heads = tuple(TaskHead((0,), lambda params, output, i=i: (output[i], {})) for i in range(3))
    tasks, config = Losses((lambda params: params,), heads), AdaptiveConfig(method="loss_softmax")
    weighted = weighted_gradient(lambda _: tasks, jnp.zeros((1, 1)), losses, config, FIXED, lambda g: g)
    np.testing.assert_allclose(weighted.gradient, effective, atol=6e-4)


def three_tasks(rows):
    """Three tasks of two passes over `rows` [n, 4]: one task reads the first, one the second, one both."""

    def forward(params, power):
        return jnp.tanh((rows**power) @ params["shared"])

    def head(params, *outputs, i):
        return jnp.sin(sum(output @ params["heads"][i] for output in outputs)).sum(), {f"rows_{i}": len(rows) * 1.0}

    # as a tied decoder does, the last head uses the shared parameters as well
    def tied(params, output):
        return ((output @ params["shared"].T) ** 2).sum(), {}

    return Losses(
        (partial(forward, power=1), partial(forward, power=2)),
        (TaskHead((0,), partial(head, i=0)), TaskHead((0, 1), partial(head, i=1)), TaskHead((1,), tied)),
    )


ROWS = jax.random.normal(jax.random.key(2), (6, 4))
PARAMS = {
    "shared": jax.random.normal(jax.random.key(0), (4, 5)),
    "heads": jax.random.normal(jax.random.key(1), (2, 5)),
}
METHODS = [
    AdaptiveConfig(method="gradient"),
    AdaptiveConfig(method="gradient", domain=1 / 3),
    AdaptiveConfig(method="estimate"),
    AdaptiveConfig(method="loss_softmax"),
    AdaptiveConfig(method="fixed"),
]


@pytest.mark.parametrize("num_tasks", [1, 2, 4])
@pytest.mark.parametrize("method", ["gradient", "estimate", "loss_softmax", "fixed"])
def test_any_number_of_tasks_is_weighed_by_every_method(num_tasks, method):
    def head(params, output, i):
        return (params["heads"][i % 2] * output + i).mean() ** 2, {}

    tasks = Losses(three_tasks(ROWS).passes, tuple(TaskHead((i % 2,), partial(head, i=i)) for i in range(num_tasks)))
    tasks = tasks if num_tasks > 1 else tasks._replace(passes=tasks.passes[:1])
    config, fixed = AdaptiveConfig(method=method), (3.0,) * num_tasks  # weights up to a factor
    weighted = weighted_gradient(lambda _: tasks, jnp.zeros((1, 1)), PARAMS, config, fixed, lambda g: g["shared"])
    assert float(weighted.weights.sum()) == pytest.approx(1) and (weighted.weights > 0).all()
    assert weighted.losses.shape == weighted.weights.shape == weighted.estimated.shape == (num_tasks,)
    if method != "loss_softmax":  # whose gradient goes through the weights
        assert_equal(weighted.gradient, jax.grad(lambda p: weighted.weights @ tasks.values(p)[0])(PARAMS))


def losses_of(params):
    return three_tasks(ROWS).values(params)[0]


def weigh(config, parts=1, **held):
    micro_batches = ROWS.reshape(parts, -1, 4)
    return jax.jit(
        lambda params: weighted_gradient(
            three_tasks, micro_batches, params, config, FIXED, lambda g: g["shared"], **held
        )
    )(PARAMS)


def assert_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-5), a, b)


@pytest.mark.parametrize("config", [m for m in METHODS if m.method != "loss_softmax"], ids=str)
def test_weighted_gradient_is_the_gradient_of_the_weighted_loss_with_weights_held(config):
    weighted = weigh(config)
    assert_equal(weighted.gradient, jax.grad(lambda p: jax.lax.stop_gradient(weighted.weights) @ losses_of(p))(PARAMS))
    np.testing.assert_allclose(weighted.losses, losses_of(PARAMS), rtol=1e-6)
    assert float(weighted.weights.sum()) == pytest.approx(1)


@pytest.mark.parametrize("config", METHODS, ids=str)
def test_micro_batches_change_neither_weights_nor_gradient(config):
    whole, split = weigh(config), weigh(config, parts=3)
    assert_equal((whole.losses, whole.weights, whole.gradient), (split.losses, split.weights, split.gradient))
    np.testing.assert_array_equal(split.metrics["rows_0"], 6)
    assert_equal(whole.gradient_norms, split.gradient_norms)


def contrast_beside_two_tasks(examples):
    """A contrast of the rows of the whole batch, over a pass whose output is a tree, beside two tasks of single rows.

    Each row has its own noise, as dropout does, and its own label, which only its place in the batch tells.
    """
    rows, noise, label = examples

    def forward(params):
        hidden = jnp.tanh(rows @ params["shared"]) * noise
        return {"a": hidden[:, :2], "b": (hidden[:, 2:], rows @ params["shared"])}

    def contrast(params, output):
        a, (b, c) = output["a"], output["b"]
        similar = jnp.einsum("id,jd->ij", a @ params["heads"][:, :2].T, c @ params["heads"].T) + b.sum(axis=1)
        apart = label[:, None] != label
        return (jax.nn.logsumexp(jnp.where(apart, similar, -9.0), axis=1) * label).mean(), {"own": label @ label}

    def single(params, *outputs, i):
        return sum((x @ params["heads"][i, : x.shape[1]]).sum() for x in jax.tree.leaves(outputs)), {}

    def other(params):
        return jnp.sin(rows @ params["shared"])

    heads = TaskHead((0,), partial(single, i=0)), TaskHead((0,), contrast, True), TaskHead((0, 1), partial(single, i=1))
    return Losses((forward, other), heads)


@pytest.mark.parametrize("config", [*METHODS, AdaptiveConfig(method="gradient", every=2)], ids=str)
def test_a_loss_that_spans_the_batch_is_the_same_in_micro_batches(config):
    rng = np.random.default_rng(3)
    rows, noise = (jnp.asarray(rng.normal(size=(6, size)), jnp.float32) for size in (4, 5))
    examples = rows, noise, jnp.array([1.0, 2.0, 2.0, 3.0, 4.0, 1.0])

    def weigh(parts, step):
        held = {"step": step, "held": jnp.array([0.2, 0.3, 0.5])} if config.every > 1 else {}
        return jax.jit(
            lambda params: weighted_gradient(
                contrast_beside_two_tasks,
                split(examples, parts),
                params,
                config,
                FIXED,
                lambda g: g["shared"],
                whole=contrast_beside_two_tasks(examples),
                **held,
            )
        )(PARAMS)

    for step in range(config.every):
        whole = weigh(1, step)
        for parts in (2, 6):
            assert_equal(weigh(parts, step), whole)
    jax.tree.map(np.testing.assert_array_equal, join(split(examples, 3)), examples)


def test_a_loss_that_spans_the_batch_wants_the_whole_batch():
    examples = jnp.ones((2, 3, 4)), jnp.ones((2, 3, 5)), jnp.ones((2, 3))
    with pytest.raises(ValueError, match="give the losses of the `whole` batch"):
        weighted_gradient(contrast_beside_two_tasks, examples, PARAMS, AdaptiveConfig(), FIXED, lambda g: g["shared"])


def test_gradient_weights_follow_the_norms_over_the_shared_parameters_alone():
    weighted = weigh(AdaptiveConfig(method="gradient", domain=2.5 / 3))
    squared = [float((jax.grad(lambda p, i=i: losses_of(p)[i])(PARAMS)["shared"] ** 2).sum()) for i in range(3)]
    np.testing.assert_allclose(weighted.gradient_norms, np.sqrt(squared), rtol=1e-5)
    scaled = 2.5 * np.array(squared) / sum(squared)
    np.testing.assert_allclose(weighted.weights, (1 / (3 - scaled)) / (1 / (3 - scaled)).sum(), rtol=1e-5)


def test_estimate_weights_follow_the_gradients_by_what_the_heads_read():
    tasks = three_tasks(ROWS)
    outputs = [forward(PARAMS) for forward in tasks.passes]
    squared = []
    for head in tasks.heads:
        gradient = jax.grad(lambda read, head=head: head.loss(PARAMS, *read)[0])([outputs[i] for i in head.reads])
        squared.append(sum(float((g**2).sum()) for g in gradient))
    scaled = 2.5 * np.array(squared) / sum(squared)
    weights = weigh(AdaptiveConfig(method="estimate", domain=2.5 / 3)).weights
    np.testing.assert_allclose(weights, (1 / (3 - scaled)) / (1 / (3 - scaled)).sum(), rtol=1e-5)


@pytest.mark.parametrize("parts", [1, 3])
def test_weights_are_solved_every_n_steps_and_held_in_between(parts):
    config, held = AdaptiveConfig(method="gradient", every=4), jnp.array([0.2, 0.3, 0.5])
    exact = weigh(AdaptiveConfig(method="gradient"))
    for step in range(9):
        weighted = weigh(config, parts, step=step, held=held)
        weights = exact.weights if step in (0, 4, 8) else held
        np.testing.assert_allclose(weighted.weights, weights, rtol=1e-5)
        assert_equal(weighted.gradient, jax.grad(lambda p, w=weights: w @ losses_of(p))(PARAMS))


def test_release_weights_always_lie_between_two_sevenths_and_three_sevenths():
    losses = jax.random.exponential(jax.random.key(2), (1000, 3)) * 5
    weights = np.asarray(jax.vmap(loss_softmax_weights)(losses))
    assert weights.min() > 2 / 7 - 1e-6 and weights.max() < 3 / 7 + 1e-6
