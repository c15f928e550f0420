"""The towers of CLIP and SigLIP against those of transformers, read from the files that people have."""

import dataclasses
import json

import flax.traverse_util
import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from transformers import CLIPVisionModel  # noqa: E402

from fbjax.config.schema import PatchConfig  # noqa: E402
from fbjax.model.backbones.registry import load_network  # noqa: E402
from fbjax.model.patch_features import build_patch_network  # noqa: E402
from tests.support.clips import clip, open_clip_names, siglip  # noqa: E402
from tests.support.resnets import assert_equal_to_reference, pictures  # noqa: E402

MEANS = {"clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)), "siglip": (0.5, 0.5)}
NETWORKS = [
    ("clip_vit", "clip", "quick_gelu"),
    ("clip_vit_gelu", "clip", "gelu"),
    ("siglip_vit", "siglip", "gelu_pytorch_tanh"),
    ("siglip_vit_gelu", "siglip", "gelu"),
]
PATCHES = PatchConfig("", "clip_vit", "feature_map", image_size=32, patch_size=16, whole_image=True)


def made(kind, activation):
    return {"clip": clip, "siglip": siglip}[kind](activation)


def reference(model, kind, images):
    """(patch tokens after the last norm, pooled) of transformers' image tower, in double precision."""
    mean, deviation = (np.array(values) * 255 for values in MEANS[kind])
    pixels = torch.tensor((images - mean) / deviation).permute(0, 3, 1, 2)
    tower = model.double().vision_model
    with torch.no_grad():
        output = tower(pixels, interpolate_pos_encoding=True)
        tokens = output.last_hidden_state
        if kind == "clip":
            tokens = tower.post_layernorm(tokens)[:, 1:]
    model.float()
    n, height, width, _ = images.shape
    return tokens.reshape(n, height // 8, width // 8, -1).numpy(), output.pooler_output.numpy()


def ours(name, path, images):
    network, arrays = load_network(name, path)
    params = {"params": flax.traverse_util.unflatten_dict(arrays, sep="/")}
    return [np.asarray(found) for found in jax.jit(network.apply)(params, images.astype(np.float32))]


@pytest.mark.parametrize("name, kind, activation", NETWORKS)
@pytest.mark.parametrize("height, width", [(32, 32), (48, 40)])
def test_image_towers_are_those_of_transformers_at_any_size(height, width, name, kind, activation, tmp_path):
    model = made(kind, activation)
    model.save_pretrained(tmp_path)
    images = pictures(48)[:, :height, :width]
    found = ours(name, tmp_path / "model.safetensors", images)
    for array, expected in zip(found, reference(model, kind, images), strict=True):
        assert_equal_to_reference(array, expected)


@pytest.mark.parametrize("name, kind, activation", [NETWORKS[0], NETWORKS[3]])
def test_files_of_both_libraries_and_of_one_tower_give_the_same_network(name, kind, activation, tmp_path):
    model = made(kind, activation)
    state = model.state_dict()
    save_file(state, tmp_path / "hugging_face.safetensors")
    renamed = open_clip_names(state, kind)
    save_file(renamed, tmp_path / "open_clip.safetensors")
    torch.save({f"model.{name}": tensor for name, tensor in renamed.items()}, tmp_path / "wrapped.bin")
    model.vision_model.save_pretrained(tmp_path / "tower")
    (tmp_path / "tower" / "model.safetensors").rename(tmp_path / "tower.safetensors")
    files = "hugging_face.safetensors", "open_clip.safetensors", "wrapped.bin", "tower.safetensors"
    assert (CLIPVisionModel is type(model.vision_model)) == (kind == "clip")
    networks = [
        build_patch_network(dataclasses.replace(PATCHES, network=name, weights=str(tmp_path / file))) for file in files
    ]
    assert len({network.fingerprint for network in networks}) == 1
    assert (networks[0].num_patches, networks[0].feature_size) == (5, 128)


def test_files_that_are_not_of_the_network_are_refused(tmp_path):
    clip("gelu").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match="has the activation 'gelu', this network 'quick_gelu': set .*'clip_vit_gelu'"):
        load_network("clip_vit", path)
    with pytest.raises(ValueError, match="looks like Hugging Face's image tower, of patches.network 'clip_vit'"):
        load_network("siglip_vit", path)
    changed = json.loads((tmp_path / "config.json").read_text())
    changed["vision_config"]["num_attention_heads"] = 4
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="has heads 4, this network computes with 2"):
        load_network("clip_vit_gelu", path)
    (tmp_path / "config.json").unlink()
    assert load_network("clip_vit", path)[0].activation == "quick_gelu"  # the name alone says it
    state = clip("gelu").state_dict() | {"vision_model.adapter.weight": torch.zeros(2)}
    del state["vision_model.pre_layrnorm.bias"]
    save_file(state, path)
    with pytest.raises(
        ValueError, match=r"missing vision_model.pre_layrnorm.bias(.|\n)*unexpected vision_model.adapter"
    ):
        load_network("clip_vit", path)


def test_an_image_that_does_not_divide_into_patches_is_refused(tmp_path):
    clip("gelu").save_pretrained(tmp_path)
    config = dataclasses.replace(PATCHES, network="clip_vit_gelu", weights=str(tmp_path / "model.safetensors"))
    with pytest.raises(
        ValueError, match="image of 36 pixels is no multiple of the network's patches of 8 .*to 32 or 40"
    ):
        build_patch_network(dataclasses.replace(config, image_size=36, patch_size=36))
