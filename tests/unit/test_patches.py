"""Patch networks against a MobileNetV1 written in torch operations and against patches cut by hand."""

import dataclasses
from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax.config.load import freeze
from fbjax.config.schema import PatchConfig
from fbjax.data.text.wordpiece import Vocabulary
from fbjax.model import patch_features
from fbjax.model.backbones.mobilenet import MobileNetV1
from fbjax.model.backbones.pixels import Pixels
from fbjax.model.backbones.registry import BACKBONES, register_backbone
from fbjax.model.patch_features import average_cells, build_patch_network, count_live_dimensions
from fbjax.runs.run import Run
from fbjax.runs.state import abstract_state
from fbjax.tools.bench.workload import make_workload
from tests.support.runs import CONFIG_FILE

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # on a busy machine its threads wait for each other: 20 s a pass where one takes 20 ms
F = torch.nn.functional

ALPHA = 0.25
BLOCKS = [  # Howard et al. 2017, table 1: stride of the depthwise, channels of the pointwise convolution
    *[(1, 64), (2, 128), (1, 128), (2, 256), (1, 256), (2, 512)],
    *[(1, 512)] * 5,
    *[(2, 1024), (1, 1024)],
]


@cache
def mobilenet_weights(seed=0):
    """Random weights under the names of the Keras release, scaled so that activations neither die nor saturate."""
    rng = np.random.default_rng(seed)
    weights = {}

    def convolution(name, shape, fan_in):
        weights[name] = rng.normal(0, np.sqrt(2 / fan_in), shape)

    def norm(name, channels):
        weights[f"{name}/gamma"] = rng.uniform(0.8, 1.4, channels)
        weights[f"{name}/beta"] = rng.normal(0, 0.3, channels)
        weights[f"{name}/moving_mean"] = rng.normal(0, 0.2, channels)
        weights[f"{name}/moving_variance"] = rng.uniform(0.2, 1.2, channels)

    channels = int(32 * ALPHA)
    convolution("conv1/kernel", (3, 3, 3, channels), 27)
    norm("conv1_bn", channels)
    for i, (_, out) in enumerate(BLOCKS, start=1):
        convolution(f"conv_dw_{i}/depthwise_kernel", (3, 3, channels, 1), 9)
        norm(f"conv_dw_{i}_bn", channels)
        convolution(f"conv_pw_{i}/kernel", (1, 1, channels, int(out * ALPHA)), channels)
        channels = int(out * ALPHA)
        norm(f"conv_pw_{i}_bn", channels)
    return {name: array.astype(np.float32) for name, array in weights.items()}


def torch_mobilenet(weights, images):
    """``[N, H, W, 3] in 0..255 -> [N, h, w, C]``, in double precision."""
    weights = {name: torch.tensor(array, dtype=torch.float64) for name, array in weights.items()}

    def convolve(x, kernel, stride, groups=1):
        pads = []
        for size in (x.shape[3], x.shape[2]):  # F.pad takes the last axis first
            total = max((-(-size // stride) - 1) * stride + kernel.shape[2] - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), kernel, stride=stride, groups=groups)

    def norm(x, name):
        moments = weights[f"{name}/moving_mean"], weights[f"{name}/moving_variance"]
        return F.relu6(F.batch_norm(x, *moments, weights[f"{name}/gamma"], weights[f"{name}/beta"], eps=1e-3))

    x = torch.as_tensor(np.asarray(images), dtype=torch.float64).permute(0, 3, 1, 2) / 127.5 - 1
    x = norm(convolve(x, weights["conv1/kernel"].permute(3, 2, 0, 1), 2), "conv1_bn")
    for i, (stride, _) in enumerate(BLOCKS, start=1):
        depthwise = weights[f"conv_dw_{i}/depthwise_kernel"].permute(2, 3, 0, 1)
        x = norm(convolve(x, depthwise, stride, groups=x.shape[1]), f"conv_dw_{i}_bn")
        x = norm(convolve(x, weights[f"conv_pw_{i}/kernel"].permute(3, 2, 0, 1), 1), f"conv_pw_{i}_bn")
    return x.permute(0, 2, 3, 1).numpy()


def pictures(size, count=2):
    """Random uint8 images with shapes larger than a pixel, [count, size, size, 3]."""
    rng = np.random.default_rng(size)
    blocks = rng.integers(0, 200, (count, -(-size // 8), -(-size // 8), 3)).repeat(8, axis=1).repeat(8, axis=2)
    return (blocks[:, :size, :size] + rng.integers(0, 56, (count, size, size, 3))).astype(np.uint8)


def cut(images, patch_size):
    """Patches row by row, [B, P, patch_size, patch_size, 3]."""
    starts = range(0, images.shape[1], patch_size)
    return np.stack([images[:, y : y + patch_size, x : x + patch_size] for y in starts for x in starts], axis=1)


def enlarge(patches, size):
    """Bilinear, ``[N, H, W, 3] -> [N, size, size, 3]``."""
    x = torch.tensor(patches, dtype=torch.float64).permute(0, 3, 1, 2)
    return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False).permute(0, 2, 3, 1).numpy()


def assert_equal_to_reference(features, reference):
    """Relative error under 1e-4, against a reference whose dimensions are alive in the first place."""
    assert features.shape == reference.shape
    assert (reference.reshape(-1, reference.shape[-1]).std(axis=0) > 1e-2).mean() > 0.5
    assert np.abs(features - reference).max() < 1e-4 * np.abs(reference).max()


@pytest.fixture
def weights_file(tmp_path):
    """The network and its classifier, as the release's file has both."""
    path = tmp_path / "mobilenet.npz"
    np.savez(
        path, **mobilenet_weights(), **{"conv_preds/kernel": np.zeros((1, 1, 256, 10)), "conv_preds/bias": np.zeros(10)}
    )
    return path


def mobilenet(path, **settings):
    settings = {"geometry": "feature_map", "image_size": 64, "patch_size": 32, "patch_input_size": 32} | settings
    return build_patch_network(PatchConfig(network="mobilenet_v1", weights=str(path), **settings))


def run(network, images):
    return np.asarray(jax.jit(network.apply)(network.params, jnp.asarray(images)))


@pytest.mark.parametrize("size", [64, 96, 160])
def test_grid_is_the_map_of_the_torch_mobilenet_row_by_row(weights_file, size):
    network = mobilenet(weights_file, image_size=size)
    images = pictures(size)
    reference = torch_mobilenet(mobilenet_weights(), images)
    side = size // 32
    rows = np.stack([reference[:, y, x] for y in range(side) for x in range(side)], axis=1)
    assert_equal_to_reference(run(network, images), rows)
    assert (network.num_patches, network.feature_size) == (side**2, 256)


def test_padding_is_that_of_tensorflow_where_strides_meet_odd_and_unequal_sizes(weights_file):
    images = pictures(75)[:, :, :50]  # maps of 38x25, 19x13, 10x7, 5x4, 3x2
    params = mobilenet(weights_file).params["network"]
    feature_map = jax.jit(MobileNetV1(ALPHA).apply)({"params": params}, images.astype(np.float32))
    assert_equal_to_reference(np.asarray(feature_map), torch_mobilenet(mobilenet_weights(), images))


@pytest.mark.parametrize("patch_input_size", [32, 64])
def test_isolated_is_the_network_over_each_patch_alone_and_mean_pooled(weights_file, patch_input_size):
    network = mobilenet(weights_file, geometry="per_patch", patch_input_size=patch_input_size)
    images = pictures(64)
    patches = cut(images, 32)
    pooled = [
        torch_mobilenet(mobilenet_weights(), enlarge(patches[:, i], patch_input_size)).mean(axis=(1, 2))
        for i in range(4)
    ]
    assert_equal_to_reference(run(network, images), np.stack(pooled, axis=1))
    assert (network.num_patches, network.feature_size) == (4, 256)


@pytest.mark.parametrize("geometry", ["per_patch", "feature_map"])
def test_pixels_by_hand(geometry):
    image = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3) * 5
    network = build_patch_network(PatchConfig(geometry=geometry, image_size=4, patch_size=2, patch_input_size=2))
    by_hand = [
        [0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17],
        [6, 7, 8, 9, 10, 11, 18, 19, 20, 21, 22, 23],
        [24, 25, 26, 27, 28, 29, 36, 37, 38, 39, 40, 41],
        [30, 31, 32, 33, 34, 35, 42, 43, 44, 45, 46, 47],
    ]
    np.testing.assert_allclose(run(network, image), [np.array(by_hand) * 5 / 127.5 - 1], atol=1e-6)
    assert (network.num_patches, network.feature_size) == (4, 12)


def test_enlarged_pixels_are_those_of_each_patch_interpolated_alone():
    images = pictures(24)
    network = build_patch_network(PatchConfig(geometry="per_patch", image_size=24, patch_size=8, patch_input_size=12))
    expected = np.stack([enlarge(patch, 12).reshape(2, -1) for patch in cut(images, 8).swapaxes(0, 1)], axis=1)
    np.testing.assert_allclose(run(network, images), expected / 127.5 - 1, atol=1e-5)


def test_an_unknown_network_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown patch network 'vgg' \(known: .*inception_v3, mobilenet_v1"):
        build_patch_network(PatchConfig(network="vgg"))


def test_weights_that_are_not_set_or_not_there_are_named(tmp_path):
    with pytest.raises(ValueError, match="'mobilenet_v1' needs weights: set config.patches.weights"):
        mobilenet("")
    with pytest.raises(FileNotFoundError, match="no patch network weights at .*nowhere.npz"):
        mobilenet(tmp_path / "nowhere.npz")


def write_text(path):
    path.write_text("<html>404</html>")


def write_nothing(path):
    path.touch()


def write_npy(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def write_truncated(path):
    np.savez(path, **{"conv1/kernel": np.zeros(1000)})
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize("write", [write_text, write_nothing, write_npy, write_truncated])
def test_a_file_that_is_no_npz_is_named(tmp_path, write):
    write(tmp_path / "weights.npz")
    with pytest.raises(ValueError, match="weights.npz is not an .npz file"):
        mobilenet(tmp_path / "weights.npz")


def test_every_array_that_does_not_fit_is_named_in_one_error(tmp_path):
    arrays = dict(mobilenet_weights())
    del arrays["conv_pw_3_bn/gamma"], arrays["conv_dw_13/depthwise_kernel"]
    arrays["conv_pw_14/kernel"] = np.zeros((1, 1, 2, 2))
    arrays["conv_dw_1/depthwise_kernel"] = np.zeros((3, 3, 1, 8))
    arrays["conv1_bn/beta"] = np.zeros(9)
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(ValueError) as error:
        mobilenet(tmp_path / "wrong.npz")
    assert [line.replace("network/", "") for line in str(error.value).split("\n  ")] == [
        "these are not mobilenet_v1 weights:",
        "missing conv_dw_13/depthwise_kernel (3, 3, 256, 1)",
        "missing conv_pw_3_bn/gamma (32,)",
        "unexpected conv_pw_14/kernel (1, 1, 2, 2)",
        "conv1_bn/beta has shape (9,), expected (8,)",
        "conv_dw_1/depthwise_kernel has shape (3, 3, 1, 8), expected (3, 3, 8, 1)",
    ]


def test_a_file_of_another_network_is_named(tmp_path):
    np.savez(tmp_path / "other.npz", **{"stem/kernel": np.zeros(3)})
    with pytest.raises(ValueError, match="other.npz is no mobilenet_v1 file: it lacks 'conv1/kernel'"):
        mobilenet(tmp_path / "other.npz")


def test_a_grid_finer_than_the_networks_own_is_an_error(weights_file):
    with pytest.raises(ValueError, match="patch_size 16 is too small for geometry 'feature_map'.*use patch_size 32"):
        mobilenet(weights_file, patch_size=16)


def test_a_coarse_patch_is_the_mean_of_the_cells_that_it_touches():
    """7 cells a side shared by 2 patches: cells 0 to 3 and 3 to 6, the middle one in both."""
    cells = np.random.default_rng(0).normal(size=(2, 7, 7, 3)).astype(np.float32)
    parts = [slice(0, 4), slice(3, 7)]
    expected = [[cells[:, rows, columns].mean(axis=(1, 2)) for columns in parts] for rows in parts]
    np.testing.assert_allclose(average_cells(cells, 2), np.array(expected).transpose(2, 0, 1, 3), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(average_cells(cells, 7), cells)


def test_fingerprint_follows_weights_and_geometry_but_not_the_path(tmp_path, weights_file):
    elsewhere = tmp_path / "elsewhere.npz"
    elsewhere.write_bytes(weights_file.read_bytes())
    nearly = dict(mobilenet_weights())
    nearly["conv_pw_13_bn/beta"] = nearly["conv_pw_13_bn/beta"] + np.eye(256, dtype=np.float32)[0]
    np.savez(tmp_path / "nearly.npz", **nearly)
    fingerprint = mobilenet(weights_file).fingerprint
    assert mobilenet(elsewhere).fingerprint == fingerprint
    others = [
        mobilenet(tmp_path / "nearly.npz"),
        mobilenet(weights_file, geometry="per_patch"),
        mobilenet(weights_file, geometry="per_patch", patch_input_size=64),
        mobilenet(weights_file, geometry="per_patch", patch_size=16),
        mobilenet(weights_file, image_size=96),
    ]
    assert len({fingerprint, *(network.fingerprint for network in others)}) == 1 + len(others)


def test_live_dimensions_by_hand():
    features = np.array(
        [  # dimensions: constant, one patch apart, images apart, a tremor of 1e-5
            [[7.0, 0.0, 1.0, 0.00001], [7.0, 0.0, 1.0, 0.0]],
            [[7.0, 0.0, 2.0, 0.00001], [7.0, 0.5, 2.0, 0.0]],
        ]
    )
    assert count_live_dimensions(features) == 2
    assert count_live_dimensions(features.astype(np.float16)) == 2


def test_precomputed_takes_features_as_they_come(weights_file):
    network = mobilenet(weights_file)
    precomputed = network.precomputed()
    features = np.ones((2, 4, 256), np.float16)
    assert precomputed.apply(precomputed.params, features) is features
    assert precomputed.params == {}
    kept = {field.name for field in dataclasses.fields(network)} - {"apply", "params"}
    assert all(getattr(precomputed, name) == getattr(network, name) for name in kept)


@pytest.mark.parametrize("geometry", ["feature_map", "per_patch"])
@pytest.mark.parametrize("network", ["pixels", "mobilenet_v1"])
def test_the_token_of_the_whole_image_is_the_mean_of_its_feature_map(network, geometry, weights_file):
    config = PatchConfig(str(weights_file), network, geometry, image_size=64, patch_size=32, patch_input_size=32)
    plain, whole = (
        build_patch_network(dataclasses.replace(config, whole_image=whole_image)) for whole_image in (False, True)
    )
    module = MobileNetV1(ALPHA) if network == "mobilenet_v1" else Pixels(32)
    images = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)

    @jax.jit
    def features(params, images):
        feature_map = module.apply({"params": params.get("network", {})}, images.astype(jnp.float32))
        return whole.apply(params, images), plain.apply(params, images), feature_map.mean(axis=(1, 2))

    tokens, patches, mean = features(whole.params, images)
    np.testing.assert_allclose(tokens, jnp.concatenate([mean[:, None], patches], axis=1), rtol=1e-4, atol=1e-4)
    assert (plain.num_patches, whole.num_patches, whole.whole_image) == (4, 5, True)
    assert plain.fingerprint != whole.fingerprint


class Dropping(nn.Module):
    """The pixels, half of them dropped where it trains."""

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dropout(0.5)(images, deterministic=not train)


@pytest.fixture
def dropping():
    register_backbone("dropping", smallest=1)(Dropping)
    yield
    del BACKBONES._things["dropping"]


@pytest.mark.parametrize("geometry", ["feature_map", "per_patch"])
def test_a_backbone_from_elsewhere_draws_by_the_key_and_only_when_it_trains(geometry, dropping, monkeypatch):
    monkeypatch.setattr(patch_features, "PIXELS_AT_ONCE", 2 * 2 * 4**2)  # two patches of each image at a time
    config = PatchConfig(
        network="dropping", geometry=geometry, image_size=16, patch_size=4, patch_input_size=4, whole_image=True
    )
    network, images = build_patch_network(config), np.ones((2, 16, 16, 3), np.uint8)
    assert (run(network, images) == 1).all()
    assert (np.asarray(network.apply({}, images, train=False, key=jax.random.key(0))) == 1).all()
    found = [np.asarray(network.apply({}, images, train=True, key=jax.random.key(seed))) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).mean() > 0.5
    assert abs(found[0].mean() - 1) < 0.2
    assert (found[0][:, 1:3] != found[0][:, 3:5]).any()  # patches taken in turns do not share their draws


@pytest.mark.parametrize("mode, held", [("cached", 0), ("frozen", 1), ("trained", 0)])
def test_a_step_holds_a_patch_network_beside_its_parameters_only_where_that_is_frozen(mode, held, weights_file):
    space = {}
    exec(CONFIG_FILE.format(train="none.csv", validation="", prepared=""), space)
    config = freeze(space["get_config"]())
    patches = PatchConfig(str(weights_file), "mobilenet_v1", "feature_map", 64, 32, mode=mode)
    config = dataclasses.replace(config, patches=patches)
    trained = Run.build(config, Vocabulary.train(["red dress bag"], 100), None)
    weights = len(jax.tree.leaves(trained.patches.params))
    timed = make_workload(config, trained.patches)
    assert weights > 0
    assert len(jax.tree.leaves(trained.frozen)) == len(jax.tree.leaves(timed.frozen)) == held * weights
    state = abstract_state(timed.objective, timed.optimizer, config, timed.mesh)
    assert ("patches" in state.params) == (mode == "trained") == ("patches" not in trained.frozen)
