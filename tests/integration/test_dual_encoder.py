"""A CLIP and a SigLIP from files to a run: imported, equal to transformers, evaluated, embedded, trained on."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from transformers import CLIPTokenizer  # noqa: E402

import fbjax  # noqa: E402
from fbjax.cli.main import main  # noqa: E402
from fbjax.config.load import load_config  # noqa: E402
from fbjax.evaluation.evaluate import evaluate  # noqa: E402
from fbjax.export.importing import import_checkpoint  # noqa: E402
from fbjax.inference.explain import explain  # noqa: E402
from fbjax.runs.loaded import LoadedRun  # noqa: E402
from fbjax.training.loop import train  # noqa: E402
from tests.support.clips import (  # noqa: E402
    clip,
    open_clip_names,
    siglip,
    write_hugging_face_clip,
    write_siglip_tokenizer,
)
from tests.support.runs import same, tiny_config, write_config  # noqa: E402
from tests.support.tables import make_products  # noqa: E402
from tests.support.untrained import silent  # noqa: E402
from tests.unit.test_clip import MEANS  # noqa: E402

pytestmark = pytest.mark.slow  # whole trainings

PRODUCTS = make_products(6, seed=5)
TEXTS = [f"{product['title']}, {product['caption']}" for product in PRODUCTS]
OPEN_CLIP_CONFIG = {
    "model_cfg": {
        "embed_dim": 128,
        "custom_text": True,
        "vision_cfg": {"image_size": 32, "timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map"},
        "text_cfg": {
            "context_length": 12,
            "vocab_size": 0,
            "width": 128,
            "heads": 2,
            "layers": 2,
            "no_causal_mask": True,
        }
        | {"pool_type": "last", "proj_bias": True, "norm_kwargs": {"eps": 1e-6}},
    },
    "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"},
}


def write_open_clip_siglip(folder):
    """A folder as open_clip's hub has it."""
    folder.mkdir()
    model = siglip("gelu", vocabulary=write_siglip_tokenizer(folder))
    save_file(open_clip_names(model.state_dict(), "siglip"), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP_CONFIG))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CLIP of Hugging Face and a SigLIP of open_clip, imported as runs over 48 + 24 products."""
    folder = tmp_path_factory.mktemp("dual")
    config = str(write_config(folder))
    for name, write in (("clip", write_hugging_face_clip), ("siglip", write_open_clip_siglip)):
        write(folder / f"{name}_files")
        arguments = ["--from", f"{folder}/{name}_files", "--workdir", f"{folder}/{name}", "--config", config]
        assert main(["import", *arguments, "--config.train.num_steps=4"]) == 0
    return folder


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_an_imported_clip_makes_the_vectors_of_transformers(folder):
    loaded = fbjax.load(folder / "clip")
    model = clip("quick_gelu", vocabulary=loaded.run.vocabulary.size - 3)
    tokens = CLIPTokenizer.from_pretrained(folder / "clip_files")
    ids = tokens(TEXTS, padding="max_length", max_length=12, truncation=True, return_tensors="pt")
    images = [product["image"] for product in PRODUCTS]
    pixels = np.stack([loaded.read_image(image) for image in images])
    mean, deviation = (np.array(values) * 255 for values in MEANS["clip"])
    with torch.no_grad():
        texts = model.get_text_features(ids.input_ids).pooler_output.numpy()
        prepared = torch.tensor((pixels - mean) / deviation, dtype=torch.float32).permute(0, 3, 1, 2)
        vectors = model.get_image_features(prepared).pooler_output.numpy()
    np.testing.assert_allclose(loaded.embed_text(TEXTS), unit(texts), atol=1e-5)
    np.testing.assert_allclose(loaded.embed_image(images), unit(vectors), atol=1e-5)
    product = unit(0.1 * unit(texts) + 0.9 * unit(vectors))
    np.testing.assert_allclose(loaded.embed_product(TEXTS, images), product, atol=1e-5)
    patches = loaded.run.config.patches
    assert (patches.network, patches.fit, patches.image_size) == ("clip_vit", "crop", 32)


def test_an_imported_siglip_makes_the_vectors_of_transformers(folder):
    loaded = fbjax.load(folder / "siglip")
    model = siglip("gelu", vocabulary=loaded.run.vocabulary.size - 3)
    framed = loaded.run.vocabulary.encode(TEXTS, 13)
    ids = np.where(framed[:, 1:] == 0, 1, framed[:, 1:] - 1)
    assert loaded.run.config.model.text_tokens == 13 and (ids == 1).any(axis=1).all()
    images = [product["image"] for product in PRODUCTS]
    pixels = np.stack([loaded.read_image(image) for image in images])
    with torch.no_grad():
        texts = model.get_text_features(torch.tensor(ids)).pooler_output.numpy()
        prepared = torch.tensor(pixels / 127.5 - 1, dtype=torch.float32).permute(0, 3, 1, 2)
        vectors = model.get_image_features(prepared).pooler_output.numpy()
    np.testing.assert_allclose(loaded.embed_text(TEXTS), unit(texts), atol=1e-5)
    np.testing.assert_allclose(loaded.embed_image(images), unit(vectors), atol=1e-5)
    params = LoadedRun.load(folder / "siglip").params["fashionbert"]
    assert (params["log_scale"], params["logit_bias"]) == (3.0, -9.0)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_imported_towers_are_evaluated_and_embedded(folder, name, tmp_path):
    figures = evaluate(folder / name, protocols=("candidates", "full", "marqo"))
    marqo = figures["marqo"]["tasks"]
    assert set(marqo) == {"text-to-image", "category-to-product"} and figures["marqo"]["gallery"] == 24
    assert 0 < marqo["category-to-product"]["precision@10"] <= 1
    assert figures["checkpoint_step"] == 0
    assert 0 < figures["full"]["text_to_image"]["rank@10"] <= 1
    assert main(["embed", "--workdir", f"{folder}/{name}", "--out", f"{tmp_path}/vectors.npz"]) == 0
    found = np.load(tmp_path / "vectors.npz")
    model = fbjax.load(folder / name)
    products = model.records().products(range(4))
    expected = model.embed_product([p.text for p in products], [p.image for p in products])
    rows = [found["ids"].tolist().index(p.id) for p in products]
    np.testing.assert_allclose(found["vectors"][rows], expected, atol=1e-5)
    assert main(["report", "--workdir", f"{folder}/{name}"]) == 0
    with pytest.raises(ValueError, match="no method explains .*it is a dual encoder"):
        explain(model, products[0].text, products[0].image)


def test_training_goes_on_from_an_imported_clip_with_both_towers(folder):
    settings = [f"train.start_from={folder}/clip", "patches.mode=trained", "train.learning_rate=1e-4"]
    few = ["train.num_steps=2", "train.warmup_steps=1", "train.save_every=2", "train.evaluate_products=8"]
    config = load_config(folder / "clip" / "config.json", [*settings, *few, "model.text_bucket=12"])
    train(config, folder / "tuned")
    before = LoadedRun.load(folder / "clip")
    after = LoadedRun.load(folder / "tuned", step=2)
    for name in ("text_tower", "image_projection"):
        old, new = before.params["fashionbert"]["dual"][name], after.params["fashionbert"]["dual"][name]
        assert not same(old, new)
    assert not same(before.run.patches.params, after.params["patches"])
    moved = np.abs(np.asarray(after.params["fashionbert"]["log_scale"]) - before.params["fashionbert"]["log_scale"])
    assert moved < 0.01  # it began at the file's


def test_settings_that_a_dual_encoder_cannot_have_are_told(folder):
    dual = ("tasks=itc", "tasks.itc.branches=dual", "adaptive.method=fixed")
    with pytest.raises(ValueError, match="branches 'dual' reads .* set patches.whole_image to true"):
        tiny_config(folder, *dual)
    with pytest.raises(ValueError, match="computes in float32, not in model.dtype 'bfloat16'"):
        tiny_config(folder, *dual, "patches.whole_image=true", "model.dtype=bfloat16")


def test_what_cannot_be_imported_is_said(folder, tmp_path):
    config = tiny_config(folder)
    with pytest.raises(ValueError, match="holds a clip, which knows no catalogue: give --config"):
        import_checkpoint(folder / "clip_files", tmp_path / "run", silent)
    with pytest.raises(ValueError, match="--config is for a CLIP or SigLIP, which .* does not hold"):
        import_checkpoint(tmp_path, tmp_path / "run", silent, config)
    write_hugging_face_clip(tmp_path / "files")
    content = json.loads((tmp_path / "files" / "config.json").read_text())
    content["text_config"]["hidden_act"] = "relu"
    (tmp_path / "files" / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="has hidden_act 'relu', which is not known here"):
        import_checkpoint(tmp_path / "files", tmp_path / "run", silent, config)
    (tmp_path / "files" / "model.safetensors").unlink()
    content["text_config"]["hidden_act"] = "quick_gelu"
    (tmp_path / "files" / "config.json").write_text(json.dumps(content))
    with pytest.raises(FileNotFoundError, match="has no weights: put one of model.safetensors"):
        import_checkpoint(tmp_path / "files", tmp_path / "run", silent, config)
    assert not (tmp_path / "run").exists()
