"""Parts of the encoder against JAX's own, and against each other."""

import dataclasses
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax.config.schema import ModelConfig
from fbjax.model.encoder import NORM_EPSILON, Encoder, LayerNorm, attend, gelu, softmax

SHAPE = ModelConfig(num_layers=2, width=16, num_heads=2, mlp_dim=32, attention_dropout=0.0)


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


def test_layer_norm_is_flax_s_own_with_its_gradients():
    keys = jax.random.split(jax.random.key(0), 3)
    x, scale, bias = (
        3 + 2 * jax.random.normal(keys[0], (5, 7, 16)),
        *(jax.random.normal(key, (16,)) for key in keys[1:]),
    )
    flax_s = nn.LayerNorm(epsilon=NORM_EPSILON)
    ours, theirs = (
        values_and_gradients(lambda x, s, b, m=m: m.apply({"params": {"scale": s, "bias": b}}, x), x, scale, bias)
        for m in (LayerNorm("float32"), flax_s)
    )
    assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


def test_softmax_gelu_and_layer_norm_keep_one_narrow_array_for_the_backward_pass():
    x = jax.random.normal(jax.random.key(0), (64, 32))
    norm = LayerNorm("bfloat16")
    params = nn.unbox(norm.init(jax.random.key(0), x))
    mask = jnp.ones(x.shape, bool)
    for function in (
        lambda x: gelu(x.astype(jnp.bfloat16)),
        lambda x: norm.apply(params, x),
        lambda x: softmax(x, mask, jnp.bfloat16),
    ):
        kept = [a for a in jax.tree.leaves(jax.vjp(function, x)[1]) if a.shape == x.shape]
        assert [a.dtype for a in kept] == [jnp.bfloat16]


def pulled_back_thrice(shape, params, x, mask, positions):
    """The encoder's rows at `positions`, and three gradients by `x` at once."""
    encode = lambda x: Encoder(shape).apply(params, x, mask, positions)  # noqa: E731
    rows, pull = jax.vjp(encode, x)
    return rows, jax.vmap(pull)(jnp.stack([rows, 2 * rows, jnp.sin(rows)]))


@pytest.fixture
def flash_arguments(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x, mask = jax.random.normal(jax.random.key(0), (3, 6, 16)), jnp.ones((3, 6), bool).at[:, 2:4].set(False)
    return Encoder(SHAPE).init(jax.random.key(1), x, mask), x, mask, jnp.zeros((3, 1), jnp.int32)


def test_flash_attention_is_asked_for_what_the_encoder_computes_without_it(monkeypatch, flash_arguments):
    """XLA computes in the place of cuDNN. The last layer, with few rows, never asks."""
    reference, asked = jax.nn.dot_product_attention, []

    def stand_in(q, k, v, *, implementation, **options):
        asked.append((implementation, q.shape[1]))
        return reference(q, k, v, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    shape = dataclasses.replace(SHAPE, attention="cudnn")
    assert_close(*(pulled_back_thrice(s, *flash_arguments) for s in (SHAPE, shape)), rtol=1e-4, atol=1e-5)
    assert set(asked) == {("cudnn", 6)}


def test_flash_attention_lowers_for_a_gpu(monkeypatch, flash_arguments):
    """JAX checks dtype, shapes and mask before it calls cuDNN: as far as one gets without a GPU."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91_200)
    shape = dataclasses.replace(SHAPE, attention="cudnn", dtype="bfloat16")
    lowered = jax.jit(partial(pulled_back_thrice, shape)).trace(*flash_arguments).lower(lowering_platforms=("cuda",))
    calls = re.findall(r"__cudnn\$\w+", lowered.as_text())
    # one layer asks, and the three tasks' pull-backs, which are a loop, do not run its forward pass again
    assert sorted(calls) == ["__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"]
