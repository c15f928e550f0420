"""The source "release": files of the authors' release (EasyTransfer, scripts/fashion_bert), rows of patch features.

A row is a text and an image with a label: a true or a mismatched pair. Columns are separated by tabs, array values by
commas; there is no header; `image_feature` is patch-major. The release gives the order of the first six columns of
`PREDICTION` and the names of the other four. The order of these four is our assumption: change it if a file differs.

A row has about 1 MB of text. One CPU core reads 105 MB of text per second, line by line, in 140 MB of memory (100 rows
of 131,072 features of 9 digits, half of them 0). Arrow parses floats at 128 MB/s, `numpy.fromstring` at 33 and
`numpy.loadtxt` at 28.
"""

import dataclasses
import functools
import hashlib
import io
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute

from fbjax.core import paths
from fbjax.data.sources.base import SOURCES, DataSource, Described, Part, Product, Skipped
from fbjax.data.sources.cells import clean_name, clean_text
from fbjax.data.text.wordpiece import PAD_ID, Vocabulary

_MASKED_LM = ("masked_lm_positions", "masked_lm_ids", "masked_lm_weights")
_TEXT = ("input_ids", "input_mask", "segment_ids")
FEATURES, LABEL = "image_feature", "nx_sent_labels"
TRAINING = (FEATURES, "image_mask", "masked_patch_positions", *_TEXT, *_MASKED_LM, LABEL)
PREDICTION = (FEATURES, "image_mask", *_TEXT, LABEL, "prod_desc", "text_prod_id", "image_prod_id", "prod_img_id")
STRINGS = frozenset(PREDICTION[6:])
LOOKED_AT = 20  # lines, to find the layout of a file
LINES_AT_ONCE = 32  # of a part, about 32 MB
LARGEST = float(np.finfo(np.float16).max)  # features are stored in 16 bits
MISMATCHED = "negative pair: negatives are drawn anew"
ALL = "all"  # the only category, since the files have none


@dataclasses.dataclass(frozen=True)
class Layout:
    """The columns of a file, and the number of values of each array."""

    columns: tuple[str, ...]
    lengths: dict[str, int]

    @property
    def text_tokens(self) -> int:
        return self.lengths["input_ids"]


@dataclasses.dataclass(frozen=True)
class Pair:
    """A row: a text, an image, and whether they match. Descriptions and ids are "" in training files."""

    where: str  # file and line
    pieces: list[int]  # without [CLS] and [SEP], masked pieces restored
    features: np.ndarray  # float32 [P, C]
    matched: bool
    description: str
    text_id: str
    image_id: str
    photo_id: str


class Reader:
    """Reads the release's files for one vocabulary and one number and size of patch features."""

    def __init__(self, vocabulary: Vocabulary, num_patches: int, feature_size: int):
        self._vocabulary, self._rows = vocabulary, vocabulary.rows
        self._shape = (num_patches, feature_size)

    def layout(self, file: str | Path) -> Layout:
        """The layout of `file` from its first lines. Raises ValueError if it has neither, or another feature size."""
        num_patches, feature_size = self._shape
        unlike, num_columns = None, 0
        for _, line in itertools.islice(_lines(file), LOOKED_AT):
            num_columns = num_columns or line.count("\t") + 1
            if (layout := _layout(line)) is None:
                continue
            if (layout.lengths["image_mask"], layout.lengths[FEATURES]) == (num_patches, num_patches * feature_size):
                return layout
            unlike = unlike or layout.lengths
        if unlike:
            patches = unlike["image_mask"]
            raise ValueError(
                f"{file} has {patches} patches of {unlike[FEATURES] // patches} features, this run reads "
                f"{num_patches} of {feature_size} (data.num_patches, data.feature_size)"
            )
        raise ValueError(
            f"{file} is no file of the release: its first line has {num_columns} columns, none of the first "
            f"{LOOKED_AT} is in either form (training: {', '.join(TRAINING)}; prediction: {', '.join(PREDICTION)})"
        )

    def pairs(self, file: str | Path) -> Iterator[Pair | Skipped]:
        """Every row in order, or the reason for skipping it."""
        layout = self.layout(file)
        for where, line in _lines(file):
            try:
                cells = self._cells(line, layout)
                pieces, names = self._pieces(cells), _names(cells)
                description, matched = clean_text(cells.get("prod_desc")), bool(cells[LABEL][0])
                yield Pair(where, pieces, self._features(cells), matched, description, *names)
            except _Malformed as problem:
                yield Skipped(where, problem.id, str(problem))

    def describe(self, where: str, line: str, layout: Layout) -> tuple[Product | Skipped, dict | None]:
        """A true pair's product without features, and its cells; or the reason for skipping it.

        Skips mismatched pairs, since training draws its own. Equal texts, or texts of one text_prod_id, are one group.
        """
        try:
            cells = self._cells(line, layout)
            pieces, (text_id, *_) = self._pieces(cells), _names(cells)
        except _Malformed as problem:
            return Skipped(where, problem.id, str(problem)), None
        identity = text_id or where
        if not cells[LABEL][0]:
            return Skipped(where, identity, MISMATCHED), None
        group = text_id or hashlib.sha256(repr(pieces).encode()).hexdigest()[:16]
        words, word_ids = _words([self._rows[piece] for piece in pieces])
        text = clean_text(cells.get("prod_desc")) or " ".join(words)
        return Product(identity, text, ALL, group, b"", where, (pieces, word_ids)), cells

    def with_features(self, product: Product, cells: dict) -> Product | Skipped:
        """`product` with the features of its `cells`, or the reason for skipping it. Takes most of the time."""
        try:
            return dataclasses.replace(product, image=self._features(cells).astype(np.float16))
        except _Malformed as problem:
            return Skipped(product.where, problem.id, str(problem), product.group)

    def _cells(self, line: str, layout: Layout) -> dict:
        """A line's cells by name: arrays of numbers, features and strings as text. Raises `_Malformed`."""
        cells = line.split("\t")
        if len(cells) != len(layout.columns):
            raise _Malformed(f"{len(cells)} columns, expected {len(layout.columns)}")
        named = dict(zip(layout.columns, cells, strict=True))
        named["id"] = clean_name(named.get("text_prod_id"))
        for name, length in layout.lengths.items():
            values = named[name].count(",") + 1
            if values != length:
                raise _Malformed(f"{name} has {values} values, expected {length}", named["id"])
            if name != FEATURES:
                kind = np.float32 if name == "masked_lm_weights" else np.int32
                named[name] = _numbers(named[name], kind, name, named["id"])
        vocabulary_size, places = self._vocabulary.size, layout.text_tokens
        limits = dict.fromkeys(("image_mask", "input_mask", "segment_ids", "masked_lm_weights", LABEL), 2)
        limits |= {"input_ids": vocabulary_size, "masked_lm_ids": vocabulary_size, "masked_lm_positions": places}
        limits["masked_patch_positions"] = self._shape[0]
        for name, limit in limits.items():
            for value in named.get(name, ()):
                if not 0 <= value < limit or value != int(value):
                    raise _Malformed(f"{name} has {value:g}, expected 0 to {limit - 1}", named["id"])
        if not named["image_mask"].all():
            raise _Malformed("image_mask hides patches, which here all take part", named["id"])
        return named

    def _features(self, cells: dict) -> np.ndarray:
        features = _numbers(cells[FEATURES], np.float32, FEATURES, cells["id"])
        wrong = np.flatnonzero(~(np.abs(features) <= LARGEST))
        if len(wrong):
            patch, place = divmod(int(wrong[0]), self._shape[1])
            value = features[wrong[0]]
            raise _Malformed(f"{FEATURES} has {value:g} at patch {patch}, feature {place}", cells["id"])
        return features.reshape(self._shape)

    def _pieces(self, cells: dict) -> list[int]:
        """The text without [CLS] and [SEP], masked pieces restored."""
        ids = cells["input_ids"].copy()
        if "masked_lm_ids" in cells:
            real = cells["masked_lm_weights"] > 0
            ids[cells["masked_lm_positions"][real]] = cells["masked_lm_ids"][real]
        if ids[0] != self._vocabulary.cls_id:
            begins = f"input_ids begin with {ids[0]}, not with [CLS], {self._vocabulary.cls_id}"
            raise _Malformed(f"{begins}: another vocabulary?", cells["id"])
        pieces = ids[(cells["input_mask"] == 1) & (ids != PAD_ID)][1:].tolist()
        pieces = pieces[:-1] if pieces and pieces[-1] == self._vocabulary.sep_id else pieces
        if not pieces:
            raise _Malformed("empty text", cells["id"])
        return pieces


@SOURCES.register("release")
class Release(DataSource):
    """The true pairs of the release's files. A part is (first byte, end, layout) of some lines.

    A file is read twice. The first time, for the line ends, takes a sixth of the time.
    """

    gives_features = True

    def check(self, vocabulary: Vocabulary) -> None:
        for file in itertools.chain.from_iterable(self.files().values()):
            self._reader(vocabulary).layout(file)

    def texts(self) -> Iterator[str]:
        raise ValueError(
            "data.source 'release': the files hold a vocabulary's row numbers, which model.vocabulary 'used' or "
            "'train:..' would not keep (use its vocab.txt, or '' for the pretrained BERT's)"
        )

    def cut(self, file: Path, vocabulary: Vocabulary) -> Iterator[Part]:
        layout = self._reader(vocabulary).layout(file)
        with paths.open_binary(file) as stream:
            start, first = 0, 1
            while some := [len(line) for line in itertools.islice(stream, LINES_AT_ONCE)]:
                yield Part(file, first, (start, start + sum(some), layout))
                start, first = start + sum(some), first + len(some)

    def described(self, part: Part, vocabulary: Vocabulary, images: bool = True) -> Iterator[Described]:
        reader, (start, end, layout) = self._reader(vocabulary), part.rows
        with paths.open_binary(part.file) as stream:
            stream.seek(start)
            whole = io.BytesIO(stream.read(end - start))
        for number, line in enumerate(whole, start=part.first):
            line = line.decode("utf-8", "replace")
            if line.strip():
                found, cells = reader.describe(f"{part.file.name} line {number}", line.rstrip("\r\n"), layout)
                yield number, found, functools.partial(reader.with_features, found, cells)

    def _reader(self, vocabulary: Vocabulary) -> Reader:
        return Reader(vocabulary, self.data.num_patches, self.data.feature_size)


def write(path: str | Path, rows: Iterable[dict], columns: tuple[str, ...]) -> Path:
    """Writes rows of `columns`, `TRAINING` or `PREDICTION`, as a file of the release: arrays, numbers and strings.

    Floats have 9 digits, which is exact for float32.
    """
    with open(path, "w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            stream.write("\t".join(_written(row[name]) for name in columns) + "\n")
    return Path(path)


class _Malformed(ValueError):
    """The reason for skipping a row."""

    def __init__(self, reason: str, identity: str = ""):
        super().__init__(reason)
        self.id = identity


def _lines(file: str | Path) -> Iterator[tuple[str, str]]:
    """("eval.tsv line 7", line) of every line that is not blank."""
    with io.TextIOWrapper(paths.open_binary(file), "utf-8", "replace", newline="\n") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield f"{Path(file).name} line {number}", line.rstrip("\r\n")


def _layout(line: str) -> Layout | None:
    """The layout of `line` if its columns are consistent."""
    cells = line.split("\t")
    for columns in (TRAINING, PREDICTION):
        lengths = {n: cell.count(",") + 1 for n, cell in zip(columns, cells, strict=False) if n not in STRINGS}
        if len(cells) != len(columns) or lengths[LABEL] != 1 or lengths[FEATURES] % lengths["image_mask"]:
            continue
        alike = [_TEXT, _MASKED_LM] if columns == TRAINING else [_TEXT]
        if all(len({lengths[name] for name in names}) == 1 for names in alike):
            return Layout(columns, lengths)
    return None


def _names(cells: dict) -> tuple[str, str, str]:
    """The ids of text, image and photo; "" in training files."""
    names = tuple(clean_name(cells.get(name)) for name in ("text_prod_id", "image_prod_id", "prod_img_id"))
    if "text_prod_id" in cells and not all(names[:2]):
        raise _Malformed("missing text_prod_id or image_prod_id", cells["id"])
    return names


def _numbers(text: str, kind: type, name: str, identity: str) -> np.ndarray:
    text = text.replace(" ", "") if " " in text else text
    try:
        values = pa.compute.split_pattern(pa.array([text]), ",").values
        if kind is np.int32 and "." in text:  # 1.0 is a whole number
            values = pa.compute.cast(values, pa.float64())
        return pa.compute.cast(values, pa.from_numpy_dtype(kind)).to_numpy()
    except pa.ArrowInvalid as error:
        what = " ".join(str(error).split())[:80]
        raise _Malformed(f"{name} is not all {'whole ' * (kind is np.int32)}numbers: {what}", identity) from None


def _words(pieces: list[str]) -> tuple[list[str], list[int]]:
    """The words of pieces, and the word number of each piece; "##" marks a piece that continues a word."""
    words: list[str] = []
    numbers = []
    for piece in pieces:
        if piece.startswith("##") and words:
            words[-1] += piece.removeprefix("##")
        else:
            words.append(piece)
        numbers.append(len(words) - 1)
    return words, numbers


def _written(value) -> str:
    if isinstance(value, str):
        return " ".join(value.split())
    values = np.asarray(value).ravel()
    form = "%d" if values.dtype.kind in "iub" else "%.9g"
    return ",".join([form % number for number in values.tolist()])
