"""Writes prepared splits as arrays: each picture decoded once, as the split's own pipeline decodes it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fbjax.config.schema import Config
from fbjax.core.atomic_folder import check_fresh, fresh_folder
from fbjax.core.paths import is_remote, reserve
from fbjax.data.arrays import attributes, manifest
from fbjax.data.batches.split import SKIPPED, Split
from fbjax.data.text.wordpiece import Vocabulary

IMAGES_AT_ONCE, TEXTS_AT_ONCE = 256, 8192


def check_folder(folder: str | Path) -> None:
    """Raises OSError or ValueError, before long work, where `folder` can become no folder of arrays."""
    if is_remote(folder):
        raise ValueError(f"--arrays {folder}: arrays are memory-mapped, give a local folder")
    if not (Path(folder) / manifest.FILE).is_file():
        check_fresh("--arrays", folder)


def write_arrays(
    config: Config, splits: dict[str, Split], vocabulary: Vocabulary, folder: str | Path, progress: Callable
) -> bool:
    """Writes the prepared `splits` of `config` to the new or empty `folder`, which appears complete or not at all.

    Returns False where `folder` holds these arrays already. Raises ValueError where it holds others, OSError before
    anything is decoded where the disk has no room.
    """
    check_folder(folder)
    content = manifest.describe(config, splits, vocabulary)
    if (Path(folder) / manifest.FILE).is_file():
        _check_same(folder, manifest.read(folder), content)
        return False
    with fresh_folder("--arrays", folder) as partial:
        images = {}
        for name, split in splits.items():
            (partial / name).mkdir()
            images[name] = _reserved(partial / name / manifest.IMAGES[split.holds_features], config, split)
        for name, split in splits.items():
            _write_texts(partial / name, split)
            batches = _batches(config, split)
            for start, batch in progress(batches, -(-len(split) // IMAGES_AT_ONCE), f"images of {name}, in batches"):
                images[name][start : start + len(batch)] = batch
            images[name].flush()
        attributes.write(config, splits, partial)
        vocabulary.save(partial / manifest.TOKENIZER)
        (partial / SKIPPED).write_bytes((splits["train"].home / SKIPPED).read_bytes())
        manifest.write(partial, content)
    return True


def _check_same(folder: str | Path, there: dict, content: dict) -> None:
    """Raises ValueError with what of two manifests differs."""
    theirs, ours = (c["settings"] | {name: c[name] for name in ("vocabulary", "splits")} for c in (there, content))
    if not {*content["attributes"]} <= {*there.get("attributes", ())}:
        theirs, ours = (c | {"attributes": x.get("attributes", [])} for c, x in ((theirs, there), (ours, content)))
    names = [name for name in ours if theirs.get(name) != ours[name]]
    differing = [f"{name}: {theirs.get(name)!r} there, {ours[name]!r} now" for name in names]
    if differing:
        raise ValueError(
            f"--arrays {folder} holds other arrays:\n  " + "\n  ".join(differing) + "\n"
            "(give another folder, or delete it first)"
        )


def _reserved(path: Path, config: Config, split: Split) -> np.memmap:
    """The file of a split's images, zero as yet, whose space on the disk is claimed."""
    size, data = config.patches.image_size, config.data
    shape, dtype = (size, size, 3), np.uint8
    if split.holds_features:
        shape, dtype = (data.num_patches, data.feature_size), np.float16
    images = np.lib.format.open_memmap(path, "w+", dtype, (len(split), *shape))
    reserve(path, "images")
    return images


def _batches(config: Config, split: Split) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, images) of all batches."""
    rows, patches = np.arange(len(split)), config.patches
    for number, batch in enumerate(split.images(rows, patches.image_size, IMAGES_AT_ONCE, patches.fit)):
        yield number * IMAGES_AT_ONCE, batch


def _write_texts(folder: Path, split: Split) -> None:
    """The index, the pieces of all texts, and the texts."""
    names = ("ids", "groups", "categories", "category_names", "num_pieces", "column_ends")
    names += ("text_hashes", "image_hashes")
    np.savez(folder / manifest.INDEX, **{name: getattr(split, name) for name in names})
    rows, offsets = np.arange(len(split)), _offsets(split.num_pieces)
    np.save(folder / "offsets.npy", offsets)
    flat = [
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.int32, (int(offsets[-1]),))
        for name in ("pieces", "word_ids")
    ]
    for start, end, found in zip(offsets[:-1], offsets[1:], split.pieces(rows), strict=True):
        for array, values in zip(flat, found, strict=True):
            array[start:end] = values
    texts: list[bytes] = []
    for start in range(0, len(rows), TEXTS_AT_ONCE):
        texts += [text.encode() for text in split.strings(rows[start : start + TEXTS_AT_ONCE])]
    np.save(folder / "text.npy", np.frombuffer(b"".join(texts), np.uint8))
    np.save(folder / "text_offsets.npy", _offsets(np.array([len(text) for text in texts])))
    for array in flat:
        array.flush()


def _offsets(lengths: np.ndarray) -> np.ndarray:
    """int64 [N + 1]: where each of N parts of these lengths begins, and the end."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
