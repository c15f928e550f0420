"""Vectors of whole catalogues: in every form, in shards, on any devices, and after a kill in the middle."""

import subprocess
import sys
from functools import partial
from unittest.mock import Mock

import jax
import numpy as np
import pyarrow.parquet
import pytest
from filelock import FileLock

import fbjax
from fbjax.cli.main import main
from fbjax.inference.catalogue.embed_catalogue import embed
from fbjax.inference.catalogue.unfinished import Unfinished
from fbjax.inference.embedder import UNITS, Embedder
from fbjax.runs.feature_cache import features_of, ready_features
from fbjax.runs.loaded import LoadedRun
from tests.support.runs import make_one_device_mesh, tiny_config
from tests.support.tables import encode, make_products, write_parquet
from tests.support.untrained import write_untrained

SETTINGS = ("tasks=itc", "tasks.itc.embedding_dim=16", "model.num_layers=1", "patches.mode=cached")
KILLED = """
import os, signal, sys
from fbjax.inference import embedder
from fbjax.inference.catalogue import embed_catalogue, unfinished
embedder.CPU_ROWS, unfinished.FLUSH_SECONDS = 8, 0
add, batches = unfinished.Unfinished.add, []
def add_and_die(self, rows, found):
    add(self, rows, found)
    batches.append(rows)
    if len(batches) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
unfinished.Unfinished.add = add_and_die
embed_catalogue.embed(sys.argv[1], sys.argv[2], units=("text", "product"), split="all")
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of two towers with random parameters over 48 + 24 products."""
    folder = tmp_path_factory.mktemp("embed")
    return write_untrained(tiny_config(folder, *SETTINGS), folder / "run")


@pytest.fixture
def small_batches(monkeypatch):
    """Of 8 products, each of which is kept on the disk."""
    monkeypatch.setattr("fbjax.inference.embedder.CPU_ROWS", 8)
    monkeypatch.setattr("fbjax.inference.catalogue.unfinished.FLUSH_SECONDS", 0)


@pytest.fixture
def computed(monkeypatch):
    """The rows of all batches that are computed."""
    rows, vectors = [], Embedder.vectors

    def noted(self, variables, batches, units):
        for places, found in vectors(self, variables, batches, units):
            rows.extend(places)
            yield places, found

    monkeypatch.setattr(Embedder, "vectors", noted)
    return rows


def read(path):
    """Ids, and the vectors of each unit, of several units, in any form."""
    if path.suffix == ".npz":
        arrays = np.load(path)
        return arrays["ids"].tolist(), {unit: arrays[f"{unit}_vectors"] for unit in str(arrays["what"]).split(",")}
    if path.suffix == ".parquet":
        table = pyarrow.parquet.read_table(path)
        lists = {name.removesuffix("_vector"): table[name].to_pylist() for name in table.column_names[1:]}
        return table["id"].to_pylist(), {unit: np.array(vectors, np.float32) for unit, vectors in lists.items()}
    units = [file.stem for file in path.glob("*.npy") if file.stem != "ids"]
    return np.load(path / "ids.npy").tolist(), {unit: np.load(path / f"{unit}.npy", mmap_mode="r") for unit in units}


def check_same(found, expected, atol=0.0):
    assert found[0] == expected[0] and sorted(found[1]) == sorted(expected[1])
    for unit, vectors in expected[1].items():
        np.testing.assert_allclose(found[1][unit], vectors, atol=atol, err_msg=unit)


def interrupt_after(batches, monkeypatch):
    """Makes the next command that embeds stop after so many batches."""
    add, added = Unfinished.add, []

    def add_and_stop(self, rows, found):
        if len(added) == batches:
            raise KeyboardInterrupt
        added.append(rows)
        add(self, rows, found)

    monkeypatch.setattr(Unfinished, "add", add_and_stop)


def test_a_catalogue_s_vectors_are_those_of_the_python_interface(workdir, tmp_path, capfd):
    products = make_products(9, seed=4)
    table = write_parquet(tmp_path / "shop.parquet", [*products, {**products[0], "id": "broken", "image": None}])
    model = fbjax.load(workdir)
    texts = [f"{p['title']} {p['caption']}" for p in products]
    images = [encode(p["image"], p["format"]) for p in products]
    vectors = model.embed_text(texts), model.embed_image(images), model.embed_product(texts, images)
    expected = [p["id"] for p in products], dict(zip(UNITS, vectors, strict=True))
    request = ["embed", "--workdir", str(workdir), "--data", str(table)]
    for name in ("all.npz", "all.parquet", "all"):
        assert main([*request, "--what", "image,text,product", "--out", str(tmp_path / name)]) == 0
        assert capfd.readouterr().out == f"vectors: {tmp_path / name}\n"
        check_same(read(tmp_path / name), expected, atol=1e-5)
    for name in ("one.npz", "one.parquet"):
        assert main([*request, "--out", str(tmp_path / name)]) == 0
    written, one = np.load(tmp_path / "one.npz"), pyarrow.parquet.read_table(tmp_path / "one.parquet")
    assert written["ids"].tolist() == one["id"].to_pylist() == expected[0] and str(written["what"]) == "product"
    assert int(written["checkpoint_step"]) == model.step and written["vectors"].dtype == np.float32
    np.testing.assert_allclose(written["vectors"], vectors[2], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(written["vectors"], axis=1), 1, rtol=1e-5)
    assert one.schema.field("vector").type == pyarrow.list_(pyarrow.float32(), 16)
    np.testing.assert_array_equal(one["vector"].to_pylist(), written["vectors"])
    said = capfd.readouterr().err
    assert "9 product vectors of 16 numbers" in said and "skipped when prepared: 1 " in said
    np.testing.assert_allclose(  # the match score is the cosine of text and image
        model.score(texts, images), (expected[1]["text"] * expected[1]["image"]).sum(axis=1), atol=1e-5
    )
    assert model.embed_text([]).shape == model.embed_image([]).shape == model.embed_product([], []).shape == (0, 16)
    with pytest.raises(ValueError, match="as many texts as images; got 1 and 2"):
        model.embed_product(texts[:1], images[:2])


def test_neither_devices_nor_shards_nor_cached_features_change_a_vector(workdir, tmp_path, monkeypatch):
    """Cached features are rounded to float16, so that there vectors differ by that."""
    whole = read(embed(workdir, tmp_path / "eight.npz", units=UNITS, split="all"))
    loaded = LoadedRun.load(workdir)
    assert len(jax.devices()) == loaded.mesh.size == 8
    assert whole[0] == [str(x) for name in ("train", "validation") for x in loaded.records(split=name).ids]
    monkeypatch.setattr("fbjax.runs.loaded.make_mesh", lambda config: make_one_device_mesh())
    monkeypatch.setattr("fbjax.inference.embedder.CPU_ROWS", 5)
    check_same(read(embed(workdir, tmp_path / "one.npz", units=UNITS, split="all")), whole, atol=2e-6)
    for part in range(5):
        embed(workdir, tmp_path / "v.parquet", units=UNITS, split="all", shard=f"{part}/5")
    names = sorted(path.name for path in tmp_path.glob("v-*"))
    assert names == [f"v-{part:05d}-of-00005.parquet" for part in range(5)]
    for name in ("one.npz", "eight.npz"):
        (tmp_path / name).unlink()
    table = pyarrow.parquet.read_table(tmp_path)  # a folder of shards, in the order of their names
    assert table["id"].to_pylist() == whole[0]
    for unit, vectors in whole[1].items():
        np.testing.assert_allclose(table[f"{unit}_vector"].to_pylist(), vectors, atol=2e-6)
    for records in map(partial(loaded.records, None), ("train", "validation")):
        assert ready_features(loaded.run, records) is None and features_of(loaded.run, records) is not None
    cached = read(embed(workdir, tmp_path / "cached.npz", units=UNITS, split="all"))
    check_same(cached, whole, atol=1e-3)
    assert np.abs(cached[1]["image"] - whole[1]["image"]).max() > 2e-6


def test_a_killed_command_goes_on_where_it_was(workdir, tmp_path, small_batches, computed, capfd):
    expected = read(embed(workdir, tmp_path / "at_once.npz", units=("text", "product"), split="all"))
    out = tmp_path / "v.npz"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(workdir), str(out)], capture_output=True, text=True)
    assert killed.returncode == -9 and not out.exists(), killed.stderr
    done = int((tmp_path / ".v.npz.unfinished" / "done").read_text())
    assert 8 < done <= 24
    computed.clear()
    check_same(read(embed(workdir, out, units=("text", "product"), split="all")), expected, atol=2e-6)
    assert len(computed) == 72 - done and f"; {done} were there from an earlier command" in capfd.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["at_once.npz", "v.npz"]
    before = out.stat().st_mtime_ns
    assert embed(workdir, out, units=("text", "product"), split="all") == out
    assert out.stat().st_mtime_ns == before and "holds these 72 text and product vectors" in capfd.readouterr().err


@pytest.mark.parametrize("changed", ["units", "table", "checkpoint"])
def test_work_of_another_request_is_not_mixed_in(workdir, tmp_path, small_batches, monkeypatch, changed):
    products = make_products(24, seed=5)
    table = write_parquet(tmp_path / "shop.parquet", products)
    first = {"workdir": workdir, "data": str(table), "units": ("text",)}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(2, patch)
        embed(**first, out=tmp_path / "v")
    assert (tmp_path / ".v.unfinished" / "done").read_text() == "16"
    second = dict(first)
    if changed == "units":
        second["units"] = ("product", "text")
    elif changed == "table":
        write_parquet(table, [p | {"title": "another " + p["title"]} for p in products])
    elif changed == "checkpoint":
        second["workdir"] = write_untrained(tiny_config(workdir.parent, *SETTINGS), tmp_path / "other", seed=1)
    check_same(read(embed(**second, out=tmp_path / "v")), read(embed(**second, out=tmp_path / "fresh")))


def test_a_full_disk_and_a_second_command_are_said_with_the_remedy(workdir, small_disk, small_batches, monkeypatch):
    room = small_disk / "other"
    room.write_bytes(bytes(2**21 - 2**12))
    out = small_disk / "v.parquet"
    with pytest.raises(OSError, match="no space left for .*v.parquet .*free some and run the same command again"):
        embed(workdir, out)
    room.write_bytes(b"")
    assert not list(small_disk.glob("*.parquet"))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left for .*v.parquet"):
        patch.setattr(
            "fbjax.inference.catalogue.unfinished.write_file", Mock(side_effect=OSError(28, "No space left on device"))
        )
        embed(workdir, out)
    home = small_disk / ".v.parquet.unfinished"
    assert (home / "done").read_text() == "24"
    with FileLock(home / "lock"), pytest.raises(ValueError, match="another command writes .*: wait for its end"):
        embed(workdir, out)
    embed(workdir, out)
    assert pyarrow.parquet.read_table(out).num_rows == 24 and not home.exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"units": ("text", "video")}, "--what 'video' is unknown"),
        ({"units": ("text", "text")}, "--what 'text,text': name each of text, image, product at most once"),
        ({"units": ()}, "--what '': name each"),
        ({"out": "v.npy"}, "--out v.npy: give FILE.parquet, FILE.npz, or a folder"),
        ({"data": "t.csv", "split": "train"}, "leave --split train out"),
        ({"shard": "4/4"}, "--shard '4/4': give I/N with I from 0 to N - 1"),
        ({"shard": "-1/4"}, "--shard '-1/4': give I/N"),
        ({"shard": "a quarter"}, "--shard 'a quarter': give I/N"),
    ],
)
def test_a_wrong_request_for_vectors_is_said_before_any_work(arguments, message):
    with pytest.raises(ValueError, match=message):
        embed("nowhere", arguments.pop("out", "v.npz"), **arguments)


def test_a_request_that_does_not_fit_the_catalogue_is_refused(workdir, tmp_path):
    with pytest.raises(ValueError, match="--shard 2/99: there are only 24 products; use at most 24 shards"):
        embed(workdir, tmp_path / "v.npz", shard="2/99")
    embed(workdir, tmp_path / "v", units=("text",))
    with pytest.raises(FileExistsError, match="is not empty: give a new or empty folder"):
        embed(workdir, tmp_path / "v", units=("image",))
    assert [path.name for path in tmp_path.iterdir()] == ["v"]
