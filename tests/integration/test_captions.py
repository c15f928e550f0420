"""A run that writes captions: trained, evaluated, asked by Python and by the command, and what it refuses."""

import builtins
import html
import json

import jax
import numpy as np
import pytest

import fbjax
from fbjax.cli.main import main
from fbjax.config.schema import MeshConfig
from fbjax.data.text.detokenise import as_text, written_words
from fbjax.evaluation.captions.run import captions_of
from fbjax.evaluation.evaluate import evaluate
from fbjax.export.package import export
from fbjax.inference.captions.captioner import Captioner
from fbjax.parallel.mesh import make_mesh
from fbjax.report.report import write_report
from fbjax.runs.feature_cache import image_inputs
from fbjax.runs.loaded import LoadedRun
from fbjax.runs.stored_evaluation import read_captions, write_captions
from fbjax.training.loop import train
from tests.support.runs import make_one_device_mesh, tiny_config
from tests.support.tables import encode, make_products

FEW = ("train.num_steps=8", "train.save_every=8", "model.num_layers=1", "adaptive.method=fixed", "tasks=caption,tia")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, trains_on_one_device):
    folder = tmp_path_factory.mktemp("captions")
    train(tiny_config(folder, *FEW), folder / "run")
    return folder


def test_a_run_is_evaluated_by_its_captions(folder, capsys):
    out = folder / "metrics.json"
    asked = ["evaluate", "--workdir", str(folder / "run"), "--protocol", "captioning", "--queries", "9", "--beams", "2"]
    assert main([*asked, "--out", str(out)]) == 0, capsys.readouterr().err
    printed, figures = capsys.readouterr().out, json.loads(out.read_text())["captioning"]
    assert figures["products"] == 9 and figures["beams"] == 2 and "BLEU-4" in printed and "another's text" in printed
    assert figures["another"]["rouge_l"] > 0  # texts of one category share words
    stored = read_captions(folder / "run")
    assert stored["figures"] == figures and stored["checkpoint_step"] == 8 and len(stored["captions"]) == 9
    records = LoadedRun.load(folder / "run").records()
    for identity, text, caption, score in stored["captions"]:
        whole = records.strings(records.rows([identity]))[0].lower()
        assert whole.split()[:3] == text.split()[:3] and score < 0 and isinstance(caption, str)


def test_captions_do_not_depend_on_the_batch_or_on_the_devices(folder):
    loaded = LoadedRun.load(folder / "run")
    records, rows, variables = loaded.records(), np.arange(12), jax.device_get(loaded.variables)

    def written(mesh, **options):
        captioner = Captioner(loaded.run, mesh, **options)
        return captioner.write(variables, image_inputs(loaded.run, records, rows, captioner.batch_size))

    ids, scores = written(make_one_device_mesh())
    for mesh, options in ((make_mesh(MeshConfig()), {}), (make_one_device_mesh(), {"rows": 1})):
        same_ids, same_scores = written(mesh, **options)
        np.testing.assert_array_equal(same_ids, ids)
        np.testing.assert_allclose(same_scores, scores, rtol=1e-4)
    greedy, _ = written(make_one_device_mesh(), beams=1)
    never = [loaded.run.vocabulary.unk_id, loaded.run.vocabulary.mask_id]
    assert not np.isin([ids, greedy], never).any() and (ids[:, 0] == loaded.run.vocabulary.cls_id).all()
    assert ((ids == loaded.run.vocabulary.sep_id).sum(axis=1) == 1).all()
    found = captions_of(loaded, Captioner(loaded.run, loaded.mesh), records, rows)
    assert [row[2] for row in found["captions"]] == [as_text(written_words(loaded.run.vocabulary, row)) for row in ids]


def test_a_picture_gets_the_caption_of_its_prepared_product(folder, capsys):
    model = fbjax.load(folder / "run")
    product = make_products(24, seed=1)[0]
    picture = folder / "photo.png"
    picture.write_bytes(encode(product["image"], "PNG"))
    records = model.records()
    captioner = Captioner(model.run, model.mesh)
    prepared, _ = captioner.write(
        model.variables, image_inputs(model.run, records, records.rows([product["id"]]), captioner.batch_size)
    )
    expected = as_text(written_words(model.run.vocabulary, prepared[0]))
    assert model.caption([picture, str(picture)]) == [expected] * 2 and model.caption([]) == []
    asked = ["caption", "--workdir", str(folder / "run"), "--image", str(picture), "--json"]
    assert main(asked) == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out) == {"image": str(picture), "caption": expected}


def test_what_cannot_be_captioned_is_refused_in_words(folder, tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match="tasks.caption reads text and image in one stream, .*'vilbert' does not"):
        tiny_config(
            folder, *FEW, "model.architecture=vilbert", "patches.whole_image=true", "model.co_attention_blocks=1"
        )
    train(tiny_config(folder, *FEW[:-1], "tasks=tia"), folder / "without")
    with pytest.raises(ValueError, match="--format hf: the head of tasks.caption has no PyTorch code"):
        export(folder / "run", "hf", tmp_path / "hf", say=print)
    for asked in (["evaluate", "--protocol", "captioning"], ["caption", "--image", str(folder / "photo.png")]):
        assert main([asked[0], "--workdir", str(folder / "without"), *asked[1:]]) == 1
        assert "captions need a run that learned to write them: its tasks have no caption" in capsys.readouterr().err
    assert main(["caption", "--workdir", str(folder / "run"), "--image", "nowhere.jpg"]) == 1
    assert "nowhere.jpg" in capsys.readouterr().err
    assert main(["evaluate", "--workdir", str(folder / "run"), "--beams", "2"]) == 1
    assert "--beams 2: add captioning to --protocol" in capsys.readouterr().err
    usual = builtins.__import__

    def without_nltk(name, *rest):
        if name == "nltk":
            raise ModuleNotFoundError("No module named 'nltk'", name="nltk")
        return usual(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_nltk)
    assert main(["evaluate", "--workdir", "nowhere", "--protocol", "captioning"]) == 1
    assert "protocol captioning needs nltk: pip install 'fbjax[caption]'" in capsys.readouterr().err


def test_the_report_shows_captions_beside_pictures_and_texts(folder, tmp_path):
    evaluate(folder / "run", protocols=("captioning",), num_queries=9)
    stored, page = read_captions(folder / "run"), write_report(folder / "run", tmp_path / "report.html", num_queries=6)
    shown = html.unescape(page.read_text())
    section = shown.split('<section id="captions">')[1].split("</section>")[0]
    assert section.count("<img src=") == 8
    assert sum(text in section and caption in section for _, text, caption, _ in stored["captions"]) >= 8
    low, high = stored["figures"]["cider.ci"]
    assert f"{100 * stored['figures']['cider']:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in section
    write_captions(folder / "run", stored | {"checkpoint_step": 4})  # of another checkpoint
    again = write_report(folder / "run", tmp_path / "again.html", num_queries=6).read_text()
    assert '<section id="captions">' not in again
