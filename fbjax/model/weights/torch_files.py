"""Reads PyTorch's weight files, `torch.save` of a state dict, without PyTorch: the zip form and the older one.

A file is a pickle of tensors that names storages, and the storages' bytes. The unpickler builds ordered dicts and
tensors alone, so that a file cannot run code (pickle.Unpickler.find_class).
"""

import collections
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the older form
DTYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """{name: array} of a state dict, also one under the key "state_dict" or "model".

    Raises ValueError for a file that holds something else, other errors where it is damaged.
    """
    state = _read_zip(path) if zipfile.is_zipfile(path) else _read_older(path)
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}: save model.state_dict()")
    state = next((state[key] for key in ("state_dict", "model") if isinstance(state.get(key), dict)), state)
    return {name: value for name, value in state.items() if isinstance(value, np.ndarray)}


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        pickled = next((name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]), None)
        if pickled is None:
            raise ValueError("it is a zip file without PyTorch's data.pkl")
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("its numbers are big-endian: save it again on a little-endian machine")

        def storage(key: str, dtype: np.dtype, size: int) -> np.ndarray:
            return np.frombuffer(archive.read(f"{folder}data/{key}"), dtype, size)

        with archive.open(pickled) as stream:
            return _Unpickler(stream, storage).load()


def _read_older(path: Path) -> Any:
    """The storages' bytes come last, so that tensors are made of arrays that are filled in afterwards."""
    storages, limit = {}, path.stat().st_size

    def storage(key: str, dtype: np.dtype, size: int) -> np.ndarray:
        if not 0 <= size * dtype.itemsize <= limit:
            raise ValueError(f"it names {size} numbers and ends before them")
        return storages.setdefault(key, np.zeros(size, dtype))

    with open(path, "rb") as stream:
        if _Unpickler(stream, storage).load() != MAGIC or _Unpickler(stream, storage).load() != PROTOCOL:
            raise ValueError("it does not begin as torch.save writes")
        if not _Unpickler(stream, storage).load().get("little_endian", True):
            raise ValueError("its numbers are big-endian: save it again on a little-endian machine")
        state, keys = (_Unpickler(stream, storage).load() for _ in range(2))
        for key in keys:
            size = int.from_bytes(stream.read(8), "little")
            if size != storages[key].size or stream.readinto(storages[key].view(np.uint8)) != storages[key].nbytes:
                raise ValueError("it ends too early")
    return state


class _Unpickler(pickle.Unpickler):
    """Unpickles containers, numbers, strings and tensors; anything else is an error before it is built.

    Neither the names of storages nor the builders have state that a pickle could change (opcode BUILD).
    """

    def __init__(self, stream: BinaryIO, storage: Callable[[str, np.dtype, int], np.ndarray]):
        super().__init__(stream, encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in DTYPES:
            return name
        if module == "torch._utils" and name in _BUILDERS:
            return _BUILDERS[name]
        raise ValueError(f"it holds Python objects ({module}.{name}), no weights alone: save model.state_dict()")

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, storage, key, _, size, *view = pid
        if kind != "storage" or storage not in DTYPES or any(view):
            raise ValueError(f"it holds a {kind} of {storage}, no weights alone: save model.state_dict()")
        return self._storage(key, DTYPES[storage], size)


class _Tensor:
    """Builds a tensor as a view of its storage; offset and strides in numbers.

    Raises ValueError where it would reach past the storage's ends.
    """

    __slots__ = ()

    def __call__(self, storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *_) -> np.ndarray:
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if min(offset, *shape, *strides, 0) < 0 or (math.prod(shape) and last >= storage.size):
            raise ValueError(f"a tensor of shape {tuple(shape)} reaches past the numbers stored for it")
        strides = [stride * storage.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides, writeable=False)


class _Parameter:
    """Builds a parameter: its tensor."""

    __slots__ = ()

    def __call__(self, tensor: np.ndarray, *_) -> np.ndarray:
        return tensor


_BUILDERS = {"_rebuild_tensor_v2": _Tensor(), "_rebuild_tensor": _Tensor(), "_rebuild_parameter": _Parameter()}
