"""The files of the authors' release (EasyTransfer, scripts/fashion_bert): tab-separated rows of ready-made features.

Owns their two forms, what a row must fulfil, and their writing. A row is a text and an image with a label: a true pair
or a mismatched one. No header; arrays are comma-separated; `image_feature` is patch-major. Knows nothing of records or
models.

The order of the first six columns of `PREDICTION` (those of `TRAINING` less the masked ones) and the names of the other
four are the release's; that the four follow, in this order, is our reading: change the tuple where a file differs.

A row is about a megabyte of text. Files are read line by line, 105 MB of text a second of one CPU core, in 140 MB of
memory (100 rows of 131,072 features of 9 digits, half of them 0). Arrow splits and parses floats at 128 MB/s, where
`numpy.fromstring` does 33 and `numpy.loadtxt` 28.
"""

import dataclasses
import hashlib
import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute

from fbjax.core import paths
from fbjax.data.sources.tables import DUPLICATE, OTHER_SPLIT, Product, Skipped, clean_name, clean_text
from fbjax.data.text.wordpiece import PAD_ID, Vocabulary

_MASKED_LM = ("masked_lm_positions", "masked_lm_ids", "masked_lm_weights")
_TEXT = ("input_ids", "input_mask", "segment_ids")
FEATURES, LABEL = "image_feature", "nx_sent_labels"
TRAINING = (FEATURES, "image_mask", "masked_patch_positions", *_TEXT, *_MASKED_LM, LABEL)
PREDICTION = (FEATURES, "image_mask", *_TEXT, LABEL, "prod_desc", "text_prod_id", "image_prod_id", "prod_img_id")
STRINGS = frozenset(PREDICTION[6:])
LOOKED_AT = 20  # lines, for the form of a file
LARGEST = float(np.finfo(np.float16).max)  # of a feature: they are kept in 16 bits
MISMATCHED = "negative pair: negatives are drawn anew"
ALL = "all"  # the one category of files that have none


@dataclasses.dataclass(frozen=True)
class Layout:
    """The columns of a file, and how many values stand in each array."""

    columns: tuple[str, ...]
    lengths: dict[str, int]

    @property
    def text_tokens(self) -> int:
        return self.lengths["input_ids"]


@dataclasses.dataclass(frozen=True)
class Pair:
    """A row: a text and an image, and whether they belong together. Names are "" in training files, which have none."""

    where: str  # file and line
    pieces: list[int]  # without [CLS] and [SEP], those that were masked put back
    features: np.ndarray  # float32 [P, C]
    matched: bool
    description: str
    text_id: str
    image_id: str
    photo_id: str


@dataclasses.dataclass(frozen=True)
class FeatureProduct(Product):
    """A product without a picture: its patch features instead, and its text in pieces."""

    pieces: list[int]
    word_ids: list[int]
    features: np.ndarray  # float16 [P, C]


class Reader:
    """Reads the release's files for one vocabulary and one number and size of patch features."""

    def __init__(self, vocabulary: Vocabulary, num_patches: int, feature_size: int):
        self._vocabulary, self._rows = vocabulary, vocabulary.rows
        self._shape = (num_patches, feature_size)

    def layout(self, file: str | Path) -> Layout:
        """The form of `file` by its first lines; ValueError where it is none of the two, or its features do not fit."""
        num_patches, feature_size = self._shape
        unlike, num_columns = None, 0
        for _, line in itertools.islice(_lines(file), LOOKED_AT):
            num_columns = num_columns or line.count("\t") + 1
            layout = _layout(line)
            if layout is None:
                continue
            if (layout.lengths["image_mask"], layout.lengths[FEATURES]) == (num_patches, num_patches * feature_size):
                return layout
            unlike = unlike or layout.lengths
        if unlike:
            patches = unlike["image_mask"]
            raise ValueError(
                f"{file} has {patches} patches of {unlike[FEATURES] // patches} features, this run reads "
                f"{num_patches} of {feature_size} (patches.image_size / patch_size squared, and patches.feature_size)"
            )
        raise ValueError(
            f"{file} is no file of the release: its first line has {num_columns} columns, none of the first "
            f"{LOOKED_AT} is in either form (training: {', '.join(TRAINING)}; prediction: {', '.join(PREDICTION)})"
        )

    def pairs(self, file: str | Path) -> Iterator[Pair | Skipped]:
        """Every row in order, or why it is none."""
        layout = self.layout(file)
        for where, line in _lines(file):
            try:
                cells = self._cells(line, layout)
                pieces, names = self._pieces(cells), _names(cells)
                description, matched = clean_text(cells.get("prod_desc")), bool(cells[LABEL][0])
                yield Pair(where, pieces, self._features(cells), matched, description, *names)
            except _Malformed as problem:
                yield Skipped(where, problem.id, str(problem))

    def products(self, files: list[Path], wanted: Callable[[str], bool]) -> Iterator[FeatureProduct | Skipped]:
        """The products of true pairs, of the `wanted` groups: texts that are the same, or of one text_prod_id.

        Mismatched pairs are skipped: training draws its own.
        """
        seen: set[str] = set()
        for file in files:
            layout = self.layout(file)
            for where, line in _lines(file):
                found, cells = self.describe(where, line, layout)
                if isinstance(found, FeatureProduct):
                    if found.id in seen:
                        found = Skipped(where, found.id, DUPLICATE)
                    elif not wanted(found.group):
                        found = Skipped(where, found.id, OTHER_SPLIT, found.group)
                    else:
                        found = self.with_features(found, cells)
                    seen.add(found.id)
                yield found

    def describe(self, where: str, line: str, layout: Layout) -> tuple[FeatureProduct | Skipped, dict | None]:
        """All of a true pair's product but its features, and the cells that hold them; or why there is none."""
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
        return FeatureProduct(identity, text, ALL, group, b"", where, pieces, word_ids, np.empty(0)), cells

    def with_features(self, product: FeatureProduct, cells: dict) -> FeatureProduct | Skipped:
        """`product` with the features in its `cells`, or why there are none: nearly all of the work."""
        try:
            return dataclasses.replace(product, features=self._features(cells).astype(np.float16))
        except _Malformed as problem:
            return Skipped(product.where, problem.id, str(problem), product.group)

    def _cells(self, line: str, layout: Layout) -> dict:
        """A line's cells by name, arrays as int32 but for the features, which stay text; `_Malformed` where unlike."""
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
        """The text without [CLS] and [SEP], masked pieces put back."""
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


def write(path: str | Path, rows: Iterable[dict], columns: tuple[str, ...]) -> Path:
    """Rows of `columns`, `TRAINING` or `PREDICTION`, as a file of the release: arrays of any shape, numbers, strings.

    Floats have the 9 digits that give float32 back exactly.
    """
    path = Path(path)
    with open(path, "w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            stream.write("\t".join(_written(row[name]) for name in columns) + "\n")
    return path


class _Malformed(ValueError):
    """Why a row cannot be used."""

    def __init__(self, reason: str, identity: str = ""):
        super().__init__(reason)
        self.id = identity


def _lines(file: str | Path) -> Iterator[tuple[str, str]]:
    """("eval.tsv line 7", the line) of every line that is not blank."""
    with io.TextIOWrapper(paths.open_binary(file), "utf-8", "replace", newline="\n") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield f"{Path(file).name} line {number}", line.rstrip("\r\n")


def _layout(line: str) -> Layout | None:
    """The form that `line` is in, as its columns agree with each other."""
    cells = line.split("\t")
    for columns in (TRAINING, PREDICTION):
        if len(cells) != len(columns):
            continue
        counts = {name: cell.count(",") + 1 for name, cell in zip(columns, cells, strict=True)}
        lengths = {name: count for name, count in counts.items() if name not in STRINGS}
        alike = [_TEXT, _MASKED_LM] if columns == TRAINING else [_TEXT]
        if (
            lengths[LABEL] == 1
            and all(len({lengths[name] for name in names}) == 1 for names in alike)
            and lengths[FEATURES] % lengths["image_mask"] == 0
        ):
            return Layout(columns, lengths)
    return None


def _names(cells: dict) -> tuple[str, str, str]:
    """The ids of text, image and photo, "" in training files."""
    names = tuple(clean_name(cells.get(name)) for name in ("text_prod_id", "image_prod_id", "prod_img_id"))
    if "text_prod_id" in cells and not all(names[:2]):
        raise _Malformed("missing text_prod_id or image_prod_id", cells["id"])
    return names


def _numbers(text: str, kind: type, name: str, identity: str) -> np.ndarray:
    text = text.replace(" ", "") if " " in text else text
    try:
        values = pa.compute.split_pattern(pa.array([text]), ",").values
        if kind is np.int32 and "." in text:  # 1.0 is as whole as 1
            whole = pa.compute.cast(values, pa.float64())
            return pa.compute.cast(whole, pa.int32()).to_numpy()
        return pa.compute.cast(values, pa.from_numpy_dtype(kind)).to_numpy()
    except pa.ArrowInvalid as error:
        what = " ".join(str(error).split())[:80]
        raise _Malformed(f"{name} is not all {'whole ' * (kind is np.int32)}numbers: {what}", identity) from None


def _words(pieces: list[str]) -> tuple[list[str], list[int]]:
    """The words that pieces spell, and the number of each piece's: "##" goes on where the last one ended."""
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
