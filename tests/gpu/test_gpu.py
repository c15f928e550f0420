"""What a GPU has to do as the CPU does: ``make test-gpu``. Needs JAX, Flax, NumPy and pytest.

`tests/conftest.py` forces the CPU, so this is run without it. FBJAX_TEST_GPU=cpu tries the tests themselves on a CPU.
"""

import os
from dataclasses import replace
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax.config.schema import PAPER_TASKS, TASKS, AdaptiveConfig, Config, ModelConfig, PatchConfig, TrainConfig
from fbjax.inference.pair_scorer import match_logits
from fbjax.model.encoder import attend, flash
from fbjax.parallel.mesh import put_batch, replicated
from fbjax.tools.bench import workload as workloads
from fbjax.training.step import compiled, make_step, with_seed

ON_GPU = jax.default_backend() == "gpu"
pytestmark = pytest.mark.skipif(
    not ON_GPU and os.environ.get("FBJAX_TEST_GPU") != "cpu", reason="needs an NVIDIA GPU: make test-gpu"
)
CONFIG = Config(
    patches=PatchConfig(network="pixels", image_size=64, patch_size=16, patch_input_size=8),
    model=ModelConfig(
        vocabulary="train:200",
        num_layers=3,
        width=128,
        num_heads=2,
        mlp_dim=256,
        text_tokens=16,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    ),
    tasks={name: TASKS[name]() for name in PAPER_TASKS},
    adaptive=AdaptiveConfig(method="gradient"),
    train=TrainConfig(batch_size=16, num_steps=100, warmup_steps=2, learning_rate=1e-3),
)


def on(device: jax.Device, **model) -> tuple:
    """(step, state, frozen, batch, workload) of the config with changes to its model, on one device."""
    config = replace(CONFIG, model=replace(CONFIG.model, **model))
    workload = workloads.make_workload(config, workloads.random_network(config.patches), [device])
    state = workloads.random_state(workload, config)
    frozen = jax.device_put(with_seed(workload.frozen, config), replicated(workload.mesh))
    batch = workloads.synthetic_batch(workload, config.model.text_tokens)
    step = make_step(workload.objective, workload.optimizer, config, workload.mesh, state)
    return compiled(step, state, frozen, [batch]), state, frozen, batch, workload


def trained(device: jax.Device, num_steps: int, **model) -> tuple[list[dict], dict]:
    """Metrics of each of `num_steps` steps, and the parameters after them."""
    step, state, frozen, batch, _ = on(device, **model)
    metrics = []
    for _ in range(num_steps):
        state, found = step(state, frozen, batch)
        metrics.append(jax.device_get(found))
    return metrics, jax.device_get(state.params)


def test_a_step_is_that_of_the_cpu():
    with jax.default_matmul_precision("highest"):
        (ours, params), (theirs, others) = (trained(jax.devices(kind)[0], 3) for kind in (None, "cpu"))
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys() and len(a) > 10
        jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-5), a, b)
    # Adam divides by the gradient's size: where that is 0 but for rounding, a step of the learning rate may differ
    close = [np.isclose(a, b, atol=1e-4).mean() for a, b in zip(*map(jax.tree.leaves, (params, others)), strict=True)]
    assert np.mean(close) > 0.99


def test_bfloat16_learns_as_float32_does():
    (narrow, _), (wide, _) = (trained(jax.devices()[0], 30, dtype=dtype) for dtype in ("bfloat16", "float32"))
    np.testing.assert_allclose(narrow[0]["loss"], wide[0]["loss"], rtol=0.01)
    fall = wide[0]["loss"] - wide[-1]["loss"]
    assert fall > 0 and abs(narrow[-1]["loss"] - wide[-1]["loss"]) < 0.2 * fall


@pytest.mark.skipif(not ON_GPU, reason="cuDNN runs on a GPU")
def test_flash_attention_is_attention_with_the_gradients_of_several_tasks():
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (4, 128, 12, 64), jnp.bfloat16) for key in keys)
    mask = jnp.arange(128) < jnp.array([128, 100, 65, 7])[:, None]

    @partial(jax.jit, static_argnums=0)
    def pulled(attention, q, k, v):
        out, pull = jax.vjp(lambda q, k, v: attention(q, k, v, mask), q, k, v)
        return out, jax.vmap(pull)(jnp.stack([out, 2 * out, jnp.sin(out)]))

    (ours, by_ours), (theirs, by_theirs) = (pulled(attention, q, k, v) for attention in (flash, attend))
    real = np.asarray(mask)[:, :, None, None]  # what a padded query gets does not matter
    for a, b in zip((ours, *by_ours), (theirs, *by_theirs), strict=True):
        a, b = (np.where(real, np.asarray(x, np.float32), 0) for x in (a, b))
        assert np.abs(a - b).max() < 0.03 * np.abs(b).max()


def test_an_exported_scorer_gives_the_cpu_s_scores():
    *_, workload = on(jax.devices()[0])
    params = workloads.random_parameters(workloads.parameter_shapes(workload), 0.05)
    pairs = workloads.synthetic_pairs(workload)
    model = workload.objective.model
    image = model.apply({"params": params}, pairs.features[:16].astype(np.float32), method="embed_image")
    score = jax.jit(partial(match_logits, model))
    with jax.default_matmul_precision("highest"):
        platforms = ("cuda", "cpu") if ON_GPU else ("cpu",)
        stored = jax.export.export(score, platforms=platforms)(params, pairs.ids, image).serialize()
        call = jax.export.deserialize(stored).call
        here, there = (
            np.asarray(call(*jax.device_put((params, pairs.ids, image), jax.devices(kind)[0])))
            for kind in (None, "cpu")
        )
    np.testing.assert_allclose(here, there, rtol=1e-3, atol=1e-4)
    assert here.std() > 0.01


def test_a_run_resumes_with_the_same_bits(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    from fbjax.runs.checkpoints import Checkpoints

    step, state, frozen, batch, _ = on(jax.devices()[0])
    shape = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    for _ in range(2):
        state, _ = step(state, frozen, batch)
    with Checkpoints(tmp_path, 1, print) as checkpoints:
        checkpoints.save(2, state, None)
        checkpoints.wait()
        at, restored = checkpoints.restore_newest(shape)
    assert at == 2
    after, again = (jax.device_get(step(s, frozen, batch)[0]) for s in (state, restored))
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (after, again)), strict=True))


def test_fifty_steps_compile_nothing():
    step, state, frozen, batch, workload = on(jax.devices()[0])
    host, compiled_programs = jax.device_get(batch), []
    state, metrics = step(state, frozen, put_batch(host, workload.mesh))

    def listen(name: str, seconds: float, **_) -> None:
        if name.endswith("backend_compile_duration"):
            compiled_programs.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    for _ in range(50):
        state, metrics = step(state, frozen, put_batch(host, workload.mesh))
        jax.device_get(metrics)
    assert not compiled_programs
    jax.jit(lambda x: x * 3 + 1)(jnp.arange(7))  # the listener hears
    assert compiled_programs
