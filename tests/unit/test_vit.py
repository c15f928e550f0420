"""The Vision Transformer against transformers' Dinov2Model, read from the files that people have."""

import dataclasses

import flax.traverse_util
import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from transformers import Dinov2Config, Dinov2ForImageClassification  # noqa: E402

from fbjax.config.schema import PatchConfig  # noqa: E402
from fbjax.core import resampling  # noqa: E402
from fbjax.model.backbones import vit  # noqa: E402
from fbjax.model.backbones.registry import BACKBONES, load_network  # noqa: E402
from fbjax.model.backbones.vit import VisionTransformer  # noqa: E402
from fbjax.model.patch_features import abstract_patch_network, build_patch_network  # noqa: E402
from tests.support.resnets import IMAGENET, assert_equal_to_reference, pictures  # noqa: E402

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 70, "patch_size": 14}
PATCHES = PatchConfig("", "tiny_vit", "feature_map", image_size=70, patch_size=35, whole_image=True)


@pytest.fixture(scope="module")
def model():
    """Random, with every array far from its initial value."""
    made = Dinov2ForImageClassification(Dinov2Config(**SIZES, num_labels=3))
    generator = torch.Generator().manual_seed(0)
    for name, tensor in made.state_dict().items():
        scale = 0.3 if tensor.ndim == 2 else 0.1 if tensor.ndim == 4 else 0.5
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale + ("norm" in name and "weight" in name))
    return made.eval()


@pytest.fixture
def tiny_vit():
    """A small network of the same kind, registered meanwhile."""
    settings = dataclasses.replace(
        BACKBONES["dinov2_vits14"], make=lambda grid=5: VisionTransformer(32, 2, 4, 128, 14, grid)
    )
    BACKBONES.register("tiny_vit")(settings)
    yield
    del BACKBONES._things["tiny_vit"]


def reference(model, images):
    """(feature map, class token) of transformers' model, in double precision."""
    pixels = torch.tensor((images - IMAGENET[0]) / IMAGENET[1]).permute(0, 3, 1, 2)
    with torch.no_grad():
        tokens = model.dinov2.double()(pixels).last_hidden_state.numpy()
    model.float()
    n, height, width, _ = images.shape
    return tokens[:, 1:].reshape(n, height // 14, width // 14, -1), tokens[:, 0]


def ours(path, images):
    network, arrays = load_network("tiny_vit", path)
    params = {"params": flax.traverse_util.unflatten_dict(arrays, sep="/")}
    return [np.asarray(found) for found in jax.jit(network.apply)(params, images.astype(np.float32))]


@pytest.mark.parametrize("height, width", [(70, 70), (98, 98), (28, 56)])
def test_tokens_are_those_of_transformers_at_any_size(height, width, model, tiny_vit, tmp_path):
    model.save_pretrained(tmp_path)
    images = pictures(max(height, width))[:, :height, :width]
    for found, expected in zip(ours(tmp_path / "model.safetensors", images), reference(model, images), strict=True):
        assert_equal_to_reference(found, expected)


def timm_names(state):
    """Hugging Face's names in memory as timm's, with q, k and v in one array."""
    renamed = {}
    for name, tensor in state.items():
        name = name.removeprefix("dinov2.")
        for theirs, timms in (
            ("embeddings.cls_token", "cls_token"),
            ("embeddings.position_embeddings", "pos_embed"),
            ("embeddings.mask_token", "mask_token"),
            ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
            ("encoder.layer.", "blocks."),
            ("attention.o_proj", "attn.proj"),
            ("layer_scale1.lambda1", "ls1.gamma"),
            ("layer_scale2.lambda1", "ls2.gamma"),
            ("layernorm.", "norm."),
            ("classifier.", "head."),
        ):
            name = name.replace(theirs, timms)
        renamed[name] = tensor
    for i in range(SIZES["num_hidden_layers"]):
        for part in ("weight", "bias"):
            parts = [renamed.pop(f"blocks.{i}.attention.{letter}_proj.{part}") for letter in "qkv"]
            renamed[f"blocks.{i}.attn.qkv.{part}"] = torch.cat(parts)
    return renamed


def test_timms_names_and_those_in_memory_give_the_same_network(model, tiny_vit, tmp_path):
    model.save_pretrained(tmp_path)
    state = model.state_dict()
    torch.save(state, tmp_path / "in_memory.pth")
    torch.save(model.dinov2.state_dict(), tmp_path / "bare.pth")
    torch.save(timm_names(state), tmp_path / "timm.pth")
    assert "blocks.1.attn.qkv.weight" in timm_names(state)
    prints = {
        build_patch_network(dataclasses.replace(PATCHES, weights=str(tmp_path / name))).fingerprint
        for name in ("model.safetensors", "in_memory.pth", "bare.pth", "timm.pth")
    }
    assert len(prints) == 1


def test_the_class_token_is_the_token_of_the_whole_image(model, tiny_vit, tmp_path):
    model.save_pretrained(tmp_path)
    config = dataclasses.replace(PATCHES, weights=str(tmp_path / "model.safetensors"), patch_input_size=28)
    images = pictures(70)
    feature_map, token = reference(model, images)
    halves = feature_map[:, :3], feature_map[:, 2:]  # 5 cells a side shared by 2 patches, the middle one in both
    cells = [part.mean(axis=(1, 2)) for half in halves for part in (half[:, :, :3], half[:, :, 2:])]
    for geometry in ("feature_map", "per_patch"):
        network = build_patch_network(dataclasses.replace(config, geometry=geometry))
        found = np.asarray(jax.jit(network.apply)(network.params, images))
        assert found.shape == (2, 5, 32) == (2, network.num_patches, network.feature_size)
        assert_equal_to_reference(found[:, 0], token)
        if geometry == "feature_map":
            assert_equal_to_reference(found[:, 1:], np.stack(cells, axis=1))


@pytest.mark.parametrize("size, new_size", [(37, 16), (5, 7), (4, 1), (2, 9)])
def test_position_tables_are_resized_as_pytorch_does_without_antialiasing(size, new_size):
    x = np.random.default_rng(0).normal(size=(size, size))
    expected = torch.nn.functional.interpolate(
        torch.tensor(x)[None, None], (new_size, new_size), mode="bicubic", align_corners=False
    )[0, 0]
    weights = resampling.cubic_weights(size, new_size)
    np.testing.assert_allclose(weights @ x @ weights.T, expected, atol=1e-5)


def test_dinov2s_small_network_has_its_published_parameters():
    params = abstract_patch_network(PatchConfig("", "dinov2_vits14", "feature_map", 224, 56)).params
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == 22_056_576 - 384  # no mask token


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_size": 224, "patch_size": 56, "geometry": "per_patch", "patch_input_size": 32, "whole_image": False},
         "patch_input_size 32 is an image size that dinov2_vits14 cannot take.*multiples of 14 .*=28 or 42"),
        ({"image_size": 256, "patch_size": 64}, "image_size 256 is an image size that .*image_size=252 or 266"),
        ({"image_size": 56, "patch_size": 14, "geometry": "per_patch", "patch_input_size": 8},
         "patch_input_size 8 is too small for dinov2_vits14, which takes 14 .*patch_input_size=14 or more"),
    ],
)  # fmt: skip
def test_sizes_that_it_cannot_take_are_told_before_any_file_is_read(changes, message):
    config = dataclasses.replace(PATCHES, network="dinov2_vits14", weights="nowhere.pth", **changes)
    with pytest.raises(ValueError, match=message):
        build_patch_network(config)


def test_an_onnx_file_of_pytorchs_exporter_is_read_without_onnx(model, tiny_vit, tmp_path):
    """Built here as the exporter writes it: matrices transposed and without names, the position table in two parts."""
    onnx = pytest.importorskip("onnx")
    state, nodes, initialisers = model.dinov2.state_dict(), [], []

    def put(name, array, operator="", path=""):
        initialisers.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array.float().numpy()), name))
        if path:
            nodes.append(onnx.helper.make_node(operator, ["x", name], [f"{path}_output_0"], name=path))

    old = {
        "q_proj": "attention.query",
        "k_proj": "attention.key",
        "v_proj": "attention.value",
        "o_proj": "output.dense",
    }
    for i, (name, tensor) in enumerate(state.items()):
        for new, names in old.items():
            name = name.replace(new, names)
        name = f"backbone.{name}"
        if name.endswith("position_embeddings"):
            put(f"onnx::Concat_{i}", tensor[:, :1], "Concat", "/backbone/embeddings/Concat_6")
            put(f"onnx::Reshape_{i}", tensor[:, 1:], "Reshape", "/backbone/embeddings/Reshape_1")
        elif tensor.ndim == 2 and name.endswith("weight"):
            path = "/" + name.removesuffix(".weight").replace(".", "/").replace("/layer/", "/layer.") + "/MatMul"
            put(f"onnx::MatMul_{i}", tensor.T, "MatMul", path)
        elif "mask_token" not in name:
            put(name, tensor)
    put("decoder.final_conv.bias", torch.zeros(1))
    initialisers.append(onnx.numpy_helper.from_array(np.array([1, -1]), "shape"))
    graph = onnx.helper.make_graph(nodes, "g", [], [], initialisers)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "vit.onnx")
    images = pictures(56)
    for found, expected in zip(ours(tmp_path / "vit.onnx", images), reference(model, images), strict=True):
        assert_equal_to_reference(found, expected)


def test_weights_of_another_kind_are_said_to_be_that(model, tiny_vit, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="it looks like Hugging Face's DINOv2, of patches.network 'tiny_vit'"):
        load_network("resnet50", tmp_path / "model.safetensors")
    assert vit.TIMM.name("block_11/attention/query/bias") == "blocks.11.attn.q.bias"
