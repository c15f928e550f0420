"""EfficientNet-Lite against a reference in PyTorch, from files in the form of the released ones."""

import dataclasses

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fbjax.config.schema import PatchConfig  # noqa: E402
from fbjax.export.hub.patches_fashionbert import PatchExtractor  # noqa: E402
from fbjax.export.huggingface import describe_patches, to_torch  # noqa: E402
from fbjax.model.backbones import efficientnet_lite  # noqa: E402
from fbjax.model.backbones.efficientnet_lite import efficientnet_lite0, efficientnet_lite2  # noqa: E402
from fbjax.model.backbones.layers import DepthwiseConv  # noqa: E402
from fbjax.model.backbones.registry import load_network  # noqa: E402
from fbjax.model.patch_features import abstract_patch_network, build_patch_network  # noqa: E402
from fbjax.model.weights.files import write_npz  # noqa: E402
from tests.support.efficientnets import LITE0, LITE2, Lite  # noqa: E402
from tests.support.resnets import (  # noqa: E402
    as_arrays,
    assert_equal_to_reference,
    pictures,
    randomised,
    run,
    shapes_of,
)

NETWORKS = {"efficientnet_lite0": (efficientnet_lite0, LITE0), "efficientnet_lite2": (efficientnet_lite2, LITE2)}


@pytest.mark.parametrize(
    "name, height, width",
    [("efficientnet_lite0", 224, 224), ("efficientnet_lite0", 60, 80), ("efficientnet_lite2", 97, 97)],
)
def test_the_map_is_the_last_block_s_of_a_reference_in_torch(name, height, width):
    make, rows = NETWORKS[name]
    model, images = randomised(Lite(rows)), pictures(max(height, width))[:, :height, :width]
    ours = run(make(), (efficientnet_lite.PYTORCH,), as_arrays(model.state_dict()), images)
    assert ours.shape == (2, -(-height // 32), -(-width // 32), rows[-1][0])
    assert_equal_to_reference(ours, model.double().blocks(images))


@pytest.mark.parametrize("name, count", [("efficientnet_lite0", 4_652_008), ("efficientnet_lite2", 6_092_072)])
def test_parameters_are_as_many_as_released(name, count):
    """Less the head's, 1280 wide, and the classifier's of 1000 classes."""
    make, rows = NETWORKS[name]
    head = rows[-1][0] * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    shapes = shapes_of(make())
    assert sum(np.prod(shape) for n, shape in shapes.items() if "moving_" not in n) == count - head


def test_a_file_in_the_released_form_gives_the_patches_of_an_image(tmp_path):
    """PyTorch's older form, with head and classifier."""
    model = randomised(Lite(LITE0))
    torch.save(model.state_dict(), tmp_path / "lite0.pth", _use_new_zipfile_serialization=False)
    config = PatchConfig(str(tmp_path / "lite0.pth"), "efficientnet_lite0", "feature_map", 64, 32, whole_image=True)
    network, images = build_patch_network(config), pictures(64)
    features = np.asarray(jax.jit(network.apply)(network.params, images))
    cells = model.double().blocks(images).reshape(2, 4, 320)
    assert_equal_to_reference(features, np.concatenate([cells.mean(axis=1, keepdims=True), cells], axis=1))
    assert (network.num_patches, network.feature_size) == (5, 320)
    with pytest.raises(
        ValueError, match="EfficientNet-PyTorch's EfficientNet-Lite, of patches.network 'efficientnet_l.*0'"
    ):
        load_network("efficientnet_lite2", tmp_path / "lite0.pth")


def test_maps_of_earlier_blocks_stand_before_the_last_in_jax_and_in_pytorch(tmp_path):
    model, images = randomised(Lite(LITE0)), pictures(64)
    torch.save(model.state_dict(), tmp_path / "lite0.pth")
    config = PatchConfig(str(tmp_path / "lite0.pth"), "efficientnet_lite0", "feature_map", 64, 32, whole_image=True)
    network = build_patch_network(dataclasses.replace(config, levels=(10, 4)))
    features = np.asarray(jax.jit(network.apply)(network.params, images))
    maps = {}
    for number in (4, 10):
        model._blocks[number].register_forward_hook(lambda _, given, map, number=number: maps.update({number: map}))
    last = model.double().blocks(images)
    quarters = [maps[number].unflatten(3, (2, -1)).unflatten(2, (2, -1)).mean(dim=(3, 5)) for number in (4, 10)]
    quarters = np.concatenate([*(x.permute(0, 2, 3, 1).detach().numpy() for x in quarters), last], axis=3)
    cells = quarters.reshape(2, 4, -1)
    assert network.feature_size == 40 + 112 + 320
    assert_equal_to_reference(features, np.concatenate([cells.mean(axis=1, keepdims=True), cells], axis=1))
    twin = PatchExtractor(describe_patches(config, network)).eval()
    arrays = to_torch({"patches": network.params}, 0)
    twin.load_state_dict({name.removeprefix("patches."): torch.tensor(x) for name, x in arrays.items()})
    with torch.inference_mode():
        assert_equal_to_reference(features, twin(torch.tensor(images)).numpy())


@pytest.mark.slow
def test_networks_side_by_side_give_the_features_of_both_in_jax_and_in_pytorch(tmp_path):
    paths, images = [tmp_path / "lite0.pth", tmp_path / "lite2.pth"], pictures(64)
    for path, sizes in zip(paths, (LITE0, LITE2), strict=True):
        torch.save(randomised(Lite(sizes)).state_dict(), path)
    config = PatchConfig("", "", "feature_map", 64, 32, whole_image=True, frozen_blocks=3)
    singles = [("efficientnet_lite0", (4,), paths[0]), ("efficientnet_lite2", (6, 14), paths[1])]
    parts = [
        build_patch_network(dataclasses.replace(config, network=name, levels=levels, weights=str(path)))
        for name, levels, path in singles
    ]
    expected = np.concatenate([part.apply(part.params, images) for part in parts], axis=-1)
    both = dataclasses.replace(
        config,
        network="efficientnet_lite0+efficientnet_lite2",
        weights="+".join(map(str, paths)),
        levels=(4, 16 + 6, 16 + 14),
    )
    network, planned = build_patch_network(both), abstract_patch_network(both)
    features = np.asarray(jax.jit(network.apply)(network.params, images))
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-5)
    assert (network.num_patches, network.feature_size) == (5, features.shape[-1])
    assert (planned.num_patches, planned.feature_size) == (5, features.shape[-1])
    assert {"patches/network/efficientnet_lite0/stem", "patches/network/efficientnet_lite2/block_2"} < {*network.fixed}

    write_npz(tmp_path / "patches.npz", network.params["network"])  # as a workdir keeps them
    again = build_patch_network(both, tmp_path / "patches.npz")
    assert again.fingerprint == network.fingerprint not in [part.fingerprint for part in parts]
    twin = PatchExtractor(describe_patches(both, network)).eval()
    arrays = to_torch({"patches": network.params}, 0)
    twin.load_state_dict({name.removeprefix("patches."): torch.tensor(x) for name, x in arrays.items()})
    with torch.inference_mode():
        assert_equal_to_reference(features, twin(torch.tensor(images)).numpy())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"network": "efficientnet_lite0+efficientnet_lite0"}, "names a network twice: name it once"),
        ({"network": "efficientnet_lite0+pixels", "weights": "a+b+c"}, "names 3 files for the 2 networks"),
        ({"network": "efficientnet_lite0+efficientnet_lite2", "levels": (4, 37)}, "has 37 blocks, no map 37"),
        ({"levels": (4, 15)}, r"patches.levels \(4, 15\): EfficientNetLite has no map 15 \(use some of 0 to 14\)"),
        ({"frozen_blocks": 16}, r"patches.frozen_blocks 16: EfficientNetLite has 16 blocks \(use 15 or fewer"),
    ],
)
def test_a_block_that_there_is_not_is_an_error(changes, message):
    config = PatchConfig(network="efficientnet_lite0", geometry="feature_map", image_size=64, patch_size=32)
    with pytest.raises(ValueError, match=message):
        abstract_patch_network(dataclasses.replace(config, **changes))


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_convolutions_are_xlas_grouped_ones(size, stride):
    rng = np.random.default_rng(size)
    for height, width in ((2, 3), (7, 8)):
        x = rng.normal(size=(2, height, width, 4)).astype(np.float32)
        kernel = rng.normal(size=(size, size, 4, 1)).astype(np.float32)
        ours = jax.jit(DepthwiseConv(stride, size).apply)({"params": {"depthwise_kernel": kernel}}, x)
        layout = ("NHWC", "HWIO", "NHWC")
        expected = jax.lax.conv_general_dilated(
            *(x, kernel.swapaxes(2, 3), (stride, stride), "SAME"), dimension_numbers=layout, feature_group_count=4
        )
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
