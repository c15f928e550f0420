"""A data source from outside: registered here, found by its name, and read as the project's own are."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from fbjax.config.data import DataConfig
from fbjax.config.schema import Config, ModelConfig, PatchConfig
from fbjax.data.arrays.reader import open_arrays, read_vocabulary
from fbjax.data.arrays.writer import write_arrays
from fbjax.data.records.builder import build_records
from fbjax.data.sources.base import SOURCES, DataSource, Part, Product, Skipped, open_source
from fbjax.data.text.wordpiece import Vocabulary
from fbjax.runs.feature_cache import features_of

P, C = 3, 2


@SOURCES.register("test lines")
class Lines(DataSource):
    """Lines "id text", each a part; a product's features are P x C times its line's number."""

    gives_features = True

    def check(self, vocabulary):
        self.files()

    def texts(self):
        return (line.partition(" ")[2] for file in self.files()["train"] for line in file.read_text().splitlines())

    def cut(self, file, vocabulary):
        yield from (Part(file, n, line) for n, line in enumerate(file.read_text().splitlines(), start=1))

    def described(self, part, vocabulary, images=True):
        identity, _, text = part.rows.partition(" ")
        where = f"{part.file.name} line {part.first}"
        if not text:
            yield part.first, Skipped(where, identity, "no text"), None
            return
        found = Product(identity, text, "a category", identity, b"", where)
        yield part.first, found, lambda: dataclasses.replace(found, image=np.full((P, C), part.first, np.float16))


@pytest.fixture
def data(tmp_path):
    (tmp_path / "lines.txt").write_text("a red dress\nb\nc blue shirt\na red dress again\nd green hat\n")
    return DataConfig("test lines", str(tmp_path / "lines.txt"), holdout=0.0, num_patches=P, feature_size=C)


def test_records_are_made_of_a_source_that_is_registered_elsewhere(data, tmp_path):
    source = open_source(data, 32)
    vocabulary = Vocabulary.train(source.texts(), 60)
    records = build_records(source, vocabulary, tmp_path / "prepared", lambda rows, total, label: rows)["train"]
    assert records.ids.tolist() == ["a", "c", "d"]
    assert records.report()["skipped"] == {"no text": 1, "duplicate id": 1}
    assert [product.text for product in records.products(range(3))] == ["red dress", "blue shirt", "green hat"]
    (features,) = records.images(np.arange(3), 32, 3)
    np.testing.assert_array_equal(features, np.broadcast_to([[[1]], [[3]], [[5]]], (3, P, C)))
    skipped = [json.loads(line) for line in (records.home / "skipped.jsonl").read_text().splitlines()]
    assert [row["where"] for row in skipped] == ["lines.txt line 2", "lines.txt line 4"]


def test_features_of_a_source_are_written_as_arrays_and_read_as_they_are(data, tmp_path):
    config = Config(data=data, patches=PatchConfig(mode="cached"), model=ModelConfig(vocabulary="train:60"))
    vocabulary = Vocabulary.train(open_source(data, 32).texts(), 60)
    records = build_records(open_source(data, 32), vocabulary, tmp_path / "prepared", lambda rows, total, label: rows)
    assert write_arrays(config, records, vocabulary, tmp_path / "arrays", lambda rows, total, label: rows)
    config = dataclasses.replace(config, data=dataclasses.replace(data, arrays=str(tmp_path / "arrays")))
    assert read_vocabulary(config).rows == vocabulary.rows
    found = open_arrays(config, vocabulary)["train"]
    assert [product.text for product in found.products([0, 2])] == ["red dress", "green hat"]
    assert features_of(SimpleNamespace(config=config), found) is found.stored  # no second copy in data.prepared
    assert found.stored.dtype == np.float16
    np.testing.assert_array_equal(found.stored, np.broadcast_to([[[1]], [[3]], [[5]]], (3, P, C)))


def test_the_fingerprint_changes_with_every_setting_of_the_data_but_where_things_lie(data, tmp_path):
    vocabulary = Vocabulary.train(["red dress"], 20)
    here = dataclasses.replace(data, source="tables", num_patches=0, feature_size=0, holdout=0.1)

    def print_of(size=32, table=None, **changes):
        return open_source(dataclasses.replace(here, **changes), size, table).fingerprint(vocabulary)

    (tmp_path / "lines.txt").rename(tmp_path / "lines.csv")
    here = dataclasses.replace(here, train=str(tmp_path / "lines.csv"))
    columns = [dataclasses.replace(here.columns, **{name: "x"}) for name in ("id", "image", "category", "group")]
    columns.append(dataclasses.replace(here.columns, text=("x",)))
    other = {"source": "test lines", "num_patches": 1, "feature_size": 2}
    changed = [other, other | {"num_patches": 2}, other | {"feature_size": 1}, {"holdout": 0.2}, {"image_root": "x"}]
    changed += [{"images_outside": True}]
    changed += [{"validation": here.train}, *({"columns": mapped} for mapped in columns)]
    prints = [print_of(), print_of(64), print_of(table=here.train), *(print_of(**change) for change in changed)]
    assert len(set(prints)) == len(prints)
    assert print_of(prepared="x", manual_dir="x", arrays="x", on_device=True) == print_of()
    assert print_of(validation=here.train, holdout=0.2) == print_of(validation=here.train)  # nothing is held out
