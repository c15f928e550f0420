"""Prepared records: a product table as a TFDS dataset of ArrayRecord files, built once, then read at random.

A record is {id, group, category, text, pieces, word_ids, image}: WordPiece ids of the whole text, the word each piece
belongs to, and the encoded image, or in its place ready-made patch features. Beside the records lie an index (id,
group, category of every row) and a report of what was skipped.
"""

import collections
import contextlib
import dataclasses
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from array_record.python.array_record_data_source import ArrayRecordDataSource

from fbjax.core.paths import as_path, atomic_write, lock, remove_tree
from fbjax.data.records.schema import INDEXED, RecordWriter, encode_rows, features_of, index_entry
from fbjax.data.records.source import Source
from fbjax.data.sources import fashiongen, tables
from fbjax.data.sources.table_readers import column_names, count_rows, listed
from fbjax.data.text.wordpiece import Vocabulary

REPORT, SKIPPED = "report.json", "skipped.jsonl"


@dataclasses.dataclass(frozen=True)
class Records:
    """One prepared split. Rows are numbered as they stand in the table, what was skipped left out."""

    ids: np.ndarray  # [N] str
    groups: np.ndarray  # [N] int32 codes
    categories: np.ndarray  # [N] int32 codes, rows of:
    category_names: np.ndarray  # [number of categories] str
    num_pieces: np.ndarray  # [N] int32, [CLS] and [SEP] not counted
    name: str  # folder-safe, unique to split and content
    features: tfds.features.FeaturesDict
    files: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def digest(self) -> str:
        """Of what the data order and the texts' lengths depend on, whatever the tables are called."""
        content = (self.ids.tolist(), self.groups.tolist(), self.categories.tolist(), self.num_pieces.tolist())
        return hashlib.sha256(repr(content).encode()).hexdigest()

    @property
    def home(self) -> Path:
        """The folder of records, index and report."""
        return as_path(self.files[0]).parent

    def open(self) -> Callable[[Sequence[int]], list[bytes]]:
        """A reader of serialized records by row."""
        if self.files[0].startswith("s3://"):
            raise ValueError(f"{self.home}: ArrayRecord reads no s3://; copy the folder here, or mount it")
        source = ArrayRecordDataSource(self.files)
        return lambda rows: source.__getitems__([int(row) for row in rows])

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """The rows of `ids`; unknown ones in one error."""
        place = {identity: row for row, identity in enumerate(self.ids)}
        unknown = [identity for identity in dict.fromkeys(ids) if identity not in place]
        if unknown:
            shown = ", ".join(unknown[:5]) + (", .." if len(unknown) > 5 else "")
            raise ValueError(
                f"{len(unknown)} products are not in the data ({len(self)} products): {shown}; "
                "is this the table that the lists were made for?"
            )
        return np.array([place[identity] for identity in ids], np.int64)


def build_records(
    source: Source, vocabulary: Vocabulary, folder: str | Path, progress: Callable, by: Callable | None = None
) -> dict[str, Records]:
    """The prepared splits of `source`, made in `folder` unless they lie there already.

    `progress(iterable, total, label)` wraps the rows while they are read. `by` makes another builder of the same
    arguments (`beam.BeamBuilder`). Raises ValueError on a missing column or where nothing is usable.
    """
    source.check(vocabulary)
    folder, name = as_path(folder), _name(source, vocabulary)

    def builder() -> CatalogueBuilder:
        with quiet_tfds():
            return (by or CatalogueBuilder)(source, vocabulary, progress, config=name, data_dir=str(folder))

    if not is_prepared(source, vocabulary, folder):
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder / f"{name}.lock"):  # two runs may want them at once: the second finds them made
            if not is_prepared(source, vocabulary, folder):
                builder().make()
    made = builder()
    return {split: _open_records(made, split) for split in json.loads((made.home / REPORT).read_text())["splits"]}


def is_prepared(source: Source, vocabulary: Vocabulary, folder: str | Path) -> bool:
    """Whether `prepare` would find its records made."""
    version = str(CatalogueBuilder.VERSION)
    return (as_path(folder) / CatalogueBuilder.name / _name(source, vocabulary) / version / REPORT).is_file()


def _name(source: Source, vocabulary: Vocabulary) -> str:
    return f"v{source.fingerprint(vocabulary)}"


def read_report(records: Records) -> dict:
    """{"splits": {split: count}, "skipped": {reason: count}, ...} of the preparation that made `records`."""
    return json.loads((records.home / REPORT).read_text())


class CatalogueBuilder(tfds.core.GeneratorBasedBuilder):
    """Any product table as a TFDS dataset."""

    name = "catalogue"
    VERSION = tfds.core.Version("1.1.0")  # raise it when the same table makes other records
    MANUAL_DOWNLOAD_INSTRUCTIONS = fashiongen.INSTRUCTIONS

    def __init__(self, source: Source, vocabulary: Vocabulary, progress: Callable, *, config: str, data_dir: str):
        self._source, self._vocabulary, self._progress = source, vocabulary, progress
        self._index = collections.defaultdict(lambda: collections.defaultdict(list))
        self._skipped: list[tuple[str, tables.Skipped]] = []
        self._group_split: dict[str, str] = {}
        super().__init__(
            data_dir=data_dir,
            config=tfds.core.BuilderConfig(name=config),
            file_format=tfds.core.FileFormat.ARRAY_RECORD,
        )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="A product catalogue as FashionBERT reads it.",
            features=features_of(self._source.features),
            disable_shuffling=True,  # row numbers are the index of everything else
        )

    def _split_generators(self, dl_manager):
        files = self._source.files()
        return {
            split: self._generate_examples(split, files.get(split, files.get("train")))
            for split in self._source.split_names
        }

    def _generate_examples(self, split: str, files: list[Path]) -> Iterator[tuple[int, dict]]:
        source, index = self._source, self._index[split]
        wanted = lambda group: self._split_of(group, split) == split  # noqa: E731
        rows = source.products(files, self._vocabulary, wanted)
        total = None if source.features else count_rows(files)
        rows = self._progress(rows, total, f"preparing {split}")
        for _, example in encode_rows(enumerate(rows), self._vocabulary):
            if isinstance(example, tables.Skipped):
                self._skip(split, example)
                continue
            key = len(index["ids"])
            self._enter(split, index_entry(example))
            yield key, example
        if not index["ids"]:
            raise ValueError(self._nothing_usable(split, files))

    def _enter(self, split: str, entry: tuple) -> None:
        for name, value in zip(INDEXED, entry, strict=True):
            self._index[split][name].append(value)

    def _split_of(self, group: str, split: str) -> str:
        """The one split a group belongs to: by its hash when held out, else the first split that it appears in."""
        if self._source.holdout:
            return "validation" if self._source.held_out(group) else "train"
        return self._group_split.setdefault(group, split)

    def _skip(self, split: str, skipped: tables.Skipped) -> None:
        if self._source.holdout and (skipped.reason == tables.OTHER_SPLIT or split != "train" and not skipped.group):
            return  # both splits read these rows, and the other counts it
        self._skipped.append((split, skipped))

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
        nothing = f"nothing usable for split {split} in {', '.join(map(str, files))}: {why}"
        return nothing if self._source.features else f"{nothing}; its columns are {listed(column_names(files[0]))}"

    @property
    def home(self) -> Path:
        return as_path(self.data_dir)

    def _example_writer(self) -> RecordWriter:
        return RecordWriter()

    def make(self) -> None:
        """Records, then their index; what an unfinished preparation has left goes first."""
        for leftover in (self.home, *self.home.parent.glob("incomplete.*")):
            remove_tree(leftover)
        begin = time.perf_counter()
        self._generate()
        self._write_index(self.home, time.perf_counter() - begin)

    def _generate(self) -> None:
        with quiet_tfds():
            self.download_and_prepare()

    def _write_index(self, home: Path, seconds: float) -> None:
        """Index files, what was skipped, and the report, which marks the preparation as finished."""
        for split, columns in self._index.items():
            category_names, categories = np.unique(columns["categories"], return_inverse=True)
            index = io.BytesIO()
            np.savez(
                index,
                ids=np.array(columns["ids"]),
                groups=np.unique(columns["groups"], return_inverse=True)[1].astype(np.int32),
                categories=categories.astype(np.int32),
                category_names=category_names,
                num_pieces=np.array(columns["num_pieces"], np.int32),
            )
            (home / f"index-{split}.npz").write_bytes(index.getvalue())
        lines = (json.dumps({"split": split, **dataclasses.asdict(skipped)}) for split, skipped in self._skipped)
        (home / SKIPPED).write_text("".join(f"{line}\n" for line in lines))
        categories = {split: collections.Counter(columns["categories"]) for split, columns in self._index.items()}
        report = {
            "splits": {split: len(columns["ids"]) for split, columns in self._index.items()},
            "groups": {split: len(set(columns["groups"])) for split, columns in self._index.items()},
            "categories": {split: len(counts) for split, counts in categories.items()},
            "skipped": dict(collections.Counter(skipped.reason for _, skipped in self._skipped).most_common()),
            "seconds": round(seconds, 1),
        }
        with atomic_write(home / REPORT) as file:
            file.write_text(json.dumps(report, indent=2))


def _open_records(builder: CatalogueBuilder, split: str) -> Records:
    with np.load(io.BytesIO((builder.home / f"index-{split}.npz").read_bytes())) as index:
        arrays = {name: index[name] for name in index.files}
    return Records(
        **arrays,
        name=f"{builder.builder_config.name}-{split}",
        features=builder.info.features,
        files=tuple(str(path) for path in builder.info.splits[split].filepaths),
    )


@contextlib.contextmanager
def quiet_tfds():
    """TFDS's own bars, logs and prints off; ours are shown."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
