"""Finds image files that bear the ids of a table which has no column of their paths."""

import itertools
from pathlib import Path

from fbjax.config.data import Columns
from fbjax.data.inspection.column_roles import folders_beside
from fbjax.data.sources.tables import image_cell

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".JPG")
FIRST_LETTERS = (0, 1, 2, 3, 4)  # of the id, which name a subfolder
NUM_TRIED, FEWEST = 40, 0.5  # rows, and the share of them that needs a file


def path_by_id(id_column: str, rows: list[dict], root: Path) -> tuple[str, ...]:
    """A value of config.data.columns.image such as ``images/{article_id:.3}/{article_id}.jpg``; () without files."""
    if set(id_column) & set("{}:!"):
        return ()
    rows = rows[:: -(-len(rows) // NUM_TRIED) or 1]
    beside = [folder.name for folder in folders_beside(root) if folder.parent == root and "{" not in folder.name]
    prefixes = ["", *(f"{name}/" for name in beside)]
    for prefix, letters, suffix in itertools.product(prefixes, FIRST_LETTERS, SUFFIXES):
        subfolder = f"{{{id_column}:.{letters}}}/" if letters else ""
        path = f"{prefix}{subfolder}{{{id_column}}}{suffix}"
        # a path that is right has a file for one of the first rows: only then are the others tried
        if _share_found(path, rows[:4], root) and _share_found(path, rows, root) > FEWEST:
            return (path,)
    return ()


def _share_found(path: str, rows: list[dict], root: Path) -> float:
    names = [image_cell(row, Columns(image=path)) for row in rows]
    return sum(_is_file(root, name) for name in names if name) / max(len(names), 1)


def _is_file(root: Path, name: str) -> bool:
    try:
        return (root / name).is_file()
    except (OSError, ValueError):
        return False
