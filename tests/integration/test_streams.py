"""ViLBERT and VL-BERT from training to figures, by the commands and interfaces of every other run."""

import shutil
from functools import partial

import numpy as np
import pytest

import fbjax
from fbjax.cli.main import main
from fbjax.export.package import export
from fbjax.exported.runtime import Exported
from fbjax.inference.explain import explain
from fbjax.training.loop import train
from tests.support.runs import tiny_config
from tests.support.tables import encode, make_products

pytestmark = pytest.mark.slow  # whole trainings

FEW = ("train.num_steps=8", "train.save_every=4", "adaptive.method=fixed", "patches.whole_image=true")
RUNS = {
    "vilbert": (
        *("model.architecture=vilbert", "model.co_attention_blocks=1", "tasks.tia.head=product"),
        *("tasks.mlm.on_negatives=false", "tasks.mpm.on_negatives=false"),
    ),
    "vlbert": ("model.architecture=vlbert",),
}
PRODUCTS = make_products(24, seed=1)
TEXTS = [f"{product['title']} {product['caption']}" for product in PRODUCTS]
IMAGES = [encode(product["image"], product["format"]) for product in PRODUCTS]
kinds = pytest.mark.parametrize("name", RUNS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of both runs."""
    folder = tmp_path_factory.mktemp("streams")
    for name, settings in RUNS.items():
        train(tiny_config(folder, *FEW, *settings), folder / name)
    yield folder
    shutil.rmtree(folder)


@kinds
def test_scores_are_those_of_one_pair_at_a_time(runs, name):
    """Batches mix texts of different lengths, and each image is embedded once."""
    model = fbjax.load(runs / name, quiet=True)
    found = model.score([t for t in TEXTS[:4] for _ in range(3)], IMAGES[:3] * 4)
    apply, expected = partial(model.run.model.apply, {"params": model.variables["fashionbert"]}), []
    for text in TEXTS[:4]:
        ids = model.encode_text(text)[None]
        for image in IMAGES[:3]:
            features = model.run.patches.apply({}, model.read_image(image)[None])
            embedded = apply(ids, method="embed_text"), ids != 0, apply(features, method="embed_image")
            hidden, means = apply(*embedded, method="encode_pair")
            ((other, match),) = apply(hidden[:, 0], means, method="match_logits")
            expected.append(float(match - other))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.std(expected) > 1e-5


@kinds
def test_the_commands_take_them_like_any_other_run(runs, tmp_path, capfd, name):
    workdir = str(runs / name)
    assert main(["evaluate", "--workdir", workdir, "--protocol", "candidates,matching", "--queries", "5"]) == 0
    assert main(["rank", "--workdir", workdir, "--text", TEXTS[0], "--top", "3"]) == 0
    assert "best 3 of 24 products" in capfd.readouterr().out
    assert main(["report", "--workdir", workdir, "--out", str(tmp_path / "page.html")]) == 0


@kinds
def test_words_and_patches_explain_a_score(runs, name):
    model, text = fbjax.load(runs / name, quiet=True), TEXTS[0]
    found = explain(model, text, IMAGES[0])
    assert found.score == pytest.approx(model.score([text], [IMAGES[0]])[0], abs=1e-5)
    assert sum(value for _, value in found.words) == pytest.approx(found.score - found.without_words, abs=1e-3)
    of_image = found.patches.sum() + found.whole_image
    assert of_image == pytest.approx(found.score - found.without_patches, abs=1e-3)
    assert explain(model, text, IMAGES[0], "occlusion").without_words == pytest.approx(found.without_words, abs=1e-5)


def test_attention_follows_one_stream_alone(runs):
    found = explain(fbjax.load(runs / "vlbert", quiet=True), TEXTS[0], IMAGES[0], "attention")
    assert found.patches.shape == (4, 4) and found.patches.min() > 0
    with pytest.raises(ValueError, match="follows the layers of one stream.*use 'gradient' or 'occlusion'"):
        explain(fbjax.load(runs / "vilbert", quiet=True), TEXTS[0], IMAGES[0], "attention")


@kinds
def test_exports_run_and_pytorch_is_refused(runs, tmp_path, name):
    content = export(runs / name, "stablehlo", tmp_path / "out", say=lambda line: None)
    assert content["proof"]["random"]["match"]["score"] < 1e-5
    model, exported = fbjax.load(runs / name, quiet=True), Exported(tmp_path / "out")
    pixels = [model.read_image(image) for image in IMAGES[:3]]  # read apart, one may be rounded the other way
    np.testing.assert_allclose(exported.score(TEXTS[:3], pixels), model.score(TEXTS[:3], pixels), atol=1e-5)
    with pytest.raises(ValueError, match=f"--format hf: model.architecture '{name}'.* has no PyTorch code here"):
        export(runs / name, "hf", tmp_path / "hf", say=print)
