"""Folders: which tables one stands for, and folders of pictures, one for each class (Hugging Face's imagefolder)."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from fbjax.core import paths
from fbjax.data.sources.pictures import IMAGE_NAME
from fbjax.data.sources.readers.base import Table

SPLITS = re.compile(r"(train|training|validation|valid|val|dev|test|eval)(?![a-z])", re.IGNORECASE)
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # imagefolder: a row a picture, with its file_name


class ImageFolder(Table):
    """A folder of class folders of pictures: a row for each picture, in the order of the paths."""

    def columns(self) -> list[str]:
        return ["id", "file_name", "label", "name"]

    def rows(self, names: set[str] | None = None) -> Iterator[dict]:
        for place, folders, files in os.walk(self.path):
            folders.sort()
            within = Path(place).relative_to(self.path)
            for name in sorted(files):
                if within.parts and IMAGE_NAME.match(name):
                    file = within / name
                    words = re.sub(r"[\W_]+", " ", file.stem).strip()
                    label, identity = within.name, file.with_suffix("").as_posix()
                    yield {"id": identity, "file_name": file.as_posix(), "label": label, "name": words}

    @property
    def folder(self) -> Path:
        return self.path

    def about(self) -> tuple[str, list[str]]:
        return "a folder of pictures: the folder of each is its label, its file's name its name", []


def tables_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files that a folder stands for, or the folder itself if it holds class folders of pictures.

    `suffixes` are those of tables. Raises ValueError with the remedy if it holds none, or several that differ.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        raise ValueError(f"{folder} holds the splits {', '.join(splits)}: name one, such as {folder / splits[0]}")
    if (folder / "state.json").is_file():  # Hugging Face's save_to_disk
        state = json.loads((folder / "state.json").read_text())
        return [folder / file["filename"] for file in state["_data_files"]]
    if metadata := next((folder / name for name in METADATA if (folder / name).is_file()), None):
        return [metadata]
    inside = sorted(folder.iterdir(), key=lambda path: path.name)
    files = [path for path in inside if path.name.lower().endswith(suffixes) and path.is_file()]
    if not files and (folder / "data").is_dir() and not _has_pictures(folder / "data"):
        return tables_in(folder / "data", suffixes)  # a data set of Hugging Face's hub
    if len({re.sub(r"\d+", "0", path.name) for path in files}) > 1:  # no shards of one table
        shown = ", ".join(path.name for path in files[:6]) + (", .." if len(files) > 6 else "")
        raise ValueError(f"{folder} holds several tables: {shown}. Name one, or a glob such as {_glob(files)}")
    if files:
        return files
    folders = [path for path in inside if path.is_dir()]
    splits = [path for path in folders if SPLITS.fullmatch(path.name)]
    if splits and len(splits) == len(folders):
        raise ValueError(
            f"{folder} holds the splits {', '.join(s.name for s in splits)}: name one, such as {splits[0]}"
        )
    if not paths.is_remote(folder) and any(map(_has_pictures, folders)):
        return [folder]
    raise ValueError(
        f"{folder} holds neither a table ({', '.join(suffixes[:4])}, ..) nor folders of pictures, one for each category"
    )


def _has_pictures(folder: Path) -> bool:
    return any(IMAGE_NAME.match(path.name) for path in folder.iterdir())


def _glob(files: list[Path]) -> str:
    """A glob of the shards of a table, or of the tables of its split; of training, if there are such."""
    file = max(files, key=lambda path: path.name.lower().startswith("train"))
    split = SPLITS.match(file.name)
    return str(file.with_name(f"{split[0]}*{file.suffix}")) if split else repr(str(file))
