"""Arrays of decoded pictures: the same batches as from records, with no TensorFlow, and in memory of the devices."""

import dataclasses
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from fbjax.cli.main import main
from fbjax.core.atomic_folder import fresh_folder
from fbjax.core.checksums import sha256
from fbjax.core.prefetch import prefetched
from fbjax.data.batches.sampler import Sampler
from fbjax.parallel.mesh import by_example, make_mesh, put_batch, put_rows
from fbjax.runs.splits import open_splits
from fbjax.runs.vocabulary import make_vocabulary
from fbjax.training import device_images
from fbjax.training.loop import train
from tests.support.runs import same, tiny_config, write_config
from tests.support.tables import make_products, write_parquet

NAMES = ("index", "group", "ids", "word_ids", "image", "negative")
WITHOUT_TENSORFLOW = """
import shutil, sys
import numpy as np
import fbjax
from fbjax.config.load import load_config
from fbjax.inference.catalogue.embed_catalogue import embed
from fbjax.training.loop import train

config, workdir = load_config(sys.argv[1], sys.argv[3:]), sys.argv[2]
train(config, workdir)
shutil.rmtree(f"{workdir}/checkpoints/12")
train(config, workdir)
figures = fbjax.evaluate(workdir, protocols=("candidates", "matching", "full"), num_queries=4)
assert figures["num_queries"] == 4 and figures["full"] and figures["matching"], figures
assert np.load(embed(workdir, f"{workdir}/vectors.npz"))["vectors"].shape == (24, 16)
model = fbjax.load(workdir)
pixels = np.zeros((40, 50, 3), np.uint8)
assert np.isfinite(model.score(["red dress", "blue bag"], [pixels, pixels + 9])).all()
wrong = [name for name in ("tensorflow", "tensorflow_datasets", "array_record") if name in sys.modules]
assert not wrong, wrong
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with tables, a config, records and arrays."""
    folder = tmp_path_factory.mktemp("arrays")
    tiny_config(folder)
    main(["prepare", "--config", str(folder / "tiny.py"), "--arrays", str(folder / "arrays")])
    return folder


def of_arrays(folder, *overrides):
    return tiny_config(folder, f"data.arrays={folder / 'arrays'}", *overrides)


def check_equal(batches, others):
    for ours, wanted in zip(batches, others, strict=True):
        for name in NAMES:
            array, expected = getattr(ours, name), getattr(wanted, name)
            np.testing.assert_array_equal(array, expected, err_msg=name)
            assert array.dtype == expected.dtype and type(array) is np.ndarray, name


@pytest.mark.parametrize("fit, column_dropout", [("squash", 0.0), ("pad", 0.5), ("foreground", 0.0)])
def test_batches_from_arrays_are_those_from_records(prepared, fit, column_dropout, capsys):
    arrays = prepared / f"arrays-{fit}"
    main(["prepare", "--config", str(prepared / "tiny.py"), "--arrays", str(arrays), f"--config.patches.fit={fit}"])
    assert ("of 48 pictures, which are read whole" in capsys.readouterr().out) == (fit == "foreground")
    config = tiny_config(prepared, f"patches.fit={fit}", f"train.column_dropout={column_dropout}")
    vocabulary = make_vocabulary(config, print)
    named = dataclasses.replace(config, data=dataclasses.replace(config.data, arrays=str(arrays)))
    records, found = (open_splits(c, vocabulary) for c in (config, named))
    assert found.keys() == records.keys() == {"train", "validation"}
    for split, expected in records.items():
        ours, rows = found[split], np.arange(len(expected))[::-1]
        for name in ("ids", "groups", "categories", "category_names", "num_pieces", "column_ends"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(expected, name), err_msg=name)
        assert (ours.digest, ours.name, ours.report()) == (expected.digest, expected.name, expected.report())
        assert ours.strings(rows) == expected.strings(rows)
        np.testing.assert_array_equal(ours.text_codes(), expected.text_codes())
        np.testing.assert_array_equal(
            ours.framed_texts(rows, vocabulary, 9), expected.framed_texts(rows, vocabulary, 9)
        )
        for batch, wanted in zip(ours.images(rows, 32, 7, fit), expected.images(rows, 32, 7, fit), strict=True):
            np.testing.assert_array_equal(batch, wanted)
    sampler = Sampler.of(records["train"], config.train, config.model, lambda step: 0.3)
    share = np.array([0, 1, 5])
    read = {"num_steps": 12, "image_size": 32, "with_negatives": True, "fit": fit, "start": 1, "share": share}
    batches = [list(splits["train"].train_batches(sampler, vocabulary, **read)) for splits in (found, records)]
    assert len(batches[0]) == 11  # two epochs of 48 products in batches of 8, the first batch left out
    check_equal(*batches)


def test_a_text_is_read_whole_or_as_one_of_its_columns(tmp_path):
    path, products = write_config(tmp_path), make_products(48)
    for number, product in enumerate(products):
        product["title"] = f"{product['title']}, no. {number}" if number % 4 != 3 else ""
        product["caption"] = product["caption"] if number % 4 != 1 else ""
    write_parquet(tmp_path / "train.parquet", products)
    main(["prepare", "--config", str(path), "--arrays", str(tmp_path / "arrays")])
    config = tiny_config(tmp_path, "train.column_dropout=.4")
    vocabulary = make_vocabulary(config, print)
    records, arrays = (open_splits(c, vocabulary)["train"] for c in (config, of_arrays(tmp_path)))
    sampler = Sampler.of(records, config.train, config.model, lambda step: 0.3)
    read = {"num_steps": 60, "image_size": 32, "with_negatives": True}
    batches = list(arrays.train_batches(sampler, vocabulary, **read))
    check_equal(batches, records.train_batches(sampler, vocabulary, **read))
    check_equal(batches[37:], arrays.train_batches(sampler, vocabulary, **read, start=37))
    alone = []
    for step, batch in enumerate(batches):
        assert batch.ids.shape[1] == sampler.text_tokens(step)
        for row, column, ids, word_ids in zip(
            batch.index, sampler.columns(step), batch.ids, batch.word_ids, strict=True
        ):
            texts = [products[row]["title"], products[row]["caption"]]
            text = " ".join(texts).strip() if column < 0 else texts[column]
            ((pieces, words),) = vocabulary.pieces([text])
            assert pieces and ids.tolist() == vocabulary.frame(pieces, len(ids)).tolist()
            assert word_ids[word_ids >= 0].tolist() == words[: len(ids) - 2]
            alone.append(column >= 0)
    assert np.mean(alone) == pytest.approx(0.4, abs=0.07)  # 480 texts: three deviations


@pytest.mark.slow
def test_a_run_without_tensorflow_ends_where_one_from_records_does(prepared, tmp_path, trains_on_one_device):
    tasks = ("tasks=itc,mlm,tia", "tasks.itc.embedding_dim=16")
    for name in ("tensorflow", "tensorflow_datasets", "array_record"):
        (tmp_path / "stubs" / name).mkdir(parents=True)
        (tmp_path / "stubs" / name / "__init__.py").write_text(f"raise ModuleNotFoundError('no {name}', name='{name}')")
    carried = shutil.copytree(prepared / "arrays", tmp_path / "arrays")
    paths = [str(tmp_path / "stubs"), str(Path(__file__).parents[2])]
    away = [f"data.{split}={tmp_path / split}.parquet" for split in ("train", "validation")]
    overrides = [f"data.arrays={carried}", f"data.prepared={tmp_path / 'none'}", *away, *tasks]
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    environment = {"PYTHONPATH": os.pathsep.join(paths), "XLA_FLAGS": flags}
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, prepared / "tiny.py", tmp_path / "run", *overrides]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resuming at step 8 of 12" in done.stderr
    expected = train(tiny_config(prepared, *tasks), tmp_path / "of-records")
    assert same(train(of_arrays(prepared, *tasks), tmp_path / "run"), expected)  # its last step, restored


def test_arrays_are_written_once_and_never_over_others(prepared, capsys):
    command = ["prepare", "--config", str(prepared / "tiny.py"), "--arrays", str(prepared / "arrays")]
    main(command)
    assert f"reusing: {prepared / 'arrays'}" in capsys.readouterr().out
    assert main([*command, "--config.patches.image_size=64"]) == 1
    assert "patches.image_size: 32 there, 64 now" in capsys.readouterr().err


def test_what_a_killed_process_left_is_cleared_away_and_what_a_living_one_writes_is_not(tmp_path):
    with subprocess.Popen(["true"]) as dead:
        pass
    begun = {pid: tmp_path / f".out.{socket.gethostname()}.{pid}.partial" for pid in (dead.pid, os.getppid())}
    for folder in begun.values():
        folder.mkdir()
    with fresh_folder("--out", tmp_path / "out") as partial:
        (partial / "file").write_text("")
    assert sorted(tmp_path.iterdir()) == sorted([begun[os.getppid()], tmp_path / "out"])


def test_no_room_on_the_disk_leaves_nothing(prepared, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert main(["prepare", "--config", str(prepared / "tiny.py"), "--arrays", str(tmp_path / "arrays")]) == 1
    assert "free some space" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "override, message",
    [
        ("patches.image_size=64", "patches.image_size: 32 in the arrays, 64 in the config"),
        ("patches.fit=pad", "patches.fit: 'squash' in the arrays, 'pad' in the config"),
        ("data.columns.text=title", r"data.columns.text: \['title', 'caption'\] in the arrays, \['title'\] in the"),
        ("model.vocabulary=train:300", "model.vocabulary 'train:200', the config says 'train:300'"),
        (
            "data.train={other}",
            r"data.train: the arrays are of train.parquet \(SHA-256 \w{12}..\), the config names other",
        ),
    ],
)
def test_arrays_of_something_else_are_refused_by_name(prepared, tmp_path, override, message):
    other = write_parquet(tmp_path / "other.parquet", make_products(8))
    with pytest.raises(ValueError, match=message):
        train(of_arrays(prepared, override.format(other=other)), tmp_path / "run")


def test_arrays_of_another_vocabulary_than_the_run_s_are_refused(prepared):
    config = tiny_config(prepared, "model.vocabulary=train:80")
    with pytest.raises(ValueError, match=r"data.arrays .* has a vocabulary of \d+ pieces \(\w+\), the run one of"):
        open_splits(of_arrays(prepared), make_vocabulary(config, print))


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("train/pictures.npy", lambda data: data[:-1], "train/pictures.npy is not the file that was written"),
        ("train/pieces.npy", lambda data: data[:-1] + b"x", "train/pieces.npy is not the file that was written"),
        ("manifest.json", lambda data: b"{}", "is no manifest of arrays"),
        ("manifest.json", lambda data: data.replace(b'"version": 3', b'"version": 2'), "version 2; this reads"),
    ],
)
def test_a_damaged_folder_is_named(prepared, tmp_path, name, change, message):
    folder = shutil.copytree(prepared / "arrays", tmp_path / "arrays")
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    config = of_arrays(prepared)
    with pytest.raises(ValueError, match=message):
        make_vocabulary(dataclasses.replace(config, data=dataclasses.replace(config.data, arrays=str(folder))), print)


def test_a_manifest_says_what_the_arrays_are(prepared):
    content = json.loads((prepared / "arrays" / "manifest.json").read_text())
    assert content["splits"]["train"]["products"] == 48 and content["report"]["splits"]["train"] == 48
    assert content["tables"]["train"] == [["train.parquet", sha256(prepared / "train.parquet")]]
    assert np.load(prepared / "arrays" / "train" / "pictures.npy", mmap_mode="r").shape == (48, 32, 32, 3)


@pytest.mark.parametrize(
    "mesh, cached",
    [
        pytest.param("mesh.data=-1", False, id="pictures"),
        pytest.param("mesh.fsdp=4", True, id="cached", marks=pytest.mark.slow),
    ],
)
def test_images_on_the_devices_change_no_bit(prepared, tmp_path, mesh, cached):
    few = ("train.num_steps=4", "train.save_every=4", "model.num_layers=1", mesh)
    few += ("patches.mode=cached",) if cached else ()
    there = tiny_config(prepared, "data.on_device=true", *few) if cached else None
    there = there or of_arrays(prepared, "data.on_device=true", *few)
    expected = train(tiny_config(prepared, *few), tmp_path / "host")
    assert same(train(there, tmp_path / "devices"), expected)


def test_one_device_gets_no_copy_of_the_others_images():
    mesh = make_mesh(tiny_mesh())
    images = np.random.default_rng(0).integers(0, 256, (4090, 8, 8, 3)).astype(np.uint8)
    rows = put_batch(np.arange(64, dtype=np.int32) * 63, mesh)
    placed = put_rows(images, mesh)
    assert placed.shape == (4096, 8, 8, 3) and len(placed.addressable_shards[0].data) == 512
    look_up = jax.jit(lambda pictures, rows: pictures[rows], out_shardings=by_example(mesh)).lower(placed, rows)
    compiled = look_up.compile()
    np.testing.assert_array_equal(np.asarray(compiled(placed, rows)), images[np.asarray(rows)])
    assert compiled.memory_analysis().temp_size_in_bytes < images.nbytes / 8


def tiny_mesh():
    from fbjax.config.schema import MeshConfig

    return MeshConfig()


def test_images_that_do_not_fit_the_devices_are_an_error_before_the_first_step(prepared, tmp_path, monkeypatch):
    check, asked = device_images._check_room, []

    class Small:
        def memory_stats(self):
            asked.append(self)
            return {"bytes_limit": 20_000, "bytes_in_use": 5_000}

    monkeypatch.setattr(device_images, "_check_room", lambda device, *others: check(Small(), *others))
    with pytest.raises(ValueError, match=r"data.on_device: uint8 \[48, 32, 32, 3\] takes 0.00 GiB of each device"):
        train(of_arrays(prepared, "data.on_device=true"), tmp_path / "run")
    assert asked


def test_on_device_needs_something_to_put_there(tmp_path):
    with pytest.raises(ValueError, match="data.on_device true needs data.arrays, or patches.mode 'cached'"):
        tiny_config(tmp_path, "data.on_device=true")


def test_work_ahead_keeps_its_order_and_ends_with_its_reader():
    def make(number):
        if number == 5:
            raise ValueError("five")
        return number * number

    ahead = prefetched(make, range(9), 3)
    assert [next(ahead) for _ in range(5)] == [0, 1, 4, 9, 16]
    with pytest.raises(ValueError, match="five"):
        next(ahead)
    ahead = prefetched(make, range(100, 10**9), 3)
    assert next(ahead) == 10_000
    ahead.close()
    assert not any(thread.name.startswith("prefetch") for thread in threading.enumerate())
