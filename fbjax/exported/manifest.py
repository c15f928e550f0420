"""``manifest.json``: the content of an exported folder and the hash of each of its files; standard library alone."""

import hashlib
import json
from pathlib import Path

FILE = "manifest.json"
VERSION = 1  # raised when an older reader would misread a newer folder


def write(folder: Path, content: dict) -> None:
    """Writes "manifest_version", `content` and "files", ``{path: {"sha256", "bytes"}}``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / FILE)
    listed = {
        path.relative_to(folder).as_posix(): {"sha256": digest(path), "bytes": path.stat().st_size} for path in files
    }
    whole = {"manifest_version": VERSION} | content | {"files": listed}
    (folder / FILE).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


def read(folder: str | Path, form: str) -> dict:
    """The manifest of an export in the format `form`, after a check of every file.

    Raises FileNotFoundError or ValueError, in one line, for a missing or changed file or another format.
    """
    folder = Path(folder)
    if not (folder / FILE).is_file():
        raise FileNotFoundError(f"{folder} has no {FILE}: give a folder that fbjax export --format {form} has written")
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        version, found = content["manifest_version"], content["format"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{folder / FILE} is no manifest of fbjax export: export again") from None
    if version != VERSION:
        raise ValueError(f"{folder / FILE} has version {version!r}, this reads {VERSION}: export again with this fbjax")
    if found != form:
        raise ValueError(f"{folder} holds an export of format {found!r}, not {form!r}: use --format {form}")
    for name, expected in content["files"].items():
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing, which {FILE} lists: copy the whole folder again")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise ValueError(f"{path} has {size:,} bytes, {FILE} says {expected['bytes']:,}: copy the folder again")
        if digest(path) != expected["sha256"]:
            raise ValueError(f"{path} is not the file that was exported, by its SHA-256: copy the folder again")
    return content


def digest(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
