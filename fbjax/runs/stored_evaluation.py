"""What the last evaluations have left in a workdir: figures, and the rank or ranking of each query.

``evaluation.json`` is of lists, ``gallery.json`` of a whole gallery, ``log.json`` of a log's queries,
``attributes.json`` of attributes, ``captions.json`` of captions. Read by reports and comparisons, which answer at once:
it imports neither models nor data.
"""

import json
from pathlib import Path

from fbjax.core.paths import as_path, atomic_write

EVALUATION, GALLERY, LOG, ATTRIBUTES = "evaluation.json", "gallery.json", "log.json", "attributes.json"
CAPTIONS = "captions.json"


def read_evaluation(workdir: str | Path) -> dict | None:
    """The last evaluation of a run over lists, or None: {"data", "candidates": their paths or None,
    "records_sha256": of the products, "figures", "rankings": those of `fbjax.evaluation.protocols.list_figures`}."""
    return _read(workdir, EVALUATION)


def write_evaluation(workdir: str | Path, content: dict) -> None:
    _write(workdir, EVALUATION, content)


def read_calibration(workdir: str | Path, step: int) -> tuple[float, float]:
    """Temperature and bias of the match scores of checkpoint `step`. Raises ValueError where none were fitted."""
    figures = (read_evaluation(workdir) or {}).get("figures", {})
    fitted = figures.get("matching", {}).get("calibration")
    if not fitted or figures["checkpoint_step"] != step:
        raise ValueError(
            f"the match scores of checkpoint {step} in {workdir} are not calibrated: run fbjax evaluate --workdir "
            f"{workdir} --step {step} --protocol matching (for a run with the task tia)"
        )
    return fitted["temperature"], fitted["bias"]


def read_gallery(workdir: str | Path) -> dict | None:
    """The last evaluation of a run over a whole gallery, or None: {"checkpoint_step", "ids_sha256": of the gallery's
    products, "figures": those of the protocol, "ranks": those of `fbjax.evaluation.galleries.gallery.full_figures`}."""
    return _read(workdir, GALLERY)


def write_gallery(workdir: str | Path, content: dict) -> None:
    _write(workdir, GALLERY, content)


def read_log(workdir: str | Path) -> dict | None:
    """The last evaluation of a run over the events of a log, or None: {"checkpoint_step", "figures", "ranks": those of
    `fbjax.evaluation.galleries.log.log_figures`}."""
    return _read(workdir, LOG)


def write_log(workdir: str | Path, content: dict) -> None:
    _write(workdir, LOG, content)


def read_attributes(workdir: str | Path) -> dict | None:
    """The last evaluation of a run's attributes, or None: {"checkpoint_step", "records_sha256", "data", "figures",
    "predictions": those of `fbjax.evaluation.recognition.attributes.predictions_of`}."""
    return _read(workdir, ATTRIBUTES)


def write_attributes(workdir: str | Path, content: dict) -> None:
    _write(workdir, ATTRIBUTES, content)


def read_captions(workdir: str | Path) -> dict | None:
    """The last evaluation of a run's captions, or None: {"checkpoint_step", "records_sha256", "data", "figures",
    "captions": [[id, text, caption, its score], ..]}."""
    return _read(workdir, CAPTIONS)


def write_captions(workdir: str | Path, content: dict) -> None:
    _write(workdir, CAPTIONS, content)


def _read(workdir: str | Path, name: str) -> dict | None:
    path = as_path(workdir) / name
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, fbjax evaluate writes it anew") from None


def _write(workdir: str | Path, name: str, content: dict) -> None:
    """In one rename: a kill leaves the evaluation before."""
    with atomic_write(as_path(workdir) / name) as file:
        file.write_text(json.dumps(content))
