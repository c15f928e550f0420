"""Fashion-Gen's own files: two HDF5 tables, a row for each photo of a product (the paper, section 4.1).

Owns where they lie, their schema and how they are read, a stretch of rows at a time; knows nothing of products, records
or models. To the rest an ``.h5`` file is a table like any other: its columns are the datasets of `SCHEMA` under their
own names, and `PHOTO`, which tells photos of one product apart.
"""

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

SUFFIX = ".h5"
PREFIX = "fashiongen:"  # of what config.data.train and config.data.validation name the two files by
FILES = {"train": "fashiongen_256_256_train.h5", "validation": "fashiongen_256_256_validation.h5"}
PRODUCT, POSE, IMAGE, PHOTO = "input_productID", "input_pose", "input_image", "photo"
WORDS = ("brand", "category", "composition", "concat_description", "department", "description", "gender", "name")
WORDS = tuple(f"input_{name}" for name in (*WORDS, "pose", "season", "subcategory"))
NUMBERS = ("index", "index_2", PRODUCT, "input_msrpUSD")
SCHEMA = (*NUMBERS, *WORDS, IMAGE)
NEEDED = (PRODUCT, POSE, IMAGE)  # without these a file is another thing; any other column is missed where it is mapped
ROWS_AT_ONCE, IMAGES_AT_ONCE = 4096, 64
CHUNK_CACHE = 2**26  # bytes, so that a compressed chunk of images is unpacked once
INSTRUCTIONS = f"""\
Fashion-Gen is given out by its owners only (https://fashion-gen.com). Put {FILES["train"]} and
{FILES["validation"]} into the folder config.data.manual_dir, or its subfolder fashiongen."""


def is_named(pattern: str) -> bool:
    """Whether `pattern` is "fashiongen:train" or the like rather than a path."""
    return str(pattern).startswith(PREFIX)


def find(name: str, manual_dir: str = "") -> Path:
    """The file that "fashiongen:train" or "fashiongen:validation" names in `manual_dir` or its subfolder fashiongen/.

    `manual_dir` "": where TFDS looks for data that nobody may hand on. Raises FileNotFoundError with what to do.
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
    """The datasets of `SCHEMA` that the file has, and `PHOTO`."""
    with _open(file) as stream:
        return [PHOTO, *(name for name in SCHEMA if name in stream)]


def count_rows(file: Path) -> int:
    with _open(file) as stream:
        return len(stream[PRODUCT])


def read_rows(file: Path, names: set[str] | None = None, places: Sequence[int] | None = None) -> Iterator[dict]:
    """Rows as dicts of the columns `names` (None: all), of `places` only where given, in rising order.

    Text is str, numbers are Python's, an image is an array [S, S, 3] as it is stored. Images are read only where they
    are asked for, `IMAGES_AT_ONCE` at a time. Raises ValueError where the file turns out to be damaged.
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
    """A file of the same schema from `num_rows` rows, images uint8 [side, side, 3]: for data of one's own.

    All rows have the same columns; those that they lack are empty or 0. Raises ValueError where there are not
    `num_rows` of them.
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
    """The file, its schema checked; ValueError where it is none of Fashion-Gen's."""
    try:
        stream = h5py.File(file, "r", rdcc_nbytes=CHUNK_CACHE)
    except OSError as error:
        raise _unreadable(file, error) from None
    with stream:
        missing = [name for name in NEEDED if not isinstance(stream.get(name), h5py.Dataset)]
        if missing:
            raise ValueError(
                f"{file} is not in Fashion-Gen's schema: it has no dataset {', '.join(map(repr, missing))}; it has "
                f"{', '.join(sorted(stream)) or 'none'} (take the file as its owners give it out)"
            )
        shapes = {name: stream[name].shape for name in SCHEMA if name in stream}
        num_rows = shapes[PRODUCT][:1]
        odd = [f"{name} {shape}" for name, shape in shapes.items() if shape[:1] != num_rows or not shape]
        if odd:
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
    """The cells of `places` as the rows hold them."""
    stretch = isinstance(places, range)
    values = dataset[places.start : places.stop] if stretch else dataset[np.asarray(places)]
    if values.ndim == 4:
        return values
    text = h5py.check_string_dtype(dataset.dtype)
    values = values.reshape(len(values)).tolist()
    return [_decoded(value, text.encoding) for value in values] if text else values


def _decoded(value: bytes | str, encoding: str) -> str:
    """Fashion-Gen's bytes are Latin-1, whatever the file says of them; text that says it is UTF-8, and is, stays so."""
    if isinstance(value, str):
        return value
    if encoding == "utf-8":
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode()
    return value.decode("latin-1").rstrip("\0")
