"""Prepared records: a product table as a TFDS dataset of ArrayRecord files, built once, then read at random.

A record is {id, group, category, text, pieces, word_ids, column_ends, image}: WordPiece ids of the whole text, the word
of each piece, the number of pieces up to the end of each text column, and the encoded image (or patch features
instead). With data.max_images above 1 it has more_images, the other encoded pictures. The same folder has an index (id,
group, category of every row) and a report of the skipped rows.
"""

import collections
import contextlib
import dataclasses
import io
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from fbjax.core.checksums import write_sums
from fbjax.core.console import say
from fbjax.core.paths import as_path, atomic_write, is_remote, lock, remove_tree, upload
from fbjax.data.batches.split import REPORT, SKIPPED
from fbjax.data.records import image_files
from fbjax.data.records.in_order import records_in_order
from fbjax.data.records.pipeline import Records, check_records, read_report
from fbjax.data.records.schema import INDEXED, RecordWriter, encode_rows, index_entry, record_features
from fbjax.data.sources.base import OTHER_SPLIT, DataSource, Skipped
from fbjax.data.text.wordpiece import Vocabulary

SMALL = (".json", ".npz")  # files that are checked whenever they are opened; records have checksums of their own


def build_records(
    source: DataSource, vocabulary: Vocabulary, folder: str | Path, progress: Callable, by: Callable | None = None
) -> dict[str, Records]:
    """The prepared splits of `source`; builds them in `folder` if they do not exist.

    `progress(iterable, total, label)` wraps the rows while they are read. `by` is another builder class, such as
    `beam.BeamBuilder`. Raises ValueError if a column is missing or no row is usable.
    """
    source.check(vocabulary)
    folder, base = as_path(folder), f"v{source.fingerprint(vocabulary)}"

    def builder(name: str) -> CatalogueBuilder:
        with quiet_tfds():
            return (by or CatalogueBuilder)(source, vocabulary, progress, config=name, data_dir=str(folder))

    name, ready = _newest(source, folder, base)
    if not ready:
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder / f"{base}.lock"):  # of two runs at the same time, the second finds the records
            name, ready = _newest(source, folder, base, say)
            if not ready:
                for line in source.notes():
                    say(line)
                builder(name).make()
    home = _home(folder, name)
    report, records = read_report(home), {}
    check_records(home, [path.name for path in home.iterdir() if path.suffix in SMALL])
    made = builder(name)
    for split in report["splits"]:
        with np.load(io.BytesIO((home / f"index-{split}.npz").read_bytes())) as index:
            files = tuple(str(path) for path in made.info.splits[split].filepaths)
            records[split] = Records(**index, name=f"{name}-{split}", features=made.info.features, files=files)
    return records


def is_prepared(source: DataSource, vocabulary: Vocabulary, folder: str | Path) -> bool:
    """Whether the records of `source` exist already, of the image files as they are now."""
    return _newest(source, as_path(folder), f"v{source.fingerprint(vocabulary)}")[1]


def _newest(source: DataSource, folder: Path, base: str, say: Callable = lambda line: None) -> tuple[str, bool]:
    """The name of the records to use, and whether they are made.

    Where image files have changed since, the next ones get a number: a training may still read the old ones.
    """
    number = next(n for n in itertools.count(1) if not (_home(folder, _numbered(base, n + 1)) / REPORT).is_file())
    home = _home(folder, _numbered(base, number))
    if not (home / REPORT).is_file():
        return _numbered(base, number), False
    if changed := list(image_files.changed(source, home / image_files.FILE)):
        say(f"preparing again: {len(changed):,} image files have changed since, such as {changed[0]}")
        return _numbered(base, number + 1), False
    return _numbered(base, number), True


def _numbered(base: str, number: int) -> str:
    return base if number == 1 else f"{base}-{number}"


def _home(folder: Path, name: str) -> Path:
    return folder / CatalogueBuilder.name / name / str(CatalogueBuilder.VERSION)


class CatalogueBuilder(tfds.core.GeneratorBasedBuilder):
    """Any product table as a TFDS dataset."""

    name = "catalogue"
    VERSION = tfds.core.Version("1.3.0")  # increase it when the same table gives other records

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
            features=record_features(self._source.holds, self._source.data.max_images),
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
        for _, example in encode_rows(enumerate(rows), self._vocabulary, self._source.data.max_images > 1):
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
        with tempfile.TemporaryDirectory() as seen:
            image_files.note(self._source, Path(seen) / image_files.FILE)
            self._generate()
            upload(Path(seen) / image_files.FILE, self.home / image_files.FILE)
        self._write_index(time.perf_counter() - begin)

    def _generate(self) -> None:
        with quiet_tfds(), records_in_order():
            self.download_and_prepare()

    def _write_index(self, seconds: float) -> None:
        """Writes the index, the skipped rows, the report, which marks the preparation as finished, and checksums."""
        for split, columns in self._index.items():
            category_names, categories = np.unique(columns["categories"], return_inverse=True)
            arrays = {name: np.array(columns[name], np.int32) for name in ("num_pieces", "column_ends")}
            arrays |= {name: np.array(columns[name], np.uint64) for name in ("text_hashes", "image_hashes")}
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
        if not is_remote(self.home):
            write_sums(self.home)


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
