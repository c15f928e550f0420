"""EfficientNet-Lite against a reference in PyTorch, from files in the form of the released ones."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fbjax.config.schema import PatchConfig  # noqa: E402
from fbjax.model.backbones import efficientnet_lite  # noqa: E402
from fbjax.model.backbones.efficientnet_lite import efficientnet_lite0, efficientnet_lite2  # noqa: E402
from fbjax.model.backbones.layers import DepthwiseConv  # noqa: E402
from fbjax.model.backbones.registry import load_network  # noqa: E402
from fbjax.model.patch_features import build_patch_network  # noqa: E402
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
