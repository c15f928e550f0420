"""Readers of tables, a file for each format. They know files, encodings and delimiters, not the meaning of a column."""

from pathlib import Path

from fbjax.core import paths
from fbjax.data.sources import fashiongen
from fbjax.data.sources.readers import encodings, excel, folder
from fbjax.data.sources.readers.base import Reading, Table
from fbjax.data.sources.readers.columnar import Arrow, Parquet
from fbjax.data.sources.readers.hdf5 import Hdf5
from fbjax.data.sources.readers.jsonl import Json
from fbjax.data.sources.readers.text import Text

TEXTS = {".csv": Text, ".tsv": Text, ".jsonl": Json, ".json": Json, ".ndjson": Json}  # may be packed
FORMATS = TEXTS | {".parquet": Parquet, ".arrow": Arrow, ".feather": Arrow, fashiongen.SUFFIX: Hdf5}
FORMATS |= dict.fromkeys(excel.SUFFIXES, excel.Sheet)
PLAIN = Reading()
REMEDIES = {
    ".numbers": "export it as CSV (File, Export To, CSV in UTF-8)",
    ".zip": "unpack it, and name the table inside",
    ".tar": "unpack it, and name the table inside",
    ".xml": "convert it to CSV, TSV or JSON Lines",
    ".txt": "name it .tsv or .csv",
    ".pkl": "write it as Parquet",
}


def find_tables(pattern: str) -> list[Path]:
    """The tables of a path, a glob or a folder, sorted; [] if there is none. Raises ValueError on another format."""
    suffixes = tuple(FORMATS) + tuple(text + packed for text in TEXTS for packed in encodings.SUFFIXES)
    found = paths.find(pattern)
    if len(found) == 1 and found[0].is_dir():
        return folder.tables_in(found[0], suffixes)
    for file in found:
        _format(file)
    return found


def open_table(path: Path, reading: Reading = PLAIN) -> Table:
    """The reader of a table. Raises ValueError on an unknown format."""
    return _format(path)(path, reading)


def _format(path: Path) -> type[Table]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] and suffixes[-1] in encodings.SUFFIXES
    suffix = (suffixes[-2:-1] if packed else suffixes[-1:]) or [""]
    found = (TEXTS if packed else FORMATS).get(suffix[0])
    if found is None and path.is_dir():
        return folder.ImageFolder
    if found is None and packed and suffix[0] in FORMATS:
        raise ValueError(f"{path} is packed: unpack it, only {', '.join(TEXTS)} are read packed")
    if found is None:
        remedy = next((f": {REMEDIES[name]}" for name in suffixes if name in REMEDIES), "")
        raise ValueError(f"{path} is none of {', '.join(FORMATS)}{remedy}")
    return found
