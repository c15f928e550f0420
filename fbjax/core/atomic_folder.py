"""A folder that appears complete or not at all."""

import contextlib
import errno
import glob
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path


def check_fresh(flag: str, folder: str | Path) -> None:
    """Raises OSError where `folder`, the value of `flag`, is a file, is not empty, or has no parent folder."""
    folder = Path(folder).absolute()
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{flag} {folder} is a file: give a new or empty folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{flag} {folder} is not empty: give a new or empty folder")
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"{flag} {folder}: there is no folder {folder.parent}; create it first")


@contextlib.contextmanager
def fresh_folder(flag: str, folder: str | Path) -> Iterator[Path]:
    """A temporary folder, renamed to `folder` at the end of the block and deleted after an error.

    Those of processes of this machine that were killed are deleted too. Raises OSError as `check_fresh` does, and with
    the remedy where the disk is full.
    """
    check_fresh(flag, folder)
    folder = Path(folder).absolute()
    started = f".{folder.name}.{socket.gethostname()}"
    for left in folder.parent.glob(f"{glob.escape(started)}.*.partial"):
        if not _is_alive(left.suffixes[-2].removeprefix(".")):
            shutil.rmtree(left, ignore_errors=True)
    partial = folder.with_name(f"{started}.{os.getpid()}.partial")
    try:
        partial.mkdir()
        yield partial
        partial.replace(folder)
    except Exception as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise OSError(errno.ENOSPC, f"no space left for {folder}: free some space and run again") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_alive(process: str) -> bool:
    """Whether there is a process of that number; yes where that cannot be known."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):
        return True
    return True
