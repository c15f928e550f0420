"""A patch network that trains: frozen blocks, products in bfloat16, rematerialisation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fbjax.config.load import freeze
from fbjax.config.schema import ParameterGroup, PatchConfig
from fbjax.model.backbones.registry import BACKBONES, shapes_of
from fbjax.model.lora import merged
from fbjax.model.patch_features import build_patch_network
from fbjax.monitoring.flops import training_flops
from fbjax.runs.state import divide, make_optimizer
from tests.support.objectives import CONFIG, TRAIN
from tests.support.runs import write_mobilenet

IMAGES = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "mobilenet.npz"
    write_mobilenet(path)
    return str(path)


def network(weights, **settings):
    config = {"geometry": "feature_map", "image_size": 64, "mode": "trained"} | settings
    return build_patch_network(PatchConfig(weights, "mobilenet_v1", **config))


def loss_of(network):
    return lambda params: jnp.square(network.apply(params, IMAGES, train=True)).mean()


@pytest.mark.parametrize("name", [name for name, backbone in BACKBONES.items() if backbone.needs_weights])
def test_the_blocks_of_a_backbone_are_all_its_parameters_once(name):
    backbone = BACKBONES[name]
    sizes = {"conv1/kernel": (3, 3, 3, 8), "patches/kernel": (8, 8, 3, 64), "positions": (17, 64)}
    sizes |= {f"block_{i}/mlp_in/bias": (8,) for i in range(3)}
    module = backbone.build({name: np.zeros(shape) for name, shape in sizes.items()})
    names = [part for block in backbone.blocks(module) for part in block]
    assert len(names) == len(set(names))
    assert set(names) == {parameter.split("/")[0] for parameter in shapes_of(module, backbone.smallest)}


def test_frozen_blocks_stay_bit_for_bit_whatever_their_group(weights):
    whole, part = network(weights), network(weights, frozen_blocks=3)
    params = {"patches": part.params, "fashionbert": {"kernel": jnp.ones((2, 2))}}
    groups = {"patches": ParameterGroup(rate=0.1), "patches/network/conv1/kernel": ParameterGroup(weight_decay=0.5)}
    config = dataclasses.replace(CONFIG, groups=groups, train=dataclasses.replace(TRAIN, weight_decay=0.5))
    optimizer = make_optimizer(dataclasses.replace(config.train, warmup_steps=1), groups)

    def loss(trained, base):
        params = merged(base, trained)
        return loss_of(part)(params["patches"]) + params["fashionbert"]["kernel"].sum()

    @jax.jit
    def after_two_steps(trained, base):
        state = optimizer.init(trained)
        for _ in range(2):  # the first step's learning rate is 0
            updates, state = optimizer.update(jax.grad(loss)(trained, base), state, trained)
            trained = optax.apply_updates(trained, updates)
        return merged(base, trained), state

    base, trained = divide(params, config, part.fixed)
    new, state = after_two_steps(trained, base)
    for name, leaves in params["patches"]["network"].items():
        kept = all(map(np.array_equal, jax.tree.leaves(leaves), jax.tree.leaves(new["patches"]["network"][name])))
        assert kept == (name.split("_bn")[0] in {"conv1", "conv_dw_1", "conv_pw_1", "conv_dw_2", "conv_pw_2"}), name
    sizes = [sum(x.size for x in jax.tree.leaves(n.params)) for n in (whole, part)]
    assert sum(x.size for x in jax.tree.leaves(state)) < 2 * sizes[0]  # no moments of Adam for what is frozen
    np.testing.assert_array_equal(whole.apply(whole.params, IMAGES), part.apply(part.params, IMAGES))


def test_a_step_computes_no_gradient_below_the_frozen_blocks(weights):
    whole, part = network(weights), network(weights, frozen_blocks=11)
    costs = [jax.jit(jax.grad(loss_of(n))).lower(n.params).compile().cost_analysis()["flops"] for n in (whole, part)]
    counted = [training_flops(loss_of(n), n.params) for n in (whole, part)]
    assert costs[1] < 0.75 * costs[0] and counted[1] < 0.75 * counted[0]


def test_more_frozen_blocks_than_there_are_is_an_error_that_counts_them(weights):
    with pytest.raises(ValueError, match="frozen_blocks 14: MobileNetV1 has 14 blocks .use 13 or fewer, or"):
        network(weights, frozen_blocks=14)
    with pytest.raises(ValueError, match="frozen_blocks 1: Pixels has 0 blocks .use 0."):
        build_patch_network(PatchConfig(network="pixels", mode="trained", frozen_blocks=1))


@pytest.mark.parametrize("geometry", ["feature_map", pytest.param("per_patch", marks=pytest.mark.slow)])
def test_bfloat16_moves_features_a_little_in_training_alone(weights, geometry):
    exact, coarse = (network(weights, geometry=geometry, dtype=dtype) for dtype in ("float32", "bfloat16"))
    expected = np.asarray(exact.apply(exact.params, IMAGES, train=True))
    found = coarse.apply(coarse.params, IMAGES, train=True)
    assert found.dtype == jnp.float32
    difference = np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()
    assert 1e-5 < difference < 0.05
    np.testing.assert_array_equal(coarse.apply(coarse.params, IMAGES), exact.apply(exact.params, IMAGES))
    gradient = jax.jit(jax.grad(loss_of(coarse)))(coarse.params)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}


def test_rematerialisation_saves_memory_and_changes_no_gradient(weights):
    plain, lean = network(weights), network(weights, remat=True)
    programs = [jax.jit(jax.grad(loss_of(n))).lower(n.params).compile() for n in (plain, lean)]
    one, other = (program(plain.params) for program in programs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), one, other)
    kept = [
        jax.tree.leaves(jax.eval_shape(lambda p, n=n: jax.vjp(loss_of(n), p)[1], plain.params)) for n in (plain, lean)
    ]
    sizes = [sum(leaf.size for leaf in leaves) for leaves in kept]
    assert sizes[1] < 0.75 * sizes[0]


def test_settings_of_a_trained_network_are_refused_elsewhere():
    from fbjax.config.load import defaults

    for name, value in (("frozen_blocks", 2), ("dtype", "bfloat16"), ("remat", True)):
        config = defaults()
        config.model.vocabulary = "train:99"
        config.patches[name] = value
        with pytest.raises(ValueError, match=f"patches.{name} .* is for patches.mode 'trained', not 'frozen'"):
            freeze(config)
        config.patches.mode = "trained"
        freeze(config)
