"""Records on their way into TFDS's files, in their order and in little memory.

TFDS sorts a split's records by their keys in memory, all at once where the keys are row numbers. Ours come sorted.
"""

import contextlib
import struct
import tempfile
from collections.abc import Iterator

from tensorflow_datasets.core import writer

from fbjax.core.paths import is_remote

HEAD = struct.Struct("<QQ")  # key and bytes of a record
BUFFER = 2**20


class InOrder:
    """In place of TFDS's `Shuffler`: records wait in a temporary file and come back in the order of their arrival."""

    def __init__(self, files: contextlib.ExitStack, dirpath):
        place = None if is_remote(dirpath) else dirpath
        self._file = files.enter_context(tempfile.TemporaryFile(dir=place, buffering=BUFFER))
        self.size = self.num_examples = 0

    @property
    def bucket_lengths(self) -> list[int]:
        return [self.num_examples]

    def add(self, key: int, data: bytes) -> None:
        self._file.write(HEAD.pack(key, len(data)))
        self._file.write(data)
        self.size += len(data)
        self.num_examples += 1

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        self._file.seek(0)
        for _ in range(self.num_examples):
            key, length = HEAD.unpack(self._file.read(HEAD.size))
            yield key, self._file.read(length)


@contextlib.contextmanager
def records_in_order() -> Iterator[None]:
    """Within the block, TFDS's writers take records as `InOrder`."""
    theirs = writer.shuffle.Shuffler
    with contextlib.ExitStack() as files:
        writer.shuffle.Shuffler = lambda dirpath, **_: InOrder(files, dirpath)
        try:
            yield
        finally:
            writer.shuffle.Shuffler = theirs
