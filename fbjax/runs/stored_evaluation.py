"""What the last evaluations have left in a workdir: figures, and the rank or ranking of each query.

``evaluation.json`` is of lists, ``gallery.json`` of a whole gallery. Read by reports and comparisons, which answer at
once: it imports neither models nor data.
"""

import json
from pathlib import Path

from fbjax.core.paths import as_path, atomic_write

EVALUATION, GALLERY = "evaluation.json", "gallery.json"


def read_evaluation(workdir: str | Path) -> dict | None:
    """The last evaluation of a run over lists, or None: {"data", "candidates": their paths or None, "figures",
    "rankings": those of `fbjax.evaluation.protocols.list_figures`}."""
    return _read(workdir, EVALUATION)


def write_evaluation(workdir: str | Path, content: dict) -> None:
    _write(workdir, EVALUATION, content)


def read_gallery(workdir: str | Path) -> dict | None:
    """The last evaluation of a run over a whole gallery, or None: {"checkpoint_step", "ids_sha256": of the gallery's
    products, "figures": those of the protocol, "ranks": those of `fbjax.evaluation.gallery.full_figures`}."""
    return _read(workdir, GALLERY)


def write_gallery(workdir: str | Path, content: dict) -> None:
    _write(workdir, GALLERY, content)


def _read(workdir: str | Path, name: str) -> dict | None:
    path = as_path(workdir) / name
    return json.loads(path.read_text()) if path.is_file() else None


def _write(workdir: str | Path, name: str, content: dict) -> None:
    """In one rename: a kill leaves the evaluation before."""
    with atomic_write(as_path(workdir) / name) as file:
        file.write_text(json.dumps(content))
