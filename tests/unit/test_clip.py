"""The towers of CLIP and SigLIP against those of transformers, read from the files that people have."""

import dataclasses
import json

import flax.traverse_util
import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from transformers import CLIPTokenizer, CLIPVisionModel, PreTrainedTokenizerFast  # noqa: E402

from fbjax.config.schema import PatchConfig  # noqa: E402
from fbjax.data.text.tower_tokenizers import read_clip_tokenizer, read_siglip_tokenizer  # noqa: E402
from fbjax.model.backbones.clip_vit import ClipImageTower, SiglipImageTower  # noqa: E402
from fbjax.model.backbones.registry import load_network  # noqa: E402
from fbjax.model.patch_features import build_patch_network  # noqa: E402
from fbjax.model.towers.dual_encoder import DualEncoder  # noqa: E402
from fbjax.model.towers.weights import parameter_shapes, take_dual_encoder, text_sizes  # noqa: E402
from tests.support.clips import (  # noqa: E402
    END,
    START,
    clip,
    open_clip_names,
    siglip,
    write_clip_tokenizer,
    write_siglip_tokenizer,
)
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


TEXTS = ["Black T-shirt, 100% cotton!", "navy  dress\twomen's", "", "it's '24 shoes " * 9]


def test_clips_pieces_are_those_of_its_own_tokenizer(tmp_path):
    rows = write_clip_tokenizer(tmp_path)
    vocabulary, own = read_clip_tokenizer(tmp_path)
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    texts = [*TEXTS, "élan vital 日本 🙂", "  two   spaces "]
    expected = np.array(theirs(texts, padding="max_length", max_length=20, truncation=True).input_ids)
    found = vocabulary.encode(texts, 20)
    assert (own, vocabulary.size) == (rows, rows + 3)
    ends = expected.argmax(axis=1)
    for ids, framed, end in zip(expected, found, ends, strict=True):
        np.testing.assert_array_equal(framed[: end + 1] - 1, ids[: end + 1])
        assert not framed[end + 1 :].any()


def test_siglips_pieces_are_those_of_its_own_tokenizer_on_canonical_text(tmp_path):
    rows = write_siglip_tokenizer(tmp_path)
    vocabulary, own = read_siglip_tokenizer(tmp_path)
    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), **names)
    canonical = ["black tshirt 100 cotton", "navy dress womens", "long dress", "zebra é"]
    given = ["Black T-shirt, 100% cotton!", " navy  dress\twomen's", "long_dress", "ZEBRA (é)"]
    assert (own, vocabulary.size) == (rows, rows + 3)
    for text, plain in zip(given, canonical, strict=True):
        expected = [*theirs(plain, add_special_tokens=False).input_ids, 1]
        framed = vocabulary.encode([text], 40)[0]
        np.testing.assert_array_equal(framed[1 : len(expected) + 1] - 1, expected)
        assert not framed[len(expected) + 1 :].any()


def test_another_models_tokenizer_is_refused(tmp_path):
    write_clip_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="is not SigLIP's, a unigram model with </s> and <unk>"):
        read_siglip_tokenizer(tmp_path)
    write_siglip_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"is not CLIP's: it has no <\|startoftext\|>"):
        read_clip_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no tokenizer.json"):
        read_clip_tokenizer(tmp_path)


def framed(kind):
    """(ids as transformers reads them, ids as a `Vocabulary` frames them) of random texts of 3, 7 and all pieces."""
    rng, length = np.random.default_rng(0), 12
    theirs, ours = np.full((3, length), END if kind == "clip" else 1), np.zeros((3, length + (kind == "siglip")), int)
    for row, number in enumerate((3, 7, length - (2 if kind == "clip" else 1))):
        pieces = rng.integers(2, START, number)
        text = [START, *pieces, END] if kind == "clip" else [*pieces, 1]
        theirs[row, : len(text)] = text
        ours[row, : number + 2] = [START + 1, *pieces + 1, END + 1] if kind == "clip" else [100, *pieces + 1, 2]
    return theirs, ours


@pytest.mark.parametrize("library", ["Hugging Face", "open_clip"])
@pytest.mark.parametrize("form, kind, activation", [(n.replace("_vit", ""), k, a) for n, k, a in NETWORKS])
def test_text_towers_and_projections_are_those_of_transformers(form, kind, activation, library):
    model = made(kind, activation)
    theirs, ids = framed(kind)
    state = open_clip_names(model.state_dict(), kind) if library == "open_clip" else model.state_dict()
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    sizes, heads = text_sizes(arrays, kind), 2
    params = take_dual_encoder(arrays, form, sizes, heads, 128, rows=102, own=99, pad=1)
    assert params.pop("log_scale") == pytest.approx(model.logit_scale.item())
    if kind == "siglip":
        assert params.pop("logit_bias") == -9.0
    dims = 102, sizes.num_tokens, sizes.width, sizes.num_layers, heads, sizes.mlp_dim
    encoder = DualEncoder(form, dims, sizes.size, 1.0)
    apply = jax.jit(encoder.apply, static_argnames="method")
    params = {"params": flax.traverse_util.unflatten_dict(params, sep="/")}
    whole = np.random.default_rng(1).normal(size=(3, 2, 128)).astype(np.float32)
    with torch.no_grad():
        model.double()
        texts = model.get_text_features(torch.tensor(theirs)).pooler_output.numpy()
        images = torch.tensor(whole[:, 0], dtype=torch.float64)
        images = (model.visual_projection(images) if kind == "clip" else images).numpy()
        model.float()
    assert_equal_to_reference(np.asarray(apply(params, ids, method="text")), texts)
    assert_equal_to_reference(np.asarray(apply(params, ids[:2, :9], method="text")), texts[:2])  # less padding
    assert_equal_to_reference(np.asarray(apply(params, whole, method="image")), images)


@pytest.mark.parametrize(
    "image, form, dims, size, published",
    [
        (ClipImageTower, "clip", (49408, 77, 512, 12, 8, 2048), 512, 149_620_737),
        (SiglipImageTower, "siglip", (32000, 65, 768, 12, 12, 3072), 768, 203_155_970),
    ],
)
def test_base_models_have_their_published_parameters(image, form, dims, size, published):
    tower = image(768, 12, 12, 3072, 16, 14, "gelu")
    pixels = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    leaves = jax.tree.leaves(jax.eval_shape(tower.init, jax.random.key(0), pixels))
    heads = parameter_shapes(DualEncoder(form, dims, size, 1.0), 768)
    scalars = 1 if form == "clip" else 2
    assert sum(np.prod(x.shape) for x in leaves) + sum(map(np.prod, heads.values())) + scalars == published


def test_arrays_that_are_no_dual_encoder_are_refused():
    arrays = {name: tensor.numpy() for name, tensor in clip("gelu").state_dict().items()}
    sizes = text_sizes(arrays, "clip")
    with pytest.raises(ValueError, match="the weights hold no text tower of siglip"):
        text_sizes({name: array for name, array in arrays.items() if "vision" in name}, "siglip")
    with pytest.raises(ValueError, match="the tokenizer has 100 pieces, the weights 99"):
        take_dual_encoder(arrays, "clip", sizes, 1, 128, rows=103, own=100, pad=1)
    del arrays["visual_projection.weight"]
    with pytest.raises(ValueError, match=r"missing visual_projection.weight \(48, 128\)"):
        take_dual_encoder(arrays, "clip", sizes, 1, 128, rows=102, own=99, pad=1)
