"""Masks that follow a run's alignment: which links that gives, how they are kept, and what is refused."""

import shutil

import numpy as np
import pytest

from fbjax.inference.catalogue.links import FILE, check_guide, mask_links, word_links
from fbjax.inference.explain import explain
from fbjax.inference.model import Model
from fbjax.runs.loaded import LoadedRun
from fbjax.tasks.alignment.guide import NO_LINK
from fbjax.training.loop import train
from tests.support.runs import same, tiny_config, without_steps_after
from tests.support.tables import make_products, write_parquet

pytestmark = pytest.mark.slow  # whole trainings

FEW = ("train.num_steps=4", "train.save_every=2", "model.num_layers=1", "adaptive.method=fixed")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, trains_on_one_device):
    """A folder with a run that aligns, and one whose masks it guides."""
    folder = tmp_path_factory.mktemp("guided")
    train(tiny_config(folder, *FEW, "tasks=tia,tpa"), folder / "alignment")
    train(guided(folder), folder / "guided")
    return folder


def guided(folder, *more, by="alignment"):
    return tiny_config(folder, *FEW, "tasks=mlm,mpm,tia", f"train.guided_masks={folder / by}", *more)


def test_a_word_goes_to_the_patch_that_the_explanation_of_its_alignment_gives_most(runs):
    loaded = LoadedRun.load(runs / "alignment", 4)
    records = loaded.records(split="train")
    rows = np.array([5, 0, 40])
    links = word_links(loaded, records, rows)
    model = Model.load(runs / "alignment", 4)
    pieces = list(records.pieces(rows))
    for product, row, (_, words) in zip(records.products(rows), links, pieces, strict=True):
        found = explain(model, product.text, product.image, "alignment")
        shares = np.asarray(found.word_patches).reshape(len(found.words), -1)
        values = np.array([value for _, value in found.words])
        kept = words[: len(row) - 2]
        assert (row[1 + len(kept) :] == NO_LINK).all() and row[0] == NO_LINK
        for token, word in enumerate(kept, start=1):
            if abs(values[word] - values.mean()) > 1e-4:
                expected = shares[word].argmax() if values[word] > values.mean() else NO_LINK
                assert row[token] in (expected, *np.flatnonzero(shares[word] > shares[word].max() - 1e-5))


def test_links_are_kept_and_the_run_goes_on_with_them_bit_for_bit(runs, tmp_path):
    killed = without_steps_after(runs / "guided", 2, tmp_path / "killed")
    config = LoadedRun.load(killed).run.config
    hidden = runs / "alignment-elsewhere"
    (runs / "alignment").rename(hidden)
    try:
        train(config, killed)
    finally:
        hidden.rename(runs / "alignment")
    assert same(LoadedRun.load(killed, 4).params, LoadedRun.load(runs / "guided", 4).params)
    train(guided(runs, "train.guided_masks="), tmp_path / "random")
    assert not same(LoadedRun.load(tmp_path / "random", 4).params, LoadedRun.load(runs / "guided", 4).params)


@pytest.mark.parametrize(
    "by, more, message",
    [
        ("guided", (), "has no task that aligns words with patches"),
        ("alignment", ("model.text_tokens=12",), "reads texts of .* tokens, and this run of 12"),
        ("alignment", ("patches.fit=pad",), "reads pictures by patches.fit 'squash', and this run by 'pad'"),
        ("nowhere", (), "nowhere"),
    ],
)
def test_another_guide_is_refused_before_anything_is_trained(runs, tmp_path, by, more, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(guided(runs, *more, by=by), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_links_of_other_products_or_texts_are_refused(runs, tmp_path):
    other = tmp_path / "other.parquet"
    write_parquet(other, make_products(48, seed=3))
    with pytest.raises(ValueError, match="has another vocabulary"):
        train(guided(runs, f"data.train={other}"), tmp_path / "run")
    vocabulary = f"model.vocabulary={runs / 'alignment/tokenizer.json'}"
    with pytest.raises(ValueError, match="was trained on another table"):
        train(guided(runs, f"data.train={other}", vocabulary), tmp_path / "other")
    shutil.copytree(runs / "guided", tmp_path / "copied")
    loaded = LoadedRun.load(tmp_path / "copied")
    records = loaded.records(split="train")
    rows = np.arange(len(records))
    assert check_guide(loaded.run, tmp_path / "copied", loaded.mesh) is None
    links = mask_links(None, loaded.run, records, rows, tmp_path / "copied")
    assert links.shape[0] == 48 and NO_LINK < links.max() < loaded.run.model.spec.num_patches
    with np.load(tmp_path / "copied" / FILE) as arrays:
        there = dict(arrays)
    np.savez(tmp_path / "copied" / FILE, **there | {"vocabulary": "another"})
    with pytest.raises(ValueError, match="holds links of another vocabulary .delete it"):
        mask_links(None, loaded.run, records, rows, tmp_path / "copied")
    np.savez(tmp_path / "copied" / FILE, **there | {"links": there["links"][:, :-1]})
    with pytest.raises(ValueError, match="holds links of another shape"):
        mask_links(None, loaded.run, records, rows, tmp_path / "copied")
