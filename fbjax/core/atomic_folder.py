"""A folder that is written whole or not at all."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def check_fresh(flag: str, folder: str | Path) -> None:
    """Raises OSError where `folder`, given by `flag`, is a file, is not empty, or has no place to stand in."""
    folder = Path(folder).absolute()
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{flag} {folder} is a file: give a folder that is empty or not there")
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{flag} {folder} is not empty: give a folder that is empty or not there")
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"{flag} {folder}: there is no folder {folder.parent} to put it in")


@contextlib.contextmanager
def fresh_folder(flag: str, folder: str | Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, which takes its name when the block ends and goes when that fails.

    Raises OSError as `check_fresh` does, and with what to do where the disk is full.
    """
    check_fresh(flag, folder)
    folder = Path(folder).absolute()
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir()
        yield partial
        partial.replace(folder)
    except Exception as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise OSError(errno.ENOSPC, f"no space left for {folder}: free some, and run again") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
