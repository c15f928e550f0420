"""The image files that a preparation read, with size and time: what has changed since is prepared again."""

import json
from collections.abc import Iterator
from pathlib import Path

from fbjax.core import paths
from fbjax.data.sources.base import DataSource

FILE = "image_files.jsonl"  # a line a file: number of the table, its path from the folder of images, bytes, time
ABSENT = [-1, 0]


def note(source: DataSource, path: Path) -> None:
    """Writes the present state of all image files of `source` to the local file `path`; call it before reading them."""
    with path.open("w", encoding="utf-8") as stream:
        for number, file in enumerate(_tables(source)):
            root = source.image_root(file)
            for name in source.image_names(file):
                stream.write(json.dumps([number, name, *_state(root / name)]) + "\n")


def changed(source: DataSource, path: Path) -> Iterator[Path]:
    """The image files of `source` that are not as noted in `path`.

    Those that are gone do not count: the records hold them.
    """
    if not path.is_file():
        return
    roots = [source.image_root(file) for file in _tables(source)]
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            number, name, *noted = json.loads(line)
            if number < len(roots) and _state(roots[number] / name) not in (noted, ABSENT):
                yield roots[number] / name


def _tables(source: DataSource) -> list[Path]:
    files = (file for files in source.files().values() for file in files)
    return [file for file in files if not paths.is_remote(source.image_root(file))]


def _state(path: Path) -> list[int]:
    """Bytes and time of a file, `ABSENT` where there is none that can be read."""
    try:
        return list(paths.size_and_time(path))
    except (OSError, ValueError):
        return ABSENT
