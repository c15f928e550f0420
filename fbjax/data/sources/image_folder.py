"""Finds and reads image files: regular files of a bounded size, and those of a table within its folder of images."""

import contextlib
import dataclasses
import functools
import posixpath
import urllib.parse
from pathlib import Path, PurePosixPath

from fbjax.core import paths

MAX_IMAGE_BYTES = 2**28
OUTSIDE = "image outside data.image_root: set that to a folder that holds all images, or data.images_outside to true"


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """Where a table's image paths lie: `root`, to which they are relative.

    Without `outside`, no file outside `root` is read: by an absolute path, by "..", or by a link that leaves it.
    """

    root: Path
    outside: bool = False

    def named(self, name: str) -> str:
        """The path from `root` that `name` means: of the file that `find` finds, if there is one."""
        try:
            path = self._there(name)
        except (OSError, ValueError):
            return _plain(name)
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def find(self, name: str) -> Path:
        """The regular file of a path, which may be a Windows path or a file:// URL.

        Raises FileNotFoundError for none, OSError for a folder or a device, ValueError for a file outside.
        """
        path = self._there(name)
        if not self.outside and not _resolved(path).is_relative_to(self._resolved_root):
            raise ValueError(OUTSIDE)
        return path

    def _there(self, name: str) -> Path:
        name, there = _plain(name), False
        for written in (name, name.replace("\\", "/")):
            path = paths.as_path(str(self.root / written))  # an absolute name leads out of a store
            with contextlib.suppress(OSError, ValueError):  # NUL, half a surrogate pair, too long a name
                if path.is_file():
                    return path
                there = there or path.exists()
        raise OSError(f"{name} is no file") if there else FileNotFoundError(name)  # a folder, or an endless device

    @functools.cached_property
    def _resolved_root(self) -> PurePosixPath:
        return _resolved(self.root)


def read_image_file(path: Path) -> bytes:
    """The bytes of a regular file.

    Raises ValueError for more than `MAX_IMAGE_BYTES` and for a size of 0, which a kernel's endless files have too.
    """
    size = paths.size_and_time(path)[0]
    if size > MAX_IMAGE_BYTES:
        raise ValueError(f"image file of more than {MAX_IMAGE_BYTES // 2**20} MiB")
    if not size:
        raise ValueError("empty image file")
    return path.read_bytes()


def _plain(name: str) -> str:
    """A path without the form of a file:// URL."""
    if not name.lower().startswith("file://"):
        return name
    return urllib.parse.unquote(name[len("file://") :].removeprefix("localhost"))


def _resolved(path: Path) -> PurePosixPath:
    """`path` without "..", and without links where it is local."""
    return PurePosixPath(posixpath.normpath(str(path)) if paths.is_remote(path) else path.resolve())
