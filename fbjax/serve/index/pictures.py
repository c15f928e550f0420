"""The pictures of an indexed catalogue, as files named by content: a page shows them, and no path leads elsewhere."""

import contextlib
import hashlib
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from fbjax.core.paths import atomic_write

FOLDER = "pictures"  # in the folder of an index
RECENT = 3600  # seconds: another process may be about to write the product of a new picture
NAME = re.compile(r"[0-9a-f]{32}")


class Pictures:
    """Encoded pictures in a folder, each under a name that is a hash of its bytes."""

    def __init__(self, folder: Path):
        self._folder = folder

    @classmethod
    def open(cls, folder: str, location: str | Path) -> Self:
        """Those in `folder`, "" for the one in the index at `location`. Raises OSError where it takes no file."""
        pictures = cls(Path(folder) if folder else Path(location) / FOLDER)
        pictures._folder.mkdir(parents=True, exist_ok=True)
        return pictures

    def add(self, picture: bytes) -> str:
        """Keeps `picture`; its name, "" for none."""
        if not picture:
            return ""
        name = hashlib.sha256(picture).hexdigest()[:32]
        if not (path := self._path(name)).exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as partial:
                partial.write_bytes(picture)
        return name

    def read(self, name: str) -> bytes:
        """The picture of this name, b"" where there is none. Other paths than a picture's name are no name."""
        if not NAME.fullmatch(name) or not (path := self._path(name)).is_file():
            return b""
        return path.read_bytes()

    def has(self, name: str) -> bool:
        """Whether the picture of this name is there."""
        return bool(NAME.fullmatch(name)) and self._path(name).is_file()

    def keep(self, names: Iterable[str]) -> None:
        """Deletes all pictures but these, and what was made of them; other files stay, and what was just written."""
        kept, recent = set(names), time.time() - RECENT
        made = self._folder.parent.glob(f"{self._folder.name}-*/??/*.npy")
        for path in (*self._folder.glob("??/*"), *made):
            name = path.name.removesuffix(".npy")
            if NAME.fullmatch(name) and path.parent.name == name[:2] and name not in kept:
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_mtime < recent:
                        path.unlink()

    def remove(self, name: str) -> None:
        """Deletes a picture, if it is there."""
        if self.has(name):
            self._path(name).unlink(missing_ok=True)

    def beside(self, name: str) -> Path:
        """A folder of this name, for what is made of the pictures."""
        return self._folder.with_name(f"{self._folder.name}-{name}")

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / name
