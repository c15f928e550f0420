"""Reads arrays by name from common weight files, and writes them to an .npz."""

import zipfile
from pathlib import Path

import flax.traverse_util
import numpy as np

from fbjax.model.weights.onnx_files import read_onnx
from fbjax.model.weights.torch_files import read_torch

FORMATS = "an .npz, .safetensors, .pth (.pt, .bin: PyTorch), .onnx or .h5 (Keras) file"


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Every array of a weight file, float32, by its name: PyTorch's without "module.", Keras' as "layer/variable".

    Raises ValueError for a file that is not of the format of its ending.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise ValueError(f"{path} has no known format of weights: give it as {FORMATS}")
    read, title = READERS[path.suffix]
    try:
        arrays = {name: np.asarray(array, np.float32) for name, array in read(path).items()}
    except Exception as error:  # the readers raise many types for a damaged file
        reason = _other_content(path) or (str(error).splitlines() or ["it ends too early"])[0]
        raise ValueError(f"{path} is not {title} file of weights: {reason}") from None
    if not arrays:
        raise ValueError(f"{path} holds no arrays")
    return {name.removeprefix("module."): array for name, array in arrays.items()}


def write_npz(path: str | Path, params: dict) -> None:
    """Writes a network's parameters with fbjax's names; `read_arrays` reads them."""
    arrays = flax.traverse_util.flatten_dict(params, sep="/")
    np.savez(path, **{name: np.asarray(array) for name, array in arrays.items()})


def _read_npz(path: Path) -> dict:
    with zipfile.ZipFile(path), np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def _read_safetensors(path: Path) -> dict:
    from safetensors.flax import load_file  # NumPy's has no bfloat16

    return load_file(path)


def _read_keras(path: Path) -> dict:
    import h5py

    arrays = {}

    def take(name: str, item) -> None:
        if isinstance(item, h5py.Dataset):
            *parents, variable = name.split("/")
            arrays["/".join([*parents[-1:], variable.removesuffix(":0")])] = item[()]

    with h5py.File(path) as file:
        file.get("model_weights", file).visititems(take)
    if any(name.startswith("vars/") for name in arrays):
        raise ValueError(
            "Keras 3's save_weights numbers layers in place of naming them: save the whole model, model.save('x.h5')"
        )
    return arrays


READERS = {  # ending -> reader, and the name of the format in errors
    ".npz": (_read_npz, "an .npz"),
    ".safetensors": (_read_safetensors, "a safetensors"),
    **dict.fromkeys((".pth", ".pt", ".bin"), (read_torch, "a PyTorch")),
    ".onnx": (read_onnx, "an .onnx"),
    **dict.fromkeys((".h5", ".hdf5"), (_read_keras, "a Keras .h5")),
}


def _other_content(path: Path) -> str:
    """The content of a file that a failed download left, by its first bytes; else ""."""
    with open(path, "rb") as stream:
        head = stream.read(64).lstrip().lower()
    if not head:
        return "it is empty"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS (fetch the file itself: git lfs pull)"
    return "it is a web page (download the file again)" if head.startswith((b"<!doctype", b"<html", b"<?xml")) else ""
