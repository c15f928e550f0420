"""Exports to StableHLO and ONNX: equal to the live model for every config, read back by what alone they need."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

import fbjax
from fbjax.config.load import packaged_configs
from fbjax.data.records.pipeline import decode_image
from fbjax.data.sources.images import encode_array, normalise_image, read_pixels
from fbjax.export import onnx as onnx_format
from fbjax.export import stablehlo
from fbjax.export.functions import functions
from fbjax.export.package import describe, export
from fbjax.export.proof import prove
from fbjax.export.source_model import SourceModel
from fbjax.exported import manifest
from fbjax.runs.run import Run
from tests.support.objectives import make_tasks
from tests.support.tables import encode, make_products
from tests.support.untrained import silent, tiny, write_untrained

ROOT = Path(__file__).parents[2]
FORMATS = ("stablehlo", "onnx")
PRODUCTS = make_products(9, seed=4)
TEXTS = [f"{p['title']} {p['caption']}" for p in PRODUCTS]
IMAGES = [encode(p["image"]) for p in PRODUCTS]  # PNG: of a JPEG two decoders make two pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    yield (folder := tmp_path_factory.mktemp("exported"))
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def workdir(folder):
    """Towers and single stream, and all that departs from BERT."""
    config = tiny("catalogue_fashionbert", folder, patches__network="pixels", patches__image_size=32)
    return write_untrained(config, folder / "run")


@pytest.fixture(scope="module")
def exports(workdir, folder):
    """{format: folder}."""
    for form in FORMATS:
        export(workdir, form, folder / form, say=silent)
    return {form: folder / form for form in FORMATS}


@pytest.fixture(scope="module")
def live(workdir):
    return fbjax.load(workdir)


@pytest.fixture(scope="module")
def loaded(exports):
    return fbjax.load_exported(exports["stablehlo"])


@pytest.fixture
def copied(exports, tmp_path):
    return shutil.copytree(exports["stablehlo"], tmp_path / "copied")


QUICK = ("my_fashionbert", "quickstart_fashionbert")
EVERY = [name for name in packaged_configs() if name != "catalogue_scan"]  # scored by tokens, which is refused


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in EVERY])
def test_every_config_is_exported(name, folder):
    """By the function that has all of a run in it; all of them, and the command itself, are tested on one run."""
    source_model = SourceModel.open(write_untrained(tiny(name, folder), folder / name), None, with_heads=False)
    whole = "match" if "match" in source_model.functions else "embed_product"
    kept = {name: source_model.functions[name] for name in ("features", f"{whole}_features", whole)}
    source_model = dataclasses.replace(source_model, functions=kept)
    for form, module in (("stablehlo", stablehlo), ("onnx", onnx_format)):
        (out := folder / f"{form}-{name}").mkdir()
        module.write(source_model, out)
        source_model.run.vocabulary.save(out / "tokenizer.json")
        manifest.write(out, describe(source_model, form))
        proof = prove(source_model, module.load(out), "of random ones alone", silent)
        assert proof["random"].keys() == kept.keys()
        shutil.rmtree(out)
    shutil.rmtree(folder / name)


@pytest.mark.slow
def test_strings_and_pictures_give_the_live_model_s_figures(live, loaded):
    pixels = [live.read_image(image) for image in IMAGES]  # read apart, one may be rounded the other way at a half
    np.testing.assert_allclose(loaded.score(TEXTS, pixels), live.score(TEXTS, pixels), atol=2e-5)
    np.testing.assert_allclose(loaded.embed_text(TEXTS), live.embed_text(TEXTS), atol=1e-5)
    np.testing.assert_allclose(loaded.embed_image(pixels), live.embed_image(pixels), atol=1e-5)
    np.testing.assert_allclose(loaded.embed_product(TEXTS, pixels), live.embed_product(TEXTS, pixels), atol=1e-5)
    np.testing.assert_allclose(loaded.score(TEXTS, IMAGES), live.score(TEXTS, IMAGES), atol=1e-3)
    assert np.ptp(live.score(TEXTS, IMAGES)) > 1e-2 and loaded.score([], []).shape == (0,)
    assert loaded.embed_image([]).shape == (0, 16)


def test_a_row_of_an_export_does_not_depend_on_those_beside_it(loaded):
    scores = loaded.score(TEXTS, IMAGES)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    again = loaded.score([TEXTS[i] for i in order] * 5, [IMAGES[i] for i in order] * 5)
    np.testing.assert_array_equal(again, np.tile(scores[order], 5))


def test_runs_of_one_task_have_its_functions_alone(live):
    def names(tasks, data=live.run.config.data):
        config = dataclasses.replace(live.run.config, tasks=make_tasks(*tasks), data=data)
        return set(functions(Run.build(config, live.run.vocabulary, None)))

    towers = {"embed_text", *(f"embed_{what}{of}" for what in ("image", "product") for of in ("", "_features"))}
    assert names(("mlm", "mpm", "tia")) == {"features", "match", "match_features"}
    assert names(("itc",)) == {"features"} | towers
    ready = dataclasses.replace(live.run.config.data, source="release", num_patches=4, feature_size=12)
    assert names(("tia",), ready) == {"match_features"}


def test_the_onnx_models_share_their_weights_and_name_their_axes(exports):
    models = {path.stem: onnx.load(path, load_external_data=False) for path in exports["onnx"].glob("*.onnx")}
    assert models.keys() == fbjax.load_exported(exports["stablehlo"]).functions.keys()
    axes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for graph in (models["match"].graph,)
        for value in (*graph.input, *graph.output)
    }
    expected = {"ids": ["batch", "length"], "images": ["batch", 32, 32, 3], "score": ["batch"], "logits": ["batch", 2]}
    assert axes == expected
    assert all(len(path.read_bytes()) < 400_000 for path in exports["onnx"].glob("*.onnx"))
    weights = sum(array.nbytes for array in np.load(exports["stablehlo"] / "weights.npz").values())
    assert (
        exports["onnx"] / "weights.bin"
    ).stat().st_size < 4 * weights  # eight models, each array on a page of its own


def test_onnx_takes_any_batch_and_length(exports, live):
    runtime, rng = onnx_format.load(exports["onnx"]), np.random.default_rng(0)
    ids = np.array([live.encode_text(text) for text in TEXTS])
    longest = int((ids != 0).sum(axis=1).max())
    features = rng.standard_normal((len(ids), live.run.patches.num_patches, live.run.patches.feature_size), np.float32)
    whole = runtime.call("match_features", ids=ids, features=features)["score"]
    cut = runtime.call("match_features", ids=ids[:4, :longest], features=features[:4])["score"]
    np.testing.assert_allclose(cut, whole[:4], atol=2e-5)


ALONE = """
import sys
class Only:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Only())
import numpy as np
import fbjax
model = fbjax.load_exported({folder!r})
given = np.load({inputs!r})
np.save({out!r}, model.call("match", ids=given["ids"], images=given["images"])["score"])
for ask, wanted in ((lambda: model.embed_text(["red"]), "tokenizers"), (lambda: model.embed_image([b""]), "PIL")):
    try:
        ask()
    except ModuleNotFoundError as error:
        assert wanted in str(error), error
    else:
        raise AssertionError(wanted)
"""


def test_an_export_needs_jax_numpy_and_flatbuffers_alone(exports, live, tmp_path):
    installed = ("flax", "optax", "orbax", "tensorflow", "tensorflow_datasets", "torch", "transformers", "tokenizers")
    blocked = {
        *installed,
        "PIL",
        "safetensors",
        "etils",
        "ml_collections",
        "absl",
        "onnx",
        "onnxruntime",
        "pyarrow",
    }
    ids = np.array([live.encode_text(text) for text in TEXTS])
    images = np.stack([live.read_image(image) for image in IMAGES])
    np.savez(tmp_path / "in.npz", ids=ids, images=images)
    paths = {"folder": str(exports["stablehlo"]), "inputs": str(tmp_path / "in.npz"), "out": str(tmp_path / "out.npy")}
    subprocess.run([sys.executable, "-c", ALONE.format(blocked=blocked, **paths)], check=True, cwd=ROOT)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), live.score(TEXTS, IMAGES), atol=2e-5)


def test_an_export_says_what_it_needs_to_be_read(exports, monkeypatch):
    monkeypatch.delattr("jax._src.export.serialization")  # which JAX imports when it is first wanted
    monkeypatch.delitem(sys.modules, "jax._src.export.serialization")
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ModuleNotFoundError, match="JAX needs flatbuffers to read .*: pip install flatbuffers"):
        fbjax.load_exported(exports["stablehlo"])


def truncate(folder):
    path = folder / "weights.npz"
    path.write_bytes(path.read_bytes()[:-100])
    return r"weights\.npz has [\d,]+ bytes, manifest\.json says"


def other_version(folder):
    content = json.loads((folder / manifest.FILE).read_text())
    (folder / manifest.FILE).write_text(json.dumps(content | {"manifest_version": 99}))
    return "has version 99, this reads 1"


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    return r"tokenizer\.json is missing"


def no_manifest(folder):
    (folder / manifest.FILE).unlink()
    return "has no manifest.json: give a folder that fbjax export --format stablehlo has written"


def other_serialization(folder):
    (folder / "match.stablehlo").write_bytes(b"not a program")
    content = json.loads((folder / manifest.FILE).read_text())
    manifest.write(folder, {name: content[name] for name in content if name not in ("manifest_version", "files")})
    return r"match\.stablehlo was exported by jax [\d.]+, which jax [\d.]+ cannot read"


@pytest.mark.parametrize("damage", [truncate, other_version, no_tokenizer, no_manifest, other_serialization])
def test_a_folder_that_is_no_whole_export_is_refused_in_one_line(copied, damage):
    expected = damage(copied)
    with pytest.raises((ValueError, FileNotFoundError), match=expected) as caught:
        fbjax.load_exported(copied)
    assert "\n" not in str(caught.value)


def test_an_export_of_another_format_is_refused(exports):
    with pytest.raises(ValueError, match="holds an export of format 'onnx', not 'stablehlo'"):
        fbjax.load_exported(exports["onnx"])


def test_what_a_function_does_not_take_is_named(loaded):
    ids, features = np.ones((2, 5), int), np.zeros((2, *loaded._programs["features"].out_avals[0].shape[1:]))
    call = loaded.call
    with pytest.raises(ValueError, match="match_features takes ids, features; got ids"):
        call("match_features", ids=ids)
    with pytest.raises(ValueError, match="ids has type float64, expected int32"):
        call("match_features", ids=ids * 1.0, features=features)
    with pytest.raises(ValueError, match=r"features has shape \[1, .* one batch for all"):
        call("match_features", ids=ids, features=features[:1])
    with pytest.raises(ValueError, match=r"ids has shape \[2, 25\], expected \[batch, length\] .* at most 24"):
        call("match_features", ids=np.ones((2, 25), int), features=features)
    with pytest.raises(TypeError, match="texts is one str: put it into a list"):
        loaded.embed_text("red dress")
    with pytest.raises(ValueError, match="give as many texts as images; got 1 and 2"):
        loaded.score(TEXTS[:1], IMAGES[:2])
    with pytest.raises(ValueError, match="text ' ' has no words"):
        loaded.embed_text([" "])


@pytest.mark.parametrize("fit", ["squash", "pad", "crop", "foreground"])
@pytest.mark.parametrize("size", [16, 64, 224])
def test_pixels_without_tensorflow_are_those_of_the_pipeline(size, fit):
    for product in PRODUCTS:
        for form, most, mean in (("PNG", 1, 0.02), ("JPEG", 24, 3)):  # a half may be rounded the other way
            encoded = encode(product["image"], form)
            expected = decode_image(normalise_image(encoded, size), size, fit).astype(int)
            apart = np.abs(read_pixels(encoded, size, fit) - expected)
            if fit == "foreground":
                assert apart.max() <= 1  # of the same box: JPEGs too have the same pixels
            elif form == "PNG" or size > min(product["image"].size):  # a JPEG made smaller is encoded again, coarsely
                assert apart.max() <= most and apart.mean() <= mean


def test_an_export_reads_pictures_by_the_fit_of_its_run(copied):
    wide = encode_array(np.random.default_rng(0).integers(0, 256, (20, 44, 3)).astype(np.uint8))
    content = json.loads((copied / "manifest.json").read_text())
    assert content["image_fit"] == "squash"
    (copied / "manifest.json").write_text(json.dumps(content | {"image_fit": "pad"}))
    found, squashed = (fbjax.load_exported(copied).extract([x]) for x in (wide, read_pixels(wide, 32)))
    np.testing.assert_array_equal(found, fbjax.load_exported(copied).extract([read_pixels(wide, 32, "pad")]))
    assert not np.array_equal(found, squashed)


@pytest.mark.parametrize("read", [read_pixels, decode_image])
def test_a_cropped_picture_is_the_square_in_its_middle(read):
    wide = np.random.default_rng(0).integers(0, 256, (24, 53, 3)).astype(np.uint8)
    np.testing.assert_array_equal(read(encode_array(wide), 24, "crop"), wide[:, 14:38])
    np.testing.assert_array_equal(read(encode_array(wide.swapaxes(0, 1)), 24, "crop"), wide[:, 14:38].swapaxes(0, 1))


@pytest.mark.parametrize("width, height", [(30, 60), (60, 30), (45, 45), (59, 60), (1, 400)])
@pytest.mark.parametrize("read", [read_pixels, lambda encoded, size, fit: decode_image(encoded, size, fit)])
def test_a_padded_picture_keeps_its_proportions_on_white(width, height, read):
    size, grey = 24, 100
    pixels = read(encode_array(np.full((height, width, 3), grey, np.uint8)), size, "pad")
    inside = (pixels == grey).all(axis=2)
    assert (pixels[~inside] == 255).all()
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    assert inside.sum() == len(rows) * len(columns) and max(len(rows), len(columns)) == size
    for side, found in ((height, rows), (width, columns)):
        assert abs(len(found) - max(1, side * size / max(width, height))) <= 0.5
        assert abs((found[0] - 0) - (size - 1 - found[-1])) <= 1  # in the middle


def test_every_kind_of_image_is_the_same_image(live, tmp_path):
    path, product = tmp_path / "p.png", PRODUCTS[0]
    path.write_bytes(IMAGES[0])
    pixels = np.asarray(product["image"])
    kinds = [str(path), path, IMAGES[0], product["image"], pixels, pixels / 255]
    vectors = live.embed_image(kind for kind in kinds)  # a generator will do
    np.testing.assert_array_equal(vectors, np.repeat(vectors[:1], len(kinds), axis=0))
    assert [place for place, _ in live.rank(pixels, TEXTS)] == [place for place, _ in live.rank(IMAGES[0], TEXTS)]
    with pytest.raises(ValueError, match=r"image array of shape \[2, 2\], not \[H, W, 3\]"):
        live.embed_image([np.zeros((2, 2))])
    with pytest.raises(TypeError, match="an array of pixels, not int"):
        live.embed_image([3])


def test_threads_get_what_one_caller_gets(live, loaded):
    def ask(model):
        return np.concatenate([model.score(TEXTS, IMAGES)[:, None], model.embed_text(TEXTS)], axis=1)

    with ThreadPoolExecutor(4) as pool:
        for model in (live, loaded):
            expected = ask(model)
            for found in pool.map(ask, [model] * 8):
                np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("needs", ["load_exported", "onnxruntime", "fbjax.load("])
def test_the_examples_of_the_documentation_run(needs, exports, workdir, live, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/guides/export.md").read_text(), re.DOTALL)
    (block,) = (block for block in blocks if needs in block)
    for name, place in (*((f"exported/{form}", exports[form]) for form in FORMATS), ("runs/mine", workdir)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(place)
    for name, product in zip(("a.png", "b.png"), PRODUCTS, strict=False):
        product["image"].resize((32, 32)).save(tmp_path / name)  # of the run's size: Pillow's own resizing rounds more
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(compile(block, "docs/guides/export.md", "exec"), found)
    texts = ["red cotton dress", "black leather bag"]
    np.testing.assert_allclose(found["scores"], live.score(texts, ["a.png", "b.png"]), atol=2e-5)


def test_a_run_in_bfloat16_is_exported_in_float32(folder):
    config = tiny("catalogue_towers", folder, model__dtype="bfloat16", patches__network="pixels")
    content = export(write_untrained(config, folder / "bf16"), "onnx", folder / "bf16-onnx", say=silent)
    assert content["proof"]["random"]["embed_text"]["vectors"] < 1e-5  # whose own steps are 4e-3
