"""Beam's workers against one process: the same records in the same order, the same index, the same rows skipped."""

import dataclasses
import functools
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds

from fbjax.cli.main import main
from fbjax.config.data import Columns, DataConfig
from fbjax.core.paths import as_path
from fbjax.data.records import beam
from fbjax.data.records.beam import BeamBuilder, parse_options
from fbjax.data.records.builder import build_records, is_prepared
from fbjax.data.sources import fashiongen, release
from fbjax.data.sources import tables as table_source
from fbjax.data.sources.base import open_source
from fbjax.data.sources.image_folder import ImageFolder, read_image_file
from fbjax.data.sources.readers import hdf5
from fbjax.data.text.wordpiece import Vocabulary
from fbjax.runs.feature_cache import cached_features
from tests.support import release_files, store
from tests.support.photos import make_rows
from tests.support.tables import encode, make_products, write_csv, write_jsonl, write_parquet

PRODUCTS = make_products(40)
MAPPED = Columns(text=("title", "caption"), group="group")
PHOTOS = Columns("photo", ("input_description",), "input_image", "input_subcategory", "input_productID")
VOCABULARY = Vocabulary.train([f"{p['title']} {p['caption']} robe d'été n° façon café 0 1 2 3" for p in PRODUCTS], 200)


def product(number, **cells):
    return {**PRODUCTS[number], **cells}


@pytest.fixture
def small_pieces(monkeypatch):
    """Files are cut, notes written and records sharded as if there were many more."""
    monkeypatch.setattr(table_source, "ROWS_AT_ONCE", 3)
    monkeypatch.setattr(hdf5, "ROWS_A_BLOCK", 3)
    monkeypatch.setattr(release, "LINES_AT_ONCE", 7)
    monkeypatch.setattr(beam, "ROWS_A_NOTE", 5)
    monkeypatch.setattr(tfds.download, "DownloadConfig", functools.partial(tfds.download.DownloadConfig, num_shards=3))


def source_of(train, validation="", columns=MAPPED, size=64, **settings):
    data = DataConfig(train=str(train), validation=str(validation), columns=columns, **{"holdout": 0.0} | settings)
    return open_source(data, size)


def write_train(folder):
    """Three files of three forms, with rows of every kind that is refused, and a product of five rows."""
    folder.mkdir(exist_ok=True)
    without_end = product(3, image=encode(PRODUCTS[3]["image"])[:-12])
    rows = [
        *PRODUCTS[:3],
        without_end,
        product(4, image=b"no image"),
        product(5, image="images/nowhere.png"),
        product(0),
    ]
    rows += [product(6, title="\u200b", caption=""), product(7, category=None), product(8, id=None), PRODUCTS[9]]
    rows += [product(9, title="", caption="", image=PRODUCTS[10]["image"]), *[product(9, title="", image=None)] * 3]
    rows += [product(10, title="", caption=""), product(11, id="twin", image=b"no image"), PRODUCTS[12]]
    write_csv(folder / "train-1.csv", rows)
    again = product(13, id=PRODUCTS[2]["id"], group="only of a duplicate")
    table = write_jsonl(folder / "train-2.jsonl", [again, product(14, id="twin"), *PRODUCTS[15:20], product(20, id="")])
    table.write_text(table.read_text() + "{not json\n")
    embedded = [product(21, image={"bytes": b"no image", "path": None}), PRODUCTS[19], *PRODUCTS[22:28]]
    path = write_parquet(folder / "train-3.parquet", embedded)
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(path), path, row_group_size=3)
    return folder / "train-*"


def write_validation(folder):
    """Some of it belongs to groups of train, or has train's ids, or the group of a row that train has refused."""
    rows = [product(28, group="new"), product(29, group=PRODUCTS[0]["group"]), product(30, group="only of a duplicate")]
    rows += [product(0, group="newer"), product(31, group=PRODUCTS[4]["group"]), product(28, group="new")]
    rows += [product(32, group="newest", category=""), product(33, group="newest")]
    rows = [{**row, "image": encode(row["image"], row["format"])} for row in rows]
    return write_parquet(folder / "validation.parquet", rows)


def tables(folder, holdout=0.0):
    return source_of(write_train(folder), "" if holdout else write_validation(folder), holdout=holdout)


def photos(folder):
    rows = list(make_rows(4))
    rows[1]["input_description"], rows[7] = " ", rows[6]
    train, validation = folder / "train.h5", folder / "validation.h5"
    fashiongen.write(train, rows, len(rows), 16)
    fashiongen.write(validation, make_rows(3, first=3), 9, 16)
    return source_of(train, validation, PHOTOS, 32)


def pairs(folder):
    rows = list(release_files.training_rows(20))
    rows[2]["image_feature"][2, 5] = np.nan
    rows[8]["image_feature"][0, 0] = np.nan
    rows.append(rows[0])
    path = release.write(folder / "train.tsv", rows, release.TRAINING)
    path.write_text(path.read_text().replace("\n", "\n\n", 3))
    return source_of(path, holdout=0.4, source="release", num_patches=4, feature_size=6)


def content(splits):
    """Everything that preparation leaves, but for how records are divided into files and how long it took."""
    home = Path(splits["train"].files[0]).parent
    left = {split: (records.digest, records.name, decoded(records)) for split, records in splits.items()}
    for split in splits:
        with np.load(home / f"index-{split}.npz") as index:
            left[f"{split} index"] = {name: (index[name].dtype, index[name].tolist()) for name in index.files}
    report = splits["train"].report() | {"seconds": None}
    return left | {"report": list(report.items()), "skipped": (home / "skipped.jsonl").read_text()}


def decoded(records):
    decoders = {"image": tfds.decode.SkipDecoding()} if "image" in records.features else None
    examples = [records.features.deserialize_example(x, decoders=decoders) for x in records.open()(range(len(records)))]
    return [{name: np.asarray(value).tolist() for name, value in example.items()} for example in examples]


def prepare_with(source, vocabulary, folder, flags=None):
    by = functools.partial(BeamBuilder, options=parse_options(flags)) if flags is not None else None
    return build_records(source, vocabulary, folder, lambda rows, total, label: rows, by)


@pytest.mark.parametrize(
    "write",
    [tables, functools.partial(tables, holdout=0.4), photos, pairs],
    ids=["tables", "holdout", "photos", "pairs"],
)
def test_workers_make_what_one_process_makes(tmp_path, small_pieces, write):
    vocabulary = VOCABULARY
    if write is pairs:
        vocabulary = Vocabulary.from_file(release_files.write_vocabulary(tmp_path / "vocab.txt"))
    source = write(tmp_path)
    by_one = prepare_with(source, vocabulary, tmp_path / "one")
    by_workers = prepare_with(source, vocabulary, tmp_path / "workers", "")
    assert content(by_workers) == content(by_one)
    assert len(by_workers["train"].files) > 1 and len(by_one["train"].report()["skipped"]) > 1
    there = {path.name for path in Path(by_workers["train"].files[0]).parent.iterdir()}
    assert there - {Path(file).name for records in by_workers.values() for file in records.files} == {
        path.name for path in Path(by_one["train"].files[0]).parent.iterdir() if ".array_record" not in path.name
    }
    found = prepare_with(source, vocabulary, tmp_path / "workers")  # what one made the other finds
    assert found["train"].files == by_workers["train"].files


@pytest.mark.slow
def test_workers_in_processes_of_their_own_make_the_same(tmp_path):
    source = tables(tmp_path)
    by_workers = prepare_with(source, VOCABULARY, tmp_path / "workers", "--direct_num_workers=2")
    assert content(by_workers) == content(prepare_with(source, VOCABULARY, tmp_path / "one"))


@pytest.mark.parametrize("flags", [None, ""], ids=["one", "workers"])
def test_tables_images_and_records_may_lie_in_a_store(tmp_path, small_pieces, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    here = tables(tmp_path / "bucket", holdout=0.4)
    expected = content(prepare_with(here, VOCABULARY, tmp_path / "here"))
    store.install(monkeypatch, tmp_path)
    there = source_of("gs://bucket/train-*", holdout=0.4)
    assert not is_prepared(there, VOCABULARY, "gs://bucket/prepared")
    stored = prepare_with(there, VOCABULARY, "gs://bucket/prepared", flags)
    assert is_prepared(there, VOCABULARY, "gs://bucket/prepared")
    assert {path.name for path in tmp_path.iterdir()} == {"bucket", "here"}  # nothing went to a folder named gs:
    assert all(file.startswith("gs://bucket/prepared/catalogue/") for file in stored["train"].files)
    here = {k: dataclasses.replace(v, files=tuple(str(tmp_path / f[5:]) for f in v.files)) for k, v in stored.items()}
    found = content(here)  # read from the folder that the store is: ArrayRecord asks gs:// by itself
    assert {k: v for k, v in found.items() if k not in stored} == {k: v for k, v in expected.items() if k not in stored}
    assert [found[k][2] for k in stored] == [expected[k][2] for k in stored]


def test_an_image_folder_in_a_store_holds_what_lies_below_it(tmp_path, monkeypatch):
    for name in ("shop/deep/a.png", "b.png"):
        (tmp_path / "bucket" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "bucket" / name).write_bytes(b"picture")
    store.install(monkeypatch, tmp_path)
    shop = as_path("gs://bucket/shop")
    assert read_image_file(ImageFolder(shop).find("deep/../deep/a.png")) == b"picture"
    for name in ("../b.png", "deep/../../b.png", str(tmp_path / "bucket/b.png")):
        with pytest.raises(ValueError, match="outside data.image_root"):
            ImageFolder(shop).find(name)
        assert read_image_file(ImageFolder(shop, outside=True).find(name)) == b"picture"


def test_what_cannot_lie_in_a_store_says_so(tmp_path):
    with pytest.raises(ValueError, match="memory-mapped: config.data.prepared gs://bucket must be a local folder"):
        cached_features(None, None, 64, "gs://bucket", None)
    table = write_parquet(tmp_path / "table.parquet", PRODUCTS[:4])
    records = prepare_with(source_of(table), VOCABULARY, tmp_path / "prepared")["train"]
    with pytest.raises(ValueError, match="s3://bucket: ArrayRecord reads no s3://"):  # it would find it empty
        dataclasses.replace(records, files=("s3://bucket/catalogue-train.array_record-00000-of-00001",)).open()


def test_a_worker_s_failure_is_said_in_a_line_and_leaves_nothing_prepared(tmp_path):
    table = write_parquet(tmp_path / "table.parquet", PRODUCTS)
    source = source_of(table, holdout=0.2)
    spoiled = bytearray(table.read_bytes())
    spoiled[200:2000] = bytes(1800)  # within the first column: the file opens, its rows do not
    table.write_bytes(spoiled)
    with pytest.raises(ValueError, match="preparing with Beam failed: .*table.parquet is not a readable Parquet file"):
        prepare_with(source, VOCABULARY, tmp_path / "prepared", "")
    assert not is_prepared(source, VOCABULARY, tmp_path / "prepared")
    assert not [path for path in (tmp_path / "prepared").rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_split_without_anything_usable_is_named(tmp_path):
    table = write_csv(tmp_path / "table.csv", [product(0), product(1, image="nowhere.png")])
    bad = write_csv(tmp_path / "bad.csv", [product(2, image="nowhere.png")])
    source = source_of(table, bad)
    with pytest.raises(ValueError, match="nothing usable for split validation: fbjax prepare --check"):
        prepare_with(source, VOCABULARY, tmp_path / "prepared", "")


@pytest.mark.parametrize(
    "flags, says",
    [
        ("--runner=Nowhere", "Unexpected pipeline runner: Nowhere"),
        ("--direct_num_workers=two", "direct_num_workers: invalid int value: 'two'"),
        ("--direct_num_worker=2", "unknown to Beam: --direct_num_worker"),
        ("DirectRunner", "these are no flags"),
    ],
)
def test_options_that_beam_would_drop_or_not_understand_are_refused(flags, says):
    with pytest.raises(ValueError, match=f"--beam-options.*{says}"):
        parse_options(flags)


def test_several_local_workers_are_processes_unless_it_says_otherwise():
    modes = [parse_options(f).get_all_options()["direct_running_mode"] for f in ("", "--direct_num_workers=2")]
    assert modes == ["in_memory", "multi_processing"]
    threads = parse_options("--direct_num_workers=2 --direct_running_mode=multi_threading")
    assert threads.get_all_options()["direct_running_mode"] == "multi_threading"


def test_without_beam_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "fbjax.data.records.beam")
    table = ["--config", "configs/my_fashionbert.py", "--config.data.train=nowhere.csv"]
    assert main(["prepare", *table, "--beam"]) == 1
    assert capsys.readouterr().err.strip().endswith("pip install 'fbjax[beam]'")
    assert main(["prepare", *table, "--beam_options=--runner=DirectRunner"]) == 1
    assert "needs --beam" in capsys.readouterr().err
