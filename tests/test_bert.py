"""Parts of the encoder against JAX's own, and against each other."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax.model.bert import Encoder, EncoderShape, attend, gelu

SHAPE = EncoderShape(num_layers=2, width=16, num_heads=2, mlp_width=32)


def values_and_gradients(function, *arguments):
    return jax.value_and_grad(lambda *a: jnp.sin(function(*a)).sum(), argnums=range(len(arguments)))(*arguments)


def assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.parametrize("rows", [7, 2])
def test_attention_is_jax_s_own_with_its_gradients(rows):
    keys = jax.random.split(jax.random.key(0), 4)
    q = jax.random.normal(keys[0], (3, rows, 2, 4))
    k, v = (jax.random.normal(key, (3, 7, 2, 4)) for key in keys[1:3])
    mask = jax.random.bernoulli(keys[3], 0.6, (3, 7)).at[:, -1].set(True)
    reference = partial(jax.nn.dot_product_attention, mask=mask[:, None, None, :])
    ours = values_and_gradients(lambda q, k, v: attend(q, k, v, mask), q, k, v)
    assert_close(ours, values_and_gradients(reference, q, k, v), rtol=1e-5, atol=1e-6)


def test_gelu_is_the_exact_one_with_its_gradient():
    x = jnp.linspace(-12, 12, 10_001)
    exact = partial(jax.nn.gelu, approximate=False)
    np.testing.assert_allclose(gelu(x), exact(x), atol=2e-6)
    np.testing.assert_allclose(*(jax.vmap(jax.grad(f))(x) for f in (gelu, exact)), atol=1e-6)


def test_flash_attention_is_asked_for_what_the_encoder_computes_without_it(monkeypatch):
    """What a GPU would run is JAX's function: here it computes the same by XLA, in the place of cuDNN."""
    reference, asked = jax.nn.dot_product_attention, []

    def stand_in(*arguments, implementation, **options):
        asked.append(implementation)
        return reference(*arguments, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    x, mask = jax.random.normal(jax.random.key(0), (3, 5, 16)), jnp.ones((3, 5), bool).at[:, 2:4].set(False)
    params = Encoder(SHAPE).init(jax.random.key(1), x, mask)
    outputs = [Encoder(dataclasses.replace(SHAPE, attention=name)).apply(params, x, mask) for name in ("xla", "cudnn")]
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-6)
    assert asked == ["cudnn"] * SHAPE.num_layers
