"""What the last evaluation over lists has left in a workdir, ``evaluation.json``: figures, and each query's ranking.

Read by reports and comparisons, which answer at once: it imports neither models nor data.
"""

import json
from pathlib import Path

from fbjax.core.paths import as_path, atomic_write

EVALUATION = "evaluation.json"


def read_evaluation(workdir: str | Path) -> dict | None:
    """The last evaluation of a run over lists, or None: {"data", "candidates": their paths or None, "figures",
    "rankings": those of `fbjax.evaluation.protocols.list_figures`}."""
    path = as_path(workdir) / EVALUATION
    return json.loads(path.read_text()) if path.is_file() else None


def write_evaluation(workdir: str | Path, content: dict) -> None:
    """In one rename: a kill leaves the evaluation before."""
    path = as_path(workdir) / EVALUATION
    with atomic_write(path) as file:
        file.write_text(json.dumps(content))
