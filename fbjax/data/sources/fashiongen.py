"""Fashion-Gen's own files: two HDF5 tables with one row per photo of a product (the paper, section 4.1).

Finds, checks and reads these files. For the rest of the code an ``.h5`` file is a table: its columns are the datasets
of `SCHEMA`, and `PHOTO`, which distinguishes the photos of one product.
"""

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

SUFFIX = ".h5"
PREFIX = "fashiongen:"  # in config.data.train and config.data.validation
FILES = {"train": "fashiongen_256_256_train.h5", "validation": "fashiongen_256_256_validation.h5"}
PRODUCT, POSE, IMAGE, PHOTO = "input_productID", "input_pose", "input_image", "photo"
WORDS = ("brand", "category", "composition", "concat_description", "department", "description", "gender", "name")
WORDS = tuple(f"input_{name}" for name in (*WORDS, "pose", "season", "subcategory"))
NUMBERS = ("index", "index_2", PRODUCT, "input_msrpUSD")
SCHEMA = (*NUMBERS, *WORDS, IMAGE)
NEEDED = (PRODUCT, POSE, IMAGE)  # without these a file is not Fashion-Gen's; other columns are checked if mapped
ROWS_AT_ONCE, IMAGES_AT_ONCE = 4096, 64
CHUNK_CACHE = 2**26  # bytes: enough to unpack each compressed chunk of images once


def is_named(pattern: str) -> bool:
    """Whether `pattern` is a name such as "fashiongen:train" and not a path."""
    return str(pattern).startswith(PREFIX)


def find(name: str, manual_dir: str = "") -> Path:
    """The file of "fashiongen:train" or "fashiongen:validation" in `manual_dir` or its subfolder fashiongen/.

    The default `manual_dir` is TFDS's folder for manual downloads. Raises FileNotFoundError with the remedy.
    """
    split = name.removeprefix(PREFIX)
    if split not in FILES:
        raise ValueError(f"{name!r} is unknown (use {' or '.join(repr(PREFIX + split) for split in FILES)})")
    home = os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets"
    folder = Path(manual_dir) if manual_dir else Path(home) / "downloads" / "manual"
    for path in (folder / FILES[split], folder / "fashiongen" / FILES[split]):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"no {FILES[split]} in {folder}: Fashion-Gen is given out by its owners only (https://fashion-gen.com). "
        f"Put {' and '.join(FILES.values())} there, or set config.data.manual_dir to the folder that holds them"
    )


def column_names(file: Path) -> list[str]:
    """`PHOTO` and the file's datasets of `SCHEMA`."""
    with _open(file) as stream:
        return [PHOTO, *(name for name in SCHEMA if name in stream)]


def count_rows(file: Path) -> int:
    with _open(file) as stream:
        return len(stream[PRODUCT])


def read_rows(file: Path, names: set[str] | None = None, places: Sequence[int] | None = None) -> Iterator[dict]:
    """Rows as dicts of the columns `names` (None: all); only the rows `places` if given, in rising order.

    Text is str, numbers are Python's, an image is an array [S, S, 3]. Raises ValueError if the file is damaged.
    """
    with _open(file) as stream:
        there = [name for name in SCHEMA if name in stream and (names is None or name in names)]
        with_photo = names is None or PHOTO in names
        read = dict.fromkeys([*there, *((PRODUCT, POSE) if with_photo else ())])
        places = range(len(stream[PRODUCT])) if places is None else places
        at_once = IMAGES_AT_ONCE if IMAGE in read else ROWS_AT_ONCE
        for start in range(0, len(places), at_once):
            chosen = places[start : start + at_once]
            try:
                cells = {name: _cells(stream[name], chosen) for name in read}
            except OSError as error:
                raise _unreadable(file, error) from None
            for i in range(len(chosen)):
                row = {name: cells[name][i] for name in there}
                yield row | {PHOTO: f"{cells[PRODUCT][i]}_{cells[POSE][i]}"} if with_photo else row


def write(path: str | Path, rows: Iterable[dict], num_rows: int, side: int) -> Path:
    """Writes a file of the same schema from `num_rows` rows with images uint8 [side, side, 3].

    All rows have the same columns; missing columns become "" or 0. Raises ValueError on another number of rows.
    """
    path, rows = Path(path), iter(rows)
    partial, count = path.with_name(path.name + ".partial"), 0
    kinds = dict.fromkeys(WORDS, "S2048") | dict.fromkeys(NUMBERS, np.int64) | {"input_msrpUSD": np.float64}
    with h5py.File(partial, "w") as stream:
        for name, kind in kinds.items():
            shape = (num_rows,) if name == "index_2" else (num_rows, 1)
            stream.create_dataset(name, shape, kind, chunks=(min(num_rows, 256), *shape[1:]), compression="gzip")
        images = {"chunks": (1, side, side, 3), "compression": "gzip", "compression_opts": 1}
        stream.create_dataset(IMAGE, (num_rows, side, side, 3), np.uint8, **images)
        while some := list(itertools.islice(rows, IMAGES_AT_ONCE)):
            end = min(count + len(some), num_rows)
            numbered = [{"index": place, "index_2": place} | row for place, row in enumerate(some, start=count)]
            for name in numbered[0]:
                cells = [row[name] for row in numbered[: end - count]]
                cells = [cell.encode("latin-1", "replace") if isinstance(cell, str) else cell for cell in cells]
                if cells:
                    stream[name][count:end] = np.reshape(cells, (len(cells), *stream[name].shape[1:]))
            count += len(some)
    if count != num_rows:
        partial.unlink()
        raise ValueError(f"{path} was to hold {num_rows} rows, got {count}")
    return partial.rename(path)


@contextlib.contextmanager
def _open(file: Path) -> Iterator[h5py.File]:
    """Opens a file and checks its schema. Raises ValueError if it is not Fashion-Gen's."""
    try:
        stream = h5py.File(file, "r", rdcc_nbytes=CHUNK_CACHE)
    except OSError as error:
        raise _unreadable(file, error) from None
    with stream:
        if missing := [name for name in NEEDED if not isinstance(stream.get(name), h5py.Dataset)]:
            raise ValueError(
                f"{file} is not in Fashion-Gen's schema: it has no dataset {', '.join(map(repr, missing))}; it has "
                f"{', '.join(sorted(stream)) or 'none'} (take the file as its owners give it out)"
            )
        shapes = {name: stream[name].shape for name in SCHEMA if name in stream}
        num_rows = shapes[PRODUCT][:1]
        if odd := [f"{name} {shape}" for name, shape in shapes.items() if shape[:1] != num_rows or not shape]:
            raise ValueError(
                f"{file}: its datasets disagree in the number of rows: {PRODUCT} {shapes[PRODUCT]}, "
                f"{', '.join(odd)} (fetch it again: it was not written to its end)"
            )
        wide = [f"{name} {shape}" for name, shape in shapes.items() if name != IMAGE and shape[1:] not in ((), (1,))]
        if shapes[IMAGE][3:] != (3,) or shapes[IMAGE][1] != shapes[IMAGE][2]:
            wide.append(f"{IMAGE} {shapes[IMAGE]}, which should be [N, S, S, 3]")
        if wide:
            raise ValueError(f"{file}: datasets of another shape than Fashion-Gen's: {', '.join(wide)}")
        yield stream


def _unreadable(file: Path, error: OSError) -> ValueError:
    reason = " ".join(str(error).split())[:200]
    return ValueError(f"{file} is no readable HDF5 file: {reason} (fetch it again: it is damaged or not whole)")


def _cells(dataset: h5py.Dataset, places: Sequence[int]) -> Sequence:
    """The cells of `places`: numbers, str, or pixels."""
    selection = slice(places.start, places.stop) if isinstance(places, range) else np.asarray(places)
    values = dataset[selection]
    if values.ndim == 4:
        return values
    text = h5py.check_string_dtype(dataset.dtype)
    values = values.reshape(len(values)).tolist()
    return [_decoded(value, text.encoding) for value in values] if text else values


def _decoded(value: bytes | str, encoding: str) -> str:
    """Decodes UTF-8 if the file declares it and it is valid; else Latin-1, as in Fashion-Gen's files."""
    if isinstance(value, str):
        return value
    if encoding == "utf-8":
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode()
    return value.decode("latin-1").rstrip("\0")
