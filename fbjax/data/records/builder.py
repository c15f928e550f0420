"""Prepared records: a product table as a TFDS dataset of ArrayRecord files, built once, then read at random.

A record is {id, group, category, text, pieces, word_ids, column_ends, image}: WordPiece ids of the whole text, the word
of each piece, the number of pieces up to the end of each text column, and the encoded image (or patch features
instead). The same folder has an index (id, group, category of every row) and a report of the skipped rows.
"""

import collections
import contextlib
import dataclasses
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from fbjax.core.paths import as_path, atomic_write, lock, remove_tree
from fbjax.data.batches.split import REPORT, SKIPPED
from fbjax.data.records.pipeline import Records
from fbjax.data.records.schema import INDEXED, RecordWriter, encode_rows, index_entry, record_features
from fbjax.data.sources.base import OTHER_SPLIT, DataSource, Skipped
from fbjax.data.text.wordpiece import Vocabulary


def build_records(
    source: DataSource, vocabulary: Vocabulary, folder: str | Path, progress: Callable, by: Callable | None = None
) -> dict[str, Records]:
    """The prepared splits of `source`; builds them in `folder` if they do not exist.

    `progress(iterable, total, label)` wraps the rows while they are read. `by` is another builder class, such as
    `beam.BeamBuilder`. Raises ValueError if a column is missing or no row is usable.
    """
    source.check(vocabulary)
    folder, name = as_path(folder), _name(source, vocabulary)

    def builder() -> CatalogueBuilder:
        with quiet_tfds():
            return (by or CatalogueBuilder)(source, vocabulary, progress, config=name, data_dir=str(folder))

    if not is_prepared(source, vocabulary, folder):
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder / f"{name}.lock"):  # of two runs at the same time, the second finds the records
            if not is_prepared(source, vocabulary, folder):
                builder().make()
    made, records = builder(), {}
    for split in json.loads((made.home / REPORT).read_text())["splits"]:
        with np.load(io.BytesIO((made.home / f"index-{split}.npz").read_bytes())) as index:
            files = tuple(str(path) for path in made.info.splits[split].filepaths)
            records[split] = Records(**index, name=f"{name}-{split}", features=made.info.features, files=files)
    return records


def is_prepared(source: DataSource, vocabulary: Vocabulary, folder: str | Path) -> bool:
    """Whether the records of `source` exist already."""
    version = str(CatalogueBuilder.VERSION)
    return (as_path(folder) / CatalogueBuilder.name / _name(source, vocabulary) / version / REPORT).is_file()


def _name(source: DataSource, vocabulary: Vocabulary) -> str:
    return f"v{source.fingerprint(vocabulary)}"


class CatalogueBuilder(tfds.core.GeneratorBasedBuilder):
    """Any product table as a TFDS dataset."""

    name = "catalogue"
    VERSION = tfds.core.Version("1.2.0")  # increase it when the same table gives other records

    def __init__(self, source: DataSource, vocabulary: Vocabulary, progress: Callable, *, config: str, data_dir: str):
        self._source, self._vocabulary, self._progress = source, vocabulary, progress
        self._index = collections.defaultdict(lambda: collections.defaultdict(list))
        self._skipped: list[tuple[str, Skipped]] = []
        self._group_split: dict[str, str] = {}
        config, array_record = tfds.core.BuilderConfig(name=config), tfds.core.FileFormat.ARRAY_RECORD
        super().__init__(data_dir=data_dir, config=config, file_format=array_record)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="A product catalogue as FashionBERT reads it.",
            features=record_features(self._source.holds),
            disable_shuffling=True,  # everything else refers to row numbers
        )

    def _split_generators(self, dl_manager):
        files, splits = self._source.files(), self._source.split_names
        return {split: self._generate_examples(split, files.get(split, files.get("train"))) for split in splits}

    def _generate_examples(self, split: str, files: list[Path]) -> Iterator[tuple[int, dict]]:
        source, index = self._source, self._index[split]
        wanted = lambda group: self._split_of(group, split) == split  # noqa: E731
        rows = source.products(files, self._vocabulary, wanted)
        rows = self._progress(rows, source.count(files), f"preparing {split}")
        for _, example in encode_rows(enumerate(rows), self._vocabulary):
            if not isinstance(example, Skipped):
                self._enter(split, index_entry(example))
                yield len(index["ids"]) - 1, example
            # where a share is held out, both splits read every row: only one of them counts a skipped row
            elif not self._source.holdout or example.reason != OTHER_SPLIT and (split == "train" or example.group):
                self._skipped.append((split, example))
        if not index["ids"]:
            raise ValueError(self._nothing_usable(split, files))

    def _enter(self, split: str, entry: tuple) -> None:
        for name, value in zip(INDEXED, entry, strict=True):
            self._index[split][name].append(value)

    def _split_of(self, group: str, split: str) -> str:
        """The split of a group: by its hash if a share is held out, else the first split that contains it."""
        if self._source.holdout:
            return "validation" if self._source.held_out(group) else "train"
        return self._group_split.setdefault(group, split)

    def _nothing_usable(self, split: str, files: list[Path]) -> str:
        if self._source.holdout and split != "train":
            num_groups = len(set(self._index["train"]["groups"]))
            return (
                f"none of the {num_groups} usable groups of {', '.join(map(str, files))} falls into validation: "
                f"set config.data.validation, or with more than a few groups raise config.data.holdout "
                f"({self._source.holdout})"
            )
        reasons = collections.Counter(skipped.reason for where, skipped in self._skipped if where == split)
        why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "no rows"
        about = self._source.about(files[0])
        return f"nothing usable for split {split} in {', '.join(map(str, files))}: {why}{about}"

    @property
    def home(self) -> Path:
        return as_path(self.data_dir)

    def _example_writer(self) -> RecordWriter:
        return RecordWriter()

    def make(self) -> None:
        """Writes the records and their index, after removing the files of an unfinished preparation."""
        for leftover in (self.home, *self.home.parent.glob("incomplete.*")):
            remove_tree(leftover)
        begin = time.perf_counter()
        self._generate()
        self._write_index(time.perf_counter() - begin)

    def _generate(self) -> None:
        with quiet_tfds():
            self.download_and_prepare()

    def _write_index(self, seconds: float) -> None:
        """Writes the index, the skipped rows, and last the report, which marks the preparation as finished."""
        for split, columns in self._index.items():
            category_names, categories = np.unique(columns["categories"], return_inverse=True)
            arrays = {name: np.array(columns[name], np.int32) for name in ("num_pieces", "column_ends")}
            arrays["ids"] = np.array(columns["ids"])
            arrays["groups"] = np.unique(columns["groups"], return_inverse=True)[1].astype(np.int32)
            index = io.BytesIO()
            np.savez(index, **arrays, categories=categories.astype(np.int32), category_names=category_names)
            (self.home / f"index-{split}.npz").write_bytes(index.getvalue())
        lines = (json.dumps({"split": split, **dataclasses.asdict(skipped)}) for split, skipped in self._skipped)
        (self.home / SKIPPED).write_text("".join(f"{line}\n" for line in lines))
        report = {
            "splits": {split: len(columns["ids"]) for split, columns in self._index.items()},
            "groups": {split: len(set(columns["groups"])) for split, columns in self._index.items()},
            "categories": {split: len(set(columns["categories"])) for split, columns in self._index.items()},
            "skipped": dict(collections.Counter(skipped.reason for _, skipped in self._skipped).most_common()),
            "seconds": round(seconds, 1),
        }
        with atomic_write(self.home / REPORT) as file:
            file.write_text(json.dumps(report, indent=2))


@contextlib.contextmanager
def quiet_tfds():
    """Silences TFDS's progress bars, logs and prints."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
