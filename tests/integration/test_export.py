"""Exports to PyTorch: equal to the live model for every config, whole or not there, and back bit by bit."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest

import fbjax
from fbjax.cli.main import main
from fbjax.config.load import packaged_configs
from fbjax.config.schema import MeshConfig, PatchConfig
from fbjax.export import huggingface
from fbjax.export.importing import import_checkpoint
from fbjax.export.importing.own import patch_parameters
from fbjax.export.package import export
from fbjax.export.source_model import SourceModel
from fbjax.exported import manifest
from fbjax.model.patch_features import build_patch_network
from fbjax.parallel.mesh import make_mesh
from tests.support.untrained import (
    CONFIGS,
    STEP,
    parameters,
    random_images,
    silent,
    tiny,
    write_untrained,
    write_weights,
)

torch = pytest.importorskip("torch")
import transformers  # noqa: E402  (its models need torch)

from fbjax.export.hub.patches_fashionbert import PatchExtractor  # noqa: E402

torch.set_num_threads(1)  # on a busy machine its threads wait for each other
TEXTS = ["A red cotton dress with two pockets.", "blue bag", "A grey hat of wool with a wide brim, and a long strap."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    yield (folder := tmp_path_factory.mktemp("exports"))
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def workdir(folder):
    """All four tasks, towers, and all that departs from BERT."""
    config = tiny("catalogue_ablation", folder, model__cross_attention="gated", tasks__itc__form="sigmoid")
    return write_untrained(config, folder / "run")


@pytest.fixture(scope="module")
def exported(workdir, folder):
    export(workdir, "hf", folder / "hf", say=silent)
    return folder / "hf"


@pytest.fixture
def copied(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copied")


QUICK = ("my_fashionbert",)
REFUSED = ("catalogue_attributes", "catalogue_caption", "catalogue_kaleido", "catalogue_kaleido_ablation")
REFUSED += ("catalogue_scan", "catalogue_triples", "catalogue_vilbert", "catalogue_vlbert", "kaleido_paper")
REFUSED += ("vlbert_paper",)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK))
        for name in packaged_configs()
        # large patch networks, and what is refused: an encoder that reads queries, scores of tokens, other models
        # and heads
        if not name.startswith("fashiongen") and name not in REFUSED
    ],
)
def test_every_config_is_exported_to_pytorch(name, folder):
    config = tiny(name, folder)
    content = export(write_untrained(config, folder / name), "hf", folder / f"hf-{name}", say=silent)
    heads = {"mlm", "mpm"} & set(config.tasks)
    assert heads | {"features"} < set(content["functions"]) and content["step"] == STEP
    assert ("match" in content["functions"]) == any(task.scores_pairs for task in config.tasks.values())
    assert ("embed_text" in content["functions"]) == any(task.embeds for task in config.tasks.values())
    assert content["proof"]["real"] is None  # its table is not there
    shutil.rmtree(folder / f"hf-{name}")


@pytest.mark.parametrize(
    "network, changes",
    [
        ("resnet50", {"geometry": "feature_map", "whole_image": True}),
        pytest.param("inception_v3", {"geometry": "per_patch", "patch_input_size": 80}, marks=pytest.mark.slow),
        ("mobilenet_v1", {"geometry": "per_patch", "patch_input_size": 37, "whole_image": True}),
        ("efficientnet_lite0", {"geometry": "feature_map", "whole_image": True}),
        ("dinov2_vits14", {"geometry": "per_patch", "patch_input_size": 28}),
        ("dinov2_vits14", {"geometry": "feature_map", "image_size": 84, "patch_size": 42, "whole_image": True}),
        ("pixels", {"geometry": "per_patch", "patch_input_size": 20}),  # shrunk
        ("pixels", {"geometry": "feature_map"}),
    ],
)
def test_patch_networks_are_the_same_in_pytorch(network, changes, tmp_path):
    patches = PatchConfig(network=network, image_size=96, patch_size=32, weights=str(tmp_path / "w.npz"))
    patches = dataclasses.replace(patches, **changes)
    if network != "pixels":
        write_weights(patches, tmp_path / "w.npz")
    live = build_patch_network(patches)
    described = huggingface.describe_patches(patches, live)
    extractor = PatchExtractor(described).eval()
    arrays = huggingface.to_torch({"patches": live.params}, num_layers=0)
    extractor.load_state_dict({name.removeprefix("patches."): torch.tensor(a) for name, a in arrays.items()})
    images = random_images(patches.image_size)
    expected = np.asarray(jax.jit(live.apply)(live.params, images))
    with torch.inference_mode():
        found = extractor(torch.tensor(images)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    back = patch_parameters(arrays)
    jax.tree.map(np.testing.assert_array_equal, back, jax.device_get(live.params.get("network", {})))


def test_a_run_whose_patch_network_has_no_twin_is_exported_from_features_on(workdir, tmp_path):
    source_model = SourceModel.open(workdir, None, with_heads=True)
    run = dataclasses.replace(source_model.run, patches=dataclasses.replace(source_model.run.patches, twin=None))
    carried = huggingface.carried(dataclasses.replace(source_model, run=run))
    assert {"match_features", "embed_text", "mlm"} < carried.functions.keys()
    assert not {"match", "features", "embed_image"} & carried.functions.keys()
    huggingface.write(carried, tmp_path)
    loaded, ids = huggingface.load(tmp_path), np.array([[2, 7, 9, 3]], np.int32)
    features = source_model.call("features", images=random_images(source_model.run.config.patches.image_size, 1))[
        "features"
    ]
    for name in ("match_features", "mpm"):
        found, live = (model.call(name, ids=ids, features=features)["logits"] for model in (loaded, source_model))
        np.testing.assert_allclose(found, live, atol=1e-4)
    with pytest.raises(ValueError, match="it has no patch network"):
        loaded.call("features", images=random_images(64, 1))
    assert "match(ids, features=features)" in (tmp_path / "README.md").read_text()


def test_auto_model_gives_the_live_model_s_scores_and_vectors(workdir, exported):
    model = transformers.AutoModel.from_pretrained(exported, trust_remote_code=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported, trust_remote_code=True)
    live = fbjax.load(workdir)
    ids = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt").input_ids
    assert ids.numpy().tolist() == [live.encode_text(text)[: ids.shape[1]].tolist() for text in TEXTS]
    images = random_images(64)
    encoded = [encode_png(image) for image in images]
    with torch.inference_mode():
        everything = model(ids, images=torch.tensor(images), labels=torch.tensor([1, 0, 1]))
        features = model.patch_features(torch.tensor(images))
        score = model.match(ids, features=features)[0].numpy()
        vectors = (
            model.embed_text(ids),
            model.embed_image(features=features),
            model.embed_product(ids, features=features),
        )
    np.testing.assert_allclose(score, live.score(TEXTS, encoded), atol=1e-4)
    np.testing.assert_allclose(everything.match_score, score, atol=1e-4)
    expected = live.embed_text(TEXTS), live.embed_image(encoded), live.embed_product(TEXTS, encoded)
    for found, live_vectors in zip(vectors, expected, strict=True):
        np.testing.assert_allclose(found, live_vectors, atol=1e-5)
    assert everything.loss.item() == pytest.approx(np.logaddexp(0, -score * [1, -1, 1]).mean(), abs=1e-5)
    assert everything.mlm_logits.shape == (3, ids.shape[1], live.run.vocabulary.size)
    assert everything.mpm_logits.shape == features.shape


def test_the_examples_of_the_documentation_run(workdir, exported, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (CONFIGS.parent / "docs/guides/export.md").read_text(), re.DOTALL)
    examples = [block for block in blocks if "transformers" in block or "save_pretrained" in block]
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "hf").symlink_to(exported)
    for name, image in zip(("a.png", "b.png"), random_images(64), strict=False):
        (tmp_path / name).write_bytes(encode_png(image))
    monkeypatch.chdir(tmp_path)
    found = {}
    for example in examples:
        exec(compile(example, "docs/guides/export.md", "exec"), found)
    live = fbjax.load(workdir)
    np.testing.assert_allclose(found["scores"], live.score(found["texts"], found["images"]), atol=1e-4)
    np.testing.assert_allclose(found["everything"].match_logits, found["logits"], atol=1e-4)
    import_checkpoint(tmp_path / "theirs", tmp_path / "back", silent)
    before, after = parameters(workdir), parameters(tmp_path / "back")
    assert all(before[name].tobytes() == after[name].tobytes() for name in before | after)


def encode_png(image):
    from PIL import Image

    from tests.support.tables import encode

    return encode(Image.fromarray(image))


def test_bert_model_gives_the_text_backbone(exported):
    bert, loading = transformers.BertModel.from_pretrained(exported, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["mismatched_keys"]
    model = huggingface.load(exported).model
    ids = torch.tensor([[2, 9, 8, 7, 3], [2, 6, 3, 0, 0]])
    with torch.inference_mode():
        hidden = model.bert.encoder(model.bert.embeddings(ids), ids != 0, None)
        pooled = torch.tanh(model.bert.pooler["dense"](hidden[:, 0]))
        expected = bert.eval()(ids, attention_mask=(ids != 0).long())
    np.testing.assert_allclose(hidden[ids != 0], expected.last_hidden_state[ids != 0], atol=1e-5)
    np.testing.assert_allclose(pooled, expected.pooler_output, atol=1e-5)


def test_a_checkpoint_of_eight_devices_is_exported_like_one_of_a_single(folder, tmp_path):
    """Both in float32, whatever their matrices were multiplied in."""
    single = tiny("my_fashionbert", folder, model__dtype="bfloat16")
    sharded = tiny("my_fashionbert", folder, model__dtype="bfloat16", mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    mesh = make_mesh(MeshConfig(2, 2, 2))
    for name, config, where in (("one", single, None), ("eight", sharded, mesh)):
        export(write_untrained(config, tmp_path / name, where), "hf", tmp_path / f"hf-{name}", say=silent)
    weights = [(tmp_path / f"hf-{name}" / huggingface.WEIGHTS).read_bytes() for name in ("one", "eight")]
    assert weights[0] == weights[1]


def test_an_export_that_is_not_the_model_leaves_nothing(workdir, tmp_path, monkeypatch, capsys):
    real_load = huggingface.load

    def load_other(folder):
        loaded = real_load(folder)
        loaded.model.tia.bias.data[1] += 1e-3
        return loaded

    monkeypatch.setattr(huggingface, "load", load_other)
    arguments = ["export", "--workdir", str(workdir), "--format", "hf", "--out", str(tmp_path / "hf")]
    assert main(arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "match: score differs from the live model's by 1.0e-03, more than 1.0e-04" in error
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(huggingface, "load", interrupt)
    assert main(arguments) == 130 and list(tmp_path.iterdir()) == []


def interrupt(folder):
    raise KeyboardInterrupt


@pytest.mark.parametrize("small_disk", ["size=64k"], indirect=True)
def test_a_full_disk_is_one_line_and_leaves_nothing(workdir, small_disk, capsys):
    assert main(["export", "--workdir", str(workdir), "--format", "hf", "--out", str(small_disk / "hf")]) == 1
    assert "no space left for" in capsys.readouterr().err.splitlines()[-1]
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize(
    "out, step, message",
    [
        ("full", None, "is not empty"),
        ("full/file", None, "is a file"),
        ("no/such/place", None, "no folder"),
        ("out", 7, "7"),
    ],
)
def test_a_wrong_request_is_said_before_any_work(out, step, message, workdir, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(OSError, match=message):
        export(workdir, "hf", tmp_path / out, step=step, say=silent)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full"]


def test_the_manifest_names_every_file_and_what_is_wrong_with_it(copied):
    content = manifest.read(copied, "hf")
    assert set(content["files"]) == {path.name for path in copied.iterdir()} - {manifest.FILE}
    assert {given["name"] for given in content["functions"]["match"]["inputs"]} == {"ids", "images"}
    with pytest.raises(ValueError, match="format 'hf', not 'onnx'"):
        manifest.read(copied, "onnx")
    weights = (copied / huggingface.WEIGHTS).read_bytes()
    for damaged, message in ((weights[:-9], "bytes, manifest.json says"), (weights[:-1] + b"?", "SHA-256")):
        (copied / huggingface.WEIGHTS).write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            manifest.read(copied, "hf")
    (copied / manifest.FILE).write_text(json.dumps(content | {"manifest_version": 99}))
    with pytest.raises(ValueError, match="has version 99, this reads 1"):
        manifest.read(copied, "hf")


def test_the_card_says_data_figures_and_licences_and_no_path(exported, folder):
    card = (exported / "README.md").read_text()
    for said in (
        "`nowhere.parquet`",
        "has not been evaluated",
        "mobilenet_v1.npz",
        "licence",
        "## Limits",
        "embed_text",
    ):
        assert said in card
    assert str(folder) not in card


def truncated(copied):
    path = copied / huggingface.WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])


def without_tokenizer(copied):
    (copied / huggingface.VOCABULARY).unlink()


def with_another_tokenizer(copied):
    path = copied / huggingface.VOCABULARY
    content = json.loads(path.read_text())
    rows = content["model"]["vocab"]
    one, other = list(rows)[40:42]
    rows[one], rows[other] = rows[other], rows[one]
    path.write_text(json.dumps(content))


def of_a_bert(copied):
    (copied / huggingface.CONFIG).write_text(json.dumps({"model_type": "bert"}))


def edited(**changes):
    def edit(copied):
        path = copied / huggingface.CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def without_its_config(name, value):
    """`copied` with something else as the config that it tells under "fbjax"."""

    def edit(copied):
        content = json.loads((copied / huggingface.CONFIG).read_text())
        content["fbjax"]["config"][name] = value
        (copied / huggingface.CONFIG).write_text(json.dumps(content))

    return edit


def rewritten(name, content):
    return lambda copied: (copied / name).write_bytes(content)


def reshaped(copied):
    from safetensors.numpy import load_file, save_file

    arrays = load_file(copied / huggingface.WEIGHTS)
    arrays["tia.bias"] = np.zeros(3, np.float32)
    arrays["more"] = arrays.pop("log_scale")
    arrays["mpm.weight"] = arrays["mpm.weight"] * np.nan
    save_file(arrays, copied / huggingface.WEIGHTS)


@pytest.mark.parametrize(
    "spoil, messages",
    [
        (truncated, ["model.safetensors is not a safetensors file"]),
        (without_tokenizer, ["has no tokenizer.json", "copy it"]),
        (with_another_tokenizer, ["tokenizer.json has other pieces", "copy it"]),
        (of_a_bert, ["type 'bert', not the 'fashionbert'", "config.model.pretrained"]),
        (edited(fbjax={"layout": 9}), ["layout 9", "reads 1"]),
        (edited(fbjax="x"), ["config.json has the layout None"]),
        (edited(fbjax={"layout": 1}), ["config.json has no config and no pieces and no step", "copy it"]),
        (rewritten(huggingface.CONFIG, b'{"model_type": "fash'), ["config.json is not JSON: Unterminated"]),
        (rewritten(huggingface.CONFIG, b"[]"), ["config.json holds no settings by their names", "copy it"]),
        (without_its_config("model", {"width": "wide"}), ["config.json has no config", "width expects int", "'wide'"]),
        (
            without_its_config("model", {"width": -1}),
            ["config.json has no config", "model.width -1 must be"],
        ),
        (without_its_config("tasks", {"gone": {}}), ["config.json has no config", "no task 'gone'"]),
        (rewritten(huggingface.VOCABULARY, b"{}"), ["tokenizer.json is no tokenizer", "put a copy"]),
        (rewritten(huggingface.VOCABULARY, b"\xff\x00"), ["tokenizer.json is no tokenizer", "put a copy"]),
        (rewritten(huggingface.WEIGHTS, b""), ["model.safetensors is not a safetensors file"]),
        (edited(match_reads="cls"), ["match_reads is 'cls', expected 'cls+cosine'"]),
        (
            reshaped,
            ["missing log_scale", "unexpected more", "tia.bias has shape (3,), expected (2,)", "mpm.weight holds NaN"],
        ),
    ],
)
def test_a_folder_that_cannot_be_taken_back_is_named_and_leaves_nothing(spoil, messages, copied, tmp_path):
    spoil(copied)
    with pytest.raises((OSError, ValueError)) as error:
        import_checkpoint(copied, tmp_path / "back", silent)
    for message in messages:
        assert message in str(error.value)
    assert not (tmp_path / "back").exists() and list(tmp_path.iterdir()) == [copied]
