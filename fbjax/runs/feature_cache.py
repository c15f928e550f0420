"""Cached patch features: a frozen network run once over all images of a split, kept as one memory-mapped array.

The file is named by network, weights, geometry and images, so that none can be taken for another, and texts and
settings may change without another computation.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np
from filelock import FileLock

from fbjax.core.checksums import blocks_damage, note_blocks
from fbjax.core.console import progress, say
from fbjax.core.paths import is_remote, reserve
from fbjax.data.batches.split import Split
from fbjax.model.patch_features import PatchNetwork, count_live_dimensions
from fbjax.parallel.mesh import pad_rows
from fbjax.runs.run import Run

LOOKED_AT = 4096  # rows of a file that are checked when it is opened: all of most, a gigabyte of Fashion-Gen's 77
FLUSH_SECONDS = 20  # at most so much, or one batch, is done again after a kill


def cached_features(
    records: Split,
    network: PatchNetwork,
    image_size: int,
    folder: str | Path,
    progress: Callable,
    batch_size: int = 32,
    fit: str = "squash",
) -> np.ndarray:
    """Features of every record, float16 [N, P, C], read-only and memory-mapped; computed where there are none yet.

    Of a network of several pictures those that are not there are NaN (`fbjax.model.grids.pictures`).

    Interrupted, it goes on where it was. Raises OSError before it starts where the disk has no room, ValueError where
    the file is another network's or holds NaN or infinity. Features in the records are used as they are.
    """
    if is_remote(folder):
        raise ValueError(f"patch features are memory-mapped: config.data.prepared {folder} must be a local folder")
    folder = Path(folder)
    path = _path(records, network, folder, fit)
    shape = (len(records), network.num_rows, network.feature_size)
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # two runs may want it at once: the second finds it made
            if not path.is_file():
                _make(path, shape, records, network, image_size, progress, batch_size, fit)
    return _checked(path, shape, records.ids, network.num_images)


def _path(records: Split, network: PatchNetwork, folder: Path, fit: str) -> Path:
    fitted = "" if fit == "squash" else f"{fit}-"
    return folder / f"features-{records.digests['images'][:12]}-{fitted}{network.fingerprint}.npy"


def _make(
    path: Path,
    shape: tuple[int, int, int],
    records: Split,
    network: PatchNetwork,
    image_size: int,
    progress: Callable,
    batch_size: int,
    fit: str,
) -> None:
    """Computes the features into `path`, from where an interrupted run left them."""
    unfinished, done_file = path.with_suffix(".partial"), path.with_suffix(".done")
    done = _read_count(done_file) if unfinished.is_file() else 0
    weight = f"{len(records):,} images x {shape[1]} x {shape[2]} x 2 bytes = {math.prod(shape) * 2 / 2**30:.2f} GiB"
    say(f"patch features to cache: {weight} in {path.parent}")
    features = np.lib.format.open_memmap(unfinished, "r+" if done else "w+", np.float16, None if done else shape)
    if not done:
        reserve(unfinished, "patch features")
    apply, batch_size = jax.jit(network.apply), max(1, min(batch_size, len(records) - done))
    rows, num_images = np.arange(done, len(records)), network.num_images
    images_left = (
        records.images(rows, image_size, batch_size, fit)
        if num_images == 1
        else records.several_images(rows, image_size, batch_size, fit, num_images)
    )
    with contextlib.closing(images_left) as batches:
        num_batches, flushed = -(-(len(records) - done) // batch_size), time.monotonic()
        for images in progress(batches, num_batches, f"patch features, batches of {batch_size}"):
            if num_images == 1:
                made = np.asarray(apply(network.params, pad_rows(images, batch_size)))[: len(images)].astype(np.float16)
            else:
                made = _of_several(partial(apply, network.params), *images, batch_size)
            _check_finite(
                made, records.ids[done : done + len(made)], f"patch network {network.fingerprint}", num_images
            )
            features[done : done + len(made)] = made
            done += len(made)
            if time.monotonic() - flushed >= FLUSH_SECONDS:
                features.flush()
                _write_count(done_file, done)
                flushed = time.monotonic()
    features.flush()
    del features
    note_blocks(path, unfinished)
    unfinished.rename(path)
    done_file.unlink(missing_ok=True)


def _of_several(apply: Callable, images: np.ndarray, there: np.ndarray, batch_size: int) -> np.ndarray:
    """Features float16 [b, M P, C] of ``images [b, M, S, S, 3]``, NaN where not `there` [b, M], and nowhere else.

    `apply` gives those of a product's only picture, `batch_size` products at a time.
    """
    b, num_images = there.shape
    parts = [np.asarray(apply(pad_rows(picture, batch_size)))[:b] for picture in images.swapaxes(0, 1)]
    num_patches = parts[0].shape[1] // num_images
    found = np.stack([part[:, :num_patches] for part in parts], axis=1).astype(np.float16)
    found[np.isnan(found)] = np.inf  # a network's NaN is no sign of a missing picture
    found[~there] = np.nan
    return found.reshape(b, num_images * num_patches, -1)


def _checked(path: Path, shape: tuple[int, int, int], ids: np.ndarray, num_images: int = 1) -> np.ndarray:
    """The features in `path`, which may have been copied there: of `shape`, and finite in as many rows as is quick."""
    remedy = "delete it; the next run computes it again"
    if found := blocks_damage(path):
        raise ValueError(f"{found}, by its checksums ({remedy})")
    try:
        features = np.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is no readable features file: {error} ({remedy})") from None
    if features.shape != shape or features.dtype != np.float16:
        raise ValueError(
            f"{path} holds {features.dtype} {list(features.shape)}, expected float16 {list(shape)}: it is another "
            f"network's or another table's ({remedy})"
        )
    for row in np.unique(np.linspace(0, len(features) - 1, min(len(features), LOOKED_AT)).astype(int)):
        _check_finite(features[row : row + 1], ids[row : row + 1], f"{path} ({remedy})", num_images)
    return features


def _check_finite(features: np.ndarray, ids: np.ndarray, source: str, num_images: int = 1) -> None:
    """Raises ValueError with the ids of products that have features [n, P, C] which are no numbers.

    A picture after the first may be NaN as a whole: it is not there.
    """
    pictures = features.reshape(len(features), num_images, -1)
    absent = np.isnan(pictures).all(axis=2) & (np.arange(num_images) > 0)
    bad = ids[~(np.isfinite(pictures).all(axis=2) | absent).all(axis=1)]
    if len(bad):
        raise ValueError(f"features that are not finite, of {', '.join(map(str, bad[:5]))}: from {source}")


def _read_count(path: Path) -> int:
    text = path.read_text() if path.is_file() else ""
    return int(text) if text.isdigit() else 0


def _write_count(path: Path, count: int) -> None:
    """In one rename: a kill leaves the old count or the new one."""
    path.with_suffix(".count").write_text(str(count))
    path.with_suffix(".count").rename(path)


def features_of(run: Run, records: Split) -> np.ndarray | None:
    """Cached features of every record where the run's config has them cached."""
    patches, folder = run.config.patches, run.config.data.prepared
    if patches.mode != "cached":
        return None
    if records.holds_features and records.stored is not None:
        return records.stored
    return cached_features(records, run.patches, patches.image_size, folder, progress, fit=patches.fit)


def ready_features(run: Run, records: Split) -> np.ndarray | None:
    """`features_of` where these exist already, or where products have several pictures, else None."""
    patches, folder = run.config.patches, run.config.data.prepared
    if run.patches.num_images > 1:  # whoever computes them from images reads the first picture alone
        return features_of(run, records)
    if is_remote(folder) or not _path(records, run.patches, Path(folder), patches.fit).is_file():
        return records.stored if patches.mode == "cached" and records.holds_features else None
    return features_of(run, records)


def text_inputs(run: Run, records: Split, rows: np.ndarray) -> np.ndarray:
    """What the run's model takes for the texts of `rows`: framed piece ids, int32 [len(rows), T]."""
    return records.framed_texts(rows, run.vocabulary, run.config.model.text_tokens)


def image_inputs(run: Run, records: Split, rows: np.ndarray, batch_size: int, label: str = "") -> Iterator[np.ndarray]:
    """What the step's patch network takes for `rows`, in batches: images, or their cached features.

    A `label` shows a progress bar.
    """
    features, starts, patches = features_of(run, records), range(0, len(rows), batch_size), run.config.patches
    if features is None:
        batches = records.images(rows, patches.image_size, batch_size, patches.fit)
    else:
        batches = (features[rows[start : start + batch_size]] for start in starts)
    return progress(batches, len(starts), label) if label else batches


def describe(features: np.ndarray) -> str:
    """How many feature dimensions live in a sample of `features`, with a warning where hardly any do."""
    sample = features[np.linspace(0, len(features) - 1, min(len(features), 64)).astype(int)]
    there = sample[~np.isnan(sample[..., 0])]  # several pictures of a product may lack some
    sample = sample if len(there) == sample[..., 0].size else there[None]
    live, size = count_live_dimensions(sample), features.shape[-1]
    line = f"patch features: {features.shape[1]} patches x {size} dimensions, {live} of them live"
    if live < size / 10:
        line += (
            "\nWARNING: hardly any dimension varies between patches: the patches are too small for this network "
            "(use patches.geometry='feature_map', or a larger patches.patch_input_size)"
        )
    return line
