"""The adaptive loss against the paper's formula, the release's worked examples, and its own definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fbjax.adaptive import eq6, loss_softmax_weights, scale_norms, weighted_gradient
from fbjax.config import AdaptiveConfig

norms = st.lists(st.floats(0, 2.0**40, width=32, allow_subnormal=False), min_size=3, max_size=3)


def test_eq6_by_hand():
    # 1/(3-0), 1/(3-1), 1/(3-2) = 1/3, 1/2, 1, which sum to 11/6
    np.testing.assert_allclose(eq6(jnp.array([0.0, 1.0, 2.0])), [2 / 11, 3 / 11, 6 / 11], rtol=1e-6)


@given(norms, st.sampled_from(["share", "squash"]), st.floats(0.1, 2.9))
def test_weights_are_positive_and_sum_to_one_for_any_norms(squared, scaling, domain):
    weights = eq6(scale_norms(jnp.array(squared, jnp.float32), scaling, domain))
    assert (np.asarray(weights) > 0).all()
    assert float(weights.sum()) == pytest.approx(1, abs=1e-5)


@given(norms, st.sampled_from(["share", "squash"]))
def test_a_domain_of_one_holds_the_ratio_of_two_weights_under_three_halves(squared, scaling):
    weights = np.asarray(eq6(scale_norms(jnp.array(squared, jnp.float32), scaling, 1.0)))
    assert weights.max() / weights.min() <= 1.5 + 1e-5


def test_scaling_by_hand():
    squared = jnp.array([1.0, 3.0, 0.0])
    np.testing.assert_allclose(scale_norms(squared, "share", 2.0), [0.5, 1.5, 0.0])
    np.testing.assert_allclose(scale_norms(squared, "squash", 2.0), [1.0, 1.5, 0.0])


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
    released = weighted_gradient(lambda p: (p, None), losses, AdaptiveConfig(method="loss_softmax"), lambda g: g)
    np.testing.assert_allclose(released.gradient, effective, atol=6e-4)
    held = AdaptiveConfig(method="loss_softmax", stop_gradient=True)
    np.testing.assert_allclose(
        weighted_gradient(lambda p: (p, None), losses, held, lambda g: g).gradient, weights, atol=6e-4
    )


def three_losses(params):
    """Three losses of a shared matrix and two heads that one task each reaches."""
    shared, heads = params["shared"], params["heads"]
    return jnp.stack([jnp.sin(shared @ heads[0]).sum(), (shared**2).mean(), jnp.tanh(shared @ heads[1]).sum()]), {}


PARAMS = {
    "shared": jax.random.normal(jax.random.key(0), (4, 5)),
    "heads": jax.random.normal(jax.random.key(1), (2, 5)),
}
METHODS = [
    AdaptiveConfig(method="gradient"),
    AdaptiveConfig(method="gradient", scaling="squash", domain=1.0),
    AdaptiveConfig(method="loss_softmax", stop_gradient=True),
    AdaptiveConfig(method="fixed", fixed=(0.1, 0.2, 0.7)),
]


@pytest.mark.parametrize("config", METHODS, ids=lambda c: f"{c.method}-{c.scaling}")
def test_weighted_gradient_is_the_gradient_of_the_weighted_loss_with_weights_held(config):
    weighted = jax.jit(lambda p: weighted_gradient(three_losses, p, config, lambda g: g["shared"]))(PARAMS)
    expected = jax.grad(lambda p: jax.lax.stop_gradient(weighted.weights) @ three_losses(p)[0])(PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), weighted.gradient, expected)
    np.testing.assert_allclose(weighted.losses, three_losses(PARAMS)[0], rtol=1e-6)
    assert float(weighted.weights.sum()) == pytest.approx(1)


def test_gradient_weights_follow_the_norms_over_the_shared_parameters_alone():
    config = AdaptiveConfig(method="gradient", domain=2.5)
    weighted = weighted_gradient(three_losses, PARAMS, config, lambda g: g["shared"])
    squared = [float((jax.grad(lambda p, i=i: three_losses(p)[0][i])(PARAMS)["shared"] ** 2).sum()) for i in range(3)]
    np.testing.assert_allclose(weighted.gradient_norms, np.sqrt(squared), rtol=1e-5)
    scaled = 2.5 * np.array(squared) / sum(squared)
    np.testing.assert_allclose(weighted.weights, (1 / (3 - scaled)) / (1 / (3 - scaled)).sum(), rtol=1e-5)
    with_heads = weighted_gradient(three_losses, PARAMS, config, lambda g: g)
    assert not np.allclose(with_heads.weights, weighted.weights, atol=1e-3)


def test_release_weights_always_lie_between_two_sevenths_and_three_sevenths():
    losses = jax.random.exponential(jax.random.key(2), (1000, 3)) * 5
    weights = np.asarray(jax.vmap(loss_softmax_weights)(losses))
    assert weights.min() > 2 / 7 - 1e-6 and weights.max() < 3 / 7 + 1e-6
