"""What trains and what does not: low-rank factors, frozen groups, the rate of each layer, weights in between."""

import dataclasses

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fbjax.config.schema import LINEAR_LAYERS, LoraConfig, MeshConfig, ParameterGroup
from fbjax.export.interpolation import between
from fbjax.model.lora import merged
from fbjax.model.patch_features import build_patch_network
from fbjax.monitoring.flops import program_flops, step_work
from fbjax.parallel.mesh import make_mesh, put_batch
from fbjax.runs.state import abstract_state, decay_by_layer, divide, init_state, make_optimizer
from fbjax.tools.bench.workload import make_workload, parameter_shapes, random_state
from fbjax.training.step import make_step, with_seed
from tests.support.every_part import traced_losses
from tests.support.objectives import CONFIG, TRAIN, make_batch, make_objective, make_tasks
from tests.support.runs import make_one_device_mesh, same
from tests.support.untrained import tiny

ONE = dataclasses.replace(
    CONFIG, model=dataclasses.replace(CONFIG.model, num_layers=1), tasks=make_tasks("mlm", "tia"), train=TRAIN
)
FREEZE_ENCODER = {"fashionbert/encoder": ParameterGroup(frozen=True)}
FREEZE_ENCODER |= {f"fashionbert/{kind}_embeddings": ParameterGroup(frozen=True) for kind in ("text", "image")}


def with_lora(config=ONE, layers=LINEAR_LAYERS, **settings):
    return dataclasses.replace(config, lora=LoraConfig(layers, **{"rank": 2, "alpha": 6.0} | settings))


def state_of(config, mesh=None, abstract=False):
    objective = make_objective(config.model, config.tasks)
    optimizer = make_optimizer(config.train, config.groups, config.model.num_layers)
    make = abstract_state if abstract else init_state
    return objective, optimizer, make(objective, optimizer, config, mesh or make_one_device_mesh())


def names(tree):
    return set(flax.traverse_util.flatten_dict(tree, sep="/"))


def noisy(tree):
    rng = np.random.default_rng(7)
    return jax.tree.map(lambda p: np.asarray(p) + np.float32(0.1) * rng.standard_normal(p.shape, np.float32), tree)


def test_at_the_start_the_adapted_model_is_the_model_bit_for_bit():
    _, _, plain = state_of(ONE)
    _, _, adapted = state_of(with_lora())
    assert plain.base == {} and same(plain.params, adapted.all_params)
    assert names(adapted.all_params) == names(plain.params)
    assert {name.split("/")[0] for name in names(adapted.params)} == {"lora"}


def test_factors_are_multiplied_into_their_kernels_and_into_nothing_else():
    _, _, state = state_of(with_lora(layers=("value", "mlp_in")))
    state = state.replace(params=noisy(state.params))
    before, after = (
        flax.traverse_util.flatten_dict(tree, sep="/") for tree in (merged(state.base, {}), state.all_params)
    )
    factors = flax.traverse_util.flatten_dict(state.params["lora"], sep="/")
    changed = {"fashionbert/encoder/layer_0/attention/value/kernel", "fashionbert/encoder/layer_0/mlp_in/kernel"}
    assert {name for name in after if not np.array_equal(before[name], after[name])} == changed
    for name in changed:
        layer = name.removeprefix("fashionbert/").removesuffix("/kernel")
        a, b = (np.asarray(factors[f"{layer}/{part}"], np.float64) for part in "ab")
        assert a.shape == (24, 2) and b.shape == (2, before[name].shape[1])
        np.testing.assert_allclose(after[name], before[name] + 6.0 / 2 * a @ b, rtol=1e-5, atol=1e-6)


def test_a_group_trains_beside_the_factors_what_it_names_and_frozen_ones_never_do():
    groups = {"fashionbert/tia": ParameterGroup(), "lora/encoder/layer_0/mlp_in": ParameterGroup(frozen=True)}
    config = dataclasses.replace(with_lora(layers=("query", "mlp_in")), groups=groups)
    _, _, state = state_of(config, abstract=True)
    assert names(state.params) == {
        *(f"fashionbert/tia/{leaf}" for leaf in ("kernel", "bias")),
        *(f"lora/encoder/layer_0/attention/query/{factor}" for factor in "ab"),
    }
    sizes = [sum(x.size for x in jax.tree.leaves(tree)) for tree in (state.params, state.opt_state)]
    assert sizes[1] < 2 * sizes[0] + 10  # two moments each and some counts: nothing of what does not train


def test_a_benchmark_and_a_plan_take_an_adapted_run(tmp_path):
    sizes = {"model__num_layers": 1, "tasks": "tia", "patches__network": "pixels", "patches__mode": "frozen"}
    config = tiny("my_fashionbert", tmp_path, **sizes, lora__layers="key,mlp_out", train__start_from="nowhere")
    workload = make_workload(config, build_patch_network(config.patches), jax.devices()[:1])
    state = random_state(workload, config)
    assert {name.split("/")[0] for name in names(state.params)} == {"lora"}
    whole = names(parameter_shapes(workload))
    assert whole == names(state.all_params["fashionbert"]) and "encoder/layer_0/mlp_out/kernel" in whole
    assert traced_losses(config) == {"tia"}


def test_a_group_that_is_not_there_and_a_run_without_parameters_to_train_are_errors():
    params = {"fashionbert": {"encoder": {"kernel": jnp.ones(2)}}}
    wrong = dataclasses.replace(CONFIG, groups={"fashionbert/head": ParameterGroup()})
    with pytest.raises(ValueError, match="groups.fashionbert/head names no parameter; names begin with fashionbert/en"):
        divide(params, wrong)
    with pytest.raises(ValueError, match="groups fashionbert freeze all parameters: there is nothing to train"):
        divide(params, dataclasses.replace(CONFIG, groups={"fashionbert": ParameterGroup(frozen=True)}))


def test_a_step_computes_no_gradient_of_what_is_frozen():
    work = {}
    for name, groups in {"all": {}, "heads": FREEZE_ENCODER}.items():
        config = dataclasses.replace(ONE, groups=groups, adaptive=dataclasses.replace(ONE.adaptive, method="fixed"))
        objective, optimizer, state = state_of(config, abstract=True)
        frozen, mesh = with_seed({"patches": {}}, config), make_one_device_mesh()
        step = make_step(objective, optimizer, config, mesh, state).trace(state, frozen, make_batch())
        counted = step_work(objective, state.params, frozen, [make_batch()], state.base).flops
        work[name] = program_flops(step.jaxpr), *counted.values()
    for of_all, of_heads in zip(*work.values(), strict=True):
        assert 0.2 < of_heads / of_all < 0.6  # forward passes alone, and the heads


def test_where_heads_alone_train_no_loss_moves_a_shared_parameter_and_weights_are_equal():
    config = dataclasses.replace(ONE, groups=FREEZE_ENCODER)
    objective, optimizer, state = state_of(config)
    mesh = make_one_device_mesh()
    step = make_step(objective, optimizer, config, mesh, state)
    before = jax.device_get(state)
    after, metrics = step(state, with_seed({"patches": {}}, config), put_batch(make_batch(), mesh))
    assert [float(metrics[f"{task}/weight"]) for task in ("mlm", "tia")] == [0.5, 0.5]
    assert float(metrics["mlm/gradient_norm"]) == 0 and float(metrics["gradient_norm"]) > 0
    assert same(before.base, jax.device_get(after.base)) and int(after.step) == 1


def test_eight_devices_adapt_as_one_does():
    """A rank that no mesh divides; factors are placed as their kernels are."""
    config, results = with_lora(rank=3), []
    eight = make_mesh(MeshConfig(2, 2, 2))
    for mesh in (make_one_device_mesh(), eight):
        objective, optimizer, state = state_of(config, mesh)
        place = lambda x, like: jax.device_put(x, like.sharding)  # noqa: E731
        state = state.replace(params=jax.tree.map(place, noisy(state.params), state.params))
        step = make_step(objective, optimizer, config, mesh, state)
        with jax.set_mesh(mesh):
            for i in range(2):  # the first step's learning rate is 0
                batch = put_batch(make_batch(i), mesh)
                state, metrics = step(state, with_seed({"patches": {}}, config), batch)
        results.append(jax.device_get((state.params, state.base, metrics)))
    (one, base, metrics), (other, other_base, other_metrics) = results
    assert same(base, other_base)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), one, other)
    for name, value in metrics.items():
        np.testing.assert_allclose(other_metrics[name], value, rtol=2e-4, atol=1e-6, err_msg=name)
    _, _, shapes = state_of(config, eight, abstract=True)
    factors = shapes.params["lora"]["encoder"]["layer_0"]["attention"]["query"]
    assert [tuple(factors[name].sharding.spec) for name in "ab"] == [("fsdp", None), (None, "tensor")]


def test_each_layer_learns_at_a_share_of_the_rate_above_it():
    rates = {
        "patches/network/conv1/kernel": 0.125,
        "fashionbert/text_embeddings/word": 0.125,
        "fashionbert/image_embeddings/norm/scale": 0.125,
        "fashionbert/encoder/layer_0/attention/query/kernel": 0.25,
        "lora/encoder/layer_0/mlp_in/a": 0.25,
        "fashionbert/encoder/layer_1/mlp_out/kernel": 0.5,
        "fashionbert/tia/kernel": 1.0,
        "fashionbert/log_scale": 1.0,
    }
    params = flax.traverse_util.unflatten_dict({name: jnp.ones((2, 2)) for name in rates}, sep="/")
    transform = decay_by_layer(0.5, num_layers=2)
    updates, _ = transform.update(params, transform.init(params), params)
    found = flax.traverse_util.flatten_dict(updates, sep="/")
    assert {name: float(x[0, 0]) for name, x in found.items()} == rates


def test_layer_decay_scales_the_whole_update_and_goes_with_a_group_s_rate():
    """Of AdamW's first step, ``-rate (g / |g| + decay p)``."""
    train = dataclasses.replace(
        TRAIN, learning_rate=1.0, warmup_steps=0, weight_decay=0.5, clip_norm=1e9, epsilon=1e-12, layer_decay=0.5
    )
    params = {"fashionbert": {"encoder": {"layer_0": {"k": jnp.ones((1, 1))}}, "tia": {"k": jnp.ones((1, 1))}}}
    optimizer = make_optimizer(train, {"fashionbert/encoder": ParameterGroup(rate=0.1)}, num_layers=1)
    updates, _ = optimizer.update(jax.tree.map(lambda p: 3 * p, params), optimizer.init(params), params)
    assert float(updates["fashionbert"]["tia"]["k"][0, 0]) == pytest.approx(-1.5, rel=1e-5)
    assert float(updates["fashionbert"]["encoder"]["layer_0"]["k"][0, 0]) == pytest.approx(-0.1 * 0.5 * 1.5, rel=1e-5)


finite = st.floats(-(2.0**60), 2.0**60, width=32)


@given(st.lists(st.tuples(finite, finite), min_size=1), st.floats(0, 1))
def test_between_two_weights_lies_their_mean_and_the_ends_are_the_weights(pairs, share):
    before, tuned = ({"a": {"b": np.array(values, np.float32)}} for values in zip(*pairs, strict=True))
    found = between(before, tuned, share)["a"]["b"]
    assert found.dtype == np.float32
    low, high = np.minimum(before["a"]["b"], tuned["a"]["b"]), np.maximum(before["a"]["b"], tuned["a"]["b"])
    assert ((low <= found) & (found <= high)).all()
    assert np.array_equal(between(before, before, share)["a"]["b"], before["a"]["b"])
    for end, weights in ((0.0, before), (1.0, tuned)):
        assert between(before, tuned, end)["a"]["b"].tobytes() == weights["a"]["b"].tobytes()
    expected = before["a"]["b"] + share * (tuned["a"]["b"].astype(np.float64) - before["a"]["b"])
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * max(np.abs(low).max(), np.abs(high).max()))
