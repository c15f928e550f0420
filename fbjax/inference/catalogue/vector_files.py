"""Files of vectors: FILE.parquet, FILE.npz, or a folder of .npy files that any tool can map into memory.

A folder holds ``ids.npy`` [N] str, float32 [N, E] of each unit, such as ``text.npy``, and ``manifest.json``. A file
holds the same; a single unit is called "vector" in Parquet and "vectors" in NPZ, several "text_vector", "text_vectors"
and so on.
"""

import json
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow
import pyarrow.parquet

from fbjax.core.atomic_folder import check_fresh
from fbjax.core.paths import atomic_write

MANIFEST, IDS = "manifest.json", "ids.npy"
METADATA = b"fbjax"  # key of the manifest in a Parquet file's schema
ROWS_AT_ONCE = 2**15  # of a row group


def check_out(out: Path) -> Path:
    """`out`, unless it cannot be written (OSError) or has an unknown ending (ValueError)."""
    if out.suffix not in (".parquet", ".npz", ""):
        raise ValueError(f"--out {out}: give FILE.parquet, FILE.npz, or a folder without an ending, for .npy files")
    if not out.suffix and not read_manifest(out):
        check_fresh("--out", out)
    return out


def holds(out: Path, manifest: dict) -> bool:
    """Whether `out` has the vectors of `manifest`. Raises OSError where it is a folder of others, never overwritten."""
    if read_manifest(out) == manifest:
        return True
    if not out.suffix:
        check_fresh("--out", out)
    return False


def shard_name(out: Path, part: int, of: int) -> Path:
    """``v.parquet -> v-00000-of-00004.parquet``"""
    return out.with_name(f"{out.stem}-{part:05d}-of-{of:05d}{out.suffix}")


def read_manifest(path: Path) -> dict | None:
    """What the vectors at `path` are of; None where there are none of ours."""
    try:
        if path.suffix == ".parquet":
            return json.loads(pyarrow.parquet.read_schema(path).metadata[METADATA])
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                return json.loads(str(arrays["manifest"]))
        return json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None


def array_file(folder: Path, unit: str) -> Path:
    return folder / f"{unit}.npy"


def write_index(folder: Path, manifest: dict, ids: np.ndarray) -> None:
    """Ids, and the manifest, which makes the folder one of vectors."""
    np.save(folder / IDS, ids)
    with atomic_write(folder / MANIFEST) as file:
        file.write_text(json.dumps(manifest, indent=2) + "\n")


def open_folder(folder: Path, mode: Literal["r", "r+"] = "r") -> dict[str, np.memmap]:
    """The memory-mapped vectors [N, E] of each unit in a folder that `write_index` has made one of vectors."""
    units = json.loads((folder / MANIFEST).read_text())["what"]
    return {unit: np.load(array_file(folder, unit), mmap_mode=mode) for unit in units}


def write_file(path: Path, folder: Path) -> None:
    """The vectors in `folder` as one file `path`, by its ending. A part of them is in memory at a time."""
    manifest, ids, vectors = json.loads((folder / MANIFEST).read_text()), np.load(folder / IDS), open_folder(folder)
    form = "{}_" if len(vectors) > 1 else ""
    named = {form.format(unit): array for unit, array in vectors.items()}
    if path.suffix == ".npz":
        arrays = {f"{name}vectors": array for name, array in named.items()}
        about = {"checkpoint_step": manifest["checkpoint_step"], "what": ",".join(vectors)}
        return np.savez(path, ids=ids, **arrays, **about, manifest=json.dumps(manifest))
    columns = {f"{name}vector": array for name, array in named.items()}
    types = {name: pyarrow.list_(pyarrow.float32(), array.shape[1]) for name, array in columns.items()}
    schema = pyarrow.schema({"id": pyarrow.string()} | types, {METADATA: json.dumps(manifest)})
    # vectors neither repeat nor compress
    with pyarrow.parquet.ParquetWriter(path, schema, use_dictionary=False, compression="none") as writer:
        for start in range(0, len(ids), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            cells = [pyarrow.array(ids[part].tolist()), *(_lists(array[part]) for array in columns.values())]
            writer.write_batch(pyarrow.record_batch(cells, schema=schema))


def _lists(vectors: np.ndarray) -> pyarrow.FixedSizeListArray:
    flat = np.ascontiguousarray(vectors).reshape(-1)
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat), vectors.shape[1])
