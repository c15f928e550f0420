"""One training at a time in a workdir: the lock that a training holds, which its death releases."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from fbjax.core import paths
from fbjax.parallel.distributed import is_first

LOCK, HOLDER = ".train.lock", ".train.holder"


@contextlib.contextmanager
def claimed(workdir: str | Path) -> Iterator[None]:
    """Makes `workdir` and holds it for the block; of a run of many processes, the first one does.

    Raises ValueError with host and process where another training holds it, OSError where it cannot be written. A store
    has no locks: two trainings there are not told apart.
    """
    workdir = paths.as_path(workdir)
    _check_writable(workdir)
    if paths.is_remote(workdir) or not is_first():
        yield
        return
    lock, holder = FileLock(workdir / LOCK, timeout=0), workdir / HOLDER
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"another training is at work in {workdir}: {_read(holder)}; wait for its end, stop it, or use another "
            "--workdir"
        ) from None
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink()
        lock.release()


def _read(holder: Path) -> str:
    """Who holds the lock; between the lock and the note, nobody has said."""
    try:
        return holder.read_text()
    except OSError:
        return "it has just begun"


def _check_writable(workdir: Path) -> None:
    if paths.is_remote(workdir) and not str(workdir).startswith("gs://"):
        raise ValueError(f"workdir {workdir}: TensorBoard writes to folders and gs:// only (use one of those)")
    probe = workdir / f".probe-{os.getpid()}"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x" * 4096)
    except OSError as error:
        raise OSError(error.errno, f"cannot write to workdir {workdir}: {error.strerror or error}") from None
    except Exception as error:  # of a store's client
        raise OSError(f"cannot write to workdir {workdir}: {error}") from None
    finally:
        with contextlib.suppress(Exception):
            probe.unlink()
