"""``manifest.json`` of a folder of arrays: what it holds, what that was made of, and the size of each file.

Beside it lie tokenizer.json, skipped.jsonl, and a folder for each split. A split is memory-mapped .npy files: images
(pictures.npy, uint8 [N, S, S, 3], or features.npy, float16 [N, P, C]), and for the texts pieces.npy and word_ids.npy
(flat, cut at offsets.npy) and text.npy (UTF-8, cut at text_offsets.npy). index.npz holds the arrays of `Split`,
attributes.npz the columns that a task predicts.
"""

import contextlib
import json
from pathlib import Path

from fbjax import __version__
from fbjax.config.schema import Config
from fbjax.core.checksums import block_sums, blocks_damage, summed_write
from fbjax.core.paths import is_remote
from fbjax.data.batches.split import Split
from fbjax.data.sources.base import contents, open_source
from fbjax.data.text.wordpiece import Vocabulary

FILE, FORMAT, VERSION = "manifest.json", "fbjax arrays", 3
TOKENIZER, INDEX = "tokenizer.json", "index.npz"
IMAGES = {False: "pictures.npy", True: "features.npy"}  # whether the source gives features -> file
REMEDY = "fbjax prepare --config .. --arrays DIR writes a folder"


def describe(config: Config, splits: dict[str, Split], vocabulary: Vocabulary) -> dict:
    """The manifest of the prepared `splits` of a config, without its files."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "fbjax": __version__,
        "splits": {name: {"products": len(split), "name": split.name} for name, split in splits.items()},
        "settings": settings_of(config),
        "vocabulary": {"setting": config.model.vocabulary, "pieces": vocabulary.size, "sha256": vocabulary.fingerprint},
        "tables": tables_of(config),
        "attributes": list(config.attributes),
        "report": splits["train"].report(),
    }


def settings_of(config: Config) -> dict:
    """{dotted name: value} of the settings that determine the content of the arrays, beside the tables."""
    data, patches = config.data, config.patches
    columns = {f"data.columns.{name}": value for name, value in vars(data.columns).items()}
    del columns["data.columns.more_images"]  # arrays hold one picture of a product
    columns["data.columns.text"] = list(data.columns.text)
    sizes = {f"data.{name}": getattr(data, name) for name in ("num_patches", "feature_size")}
    pictures = {f"patches.{name}": getattr(patches, name) for name in ("image_size", "fit")}
    return {"data.source": data.source, "data.holdout": _holdout(config)} | columns | sizes | pictures


def tables_of(config: Config) -> dict[str, list]:
    """{split: [[name, SHA-256], ..]} of the local product tables that a config names and that are here."""
    found = {}
    for split in ("train", "validation"):
        pattern = getattr(config.data, split)
        if config.data.train and pattern and not is_remote(pattern):  # a store's client may need TensorFlow
            with contextlib.suppress(FileNotFoundError):
                files = open_source(config.data, config.patches.image_size).find(pattern)
                found[split] = [list(content) for content in contents(files, config.data.prepared)]
    return found


def _holdout(config: Config) -> float:
    return 0.0 if config.data.validation else config.data.holdout


def write(folder: Path, content: dict) -> None:
    """Writes the manifest, with all files of `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = {path.relative_to(folder).as_posix(): _facts(path) for path in files}
    with summed_write(folder / FILE) as file:
        file.write_text(json.dumps(content | {"files": listed}, indent=2) + "\n", encoding="utf-8")


def read(folder: str | Path) -> dict:
    """The manifest in `folder`, after a check of every file.

    Raises FileNotFoundError or ValueError, in one line, for no manifest, another version, and a missing or changed
    file.
    """
    if is_remote(folder):
        raise ValueError(f"data.arrays {folder}: arrays are memory-mapped, copy the folder to this machine")
    folder = Path(folder)
    if not (folder / FILE).is_file():
        raise FileNotFoundError(f"data.arrays {folder} has no {FILE}: {REMEDY}")
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        kind = content["format"], content["version"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{folder / FILE} is no manifest of arrays: {REMEDY}") from None
    if kind != (FORMAT, VERSION):
        raise ValueError(f"{folder / FILE} is of {kind[0]}, version {kind[1]}; this reads {FORMAT} {VERSION}: {REMEDY}")
    if found := blocks_damage(folder / FILE):
        raise ValueError(f"{found}: copy the folder again")
    for name, expected in content["files"].items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing, which {FILE} lists: copy the whole folder again")
        if (found := _facts(folder / name)) != expected:
            raise ValueError(
                f"{folder / name} is not the file that was written ({found['bytes']:,} bytes, {FILE} says "
                f"{expected['bytes']:,}, and their checksums): copy the folder again"
            )
    return content


def check_fit(folder: str | Path, content: dict, config: Config) -> None:
    """Raises ValueError with every setting and table in which the arrays of `folder` are not those of `config`.

    Tables that are not here are not compared.
    """
    wanted, theirs = settings_of(config), content["settings"]
    if not config.data.train:  # arrays alone say which products are held out
        wanted["data.holdout"] = theirs["data.holdout"]
    problems = [
        f"{name}: {theirs.get(name)!r} in the arrays, {value!r} in the config"
        for name, value in wanted.items()
        if theirs.get(name) != value
    ]
    for split, files in tables_of(config).items():
        made_of = content["tables"].get(split, [])
        if split in content["tables"] and files != made_of:
            problems.append(f"data.{split}: the arrays are of {_spoken(made_of)}, the config names {_spoken(files)}")
    if problems:
        raise ValueError(
            f"data.arrays {folder} does not hold what the config names:\n  " + "\n  ".join(problems) + "\n"
            "(name the folder that was written for this table and these settings, or write one: fbjax prepare --config "
            ".. --arrays DIR)"
        )


def _spoken(files: list) -> str:
    return ", ".join(f"{name} (SHA-256 {digest[:12]}..)" for name, digest in files)


def _facts(path: Path) -> dict:
    return {"bytes": path.stat().st_size, "crc32": block_sums(path)}
