"""``fbjax import``: turns a folder of another form into a workdir, whose weights are a checkpoint of step 0."""

from collections.abc import Callable
from pathlib import Path

from fbjax.config.schema import Config
from fbjax.core.atomic_folder import check_fresh
from fbjax.export.importing import own, towers
from fbjax.model.weights.clip_folder import described


def import_checkpoint(
    folder: str | Path, workdir: str | Path, say: Callable[[str], None], config: Config | None = None
) -> None:
    """Imports the model in `folder` as a run in the new or empty `workdir`; its weights are a checkpoint of step 0.

    A folder of `fbjax export --format hf` has the config of its run. One of a CLIP or SigLIP takes tables, columns and
    settings of training from `config`. Training then starts with a fresh optimiser. Raises OSError or ValueError where
    the folder lacks a file or holds another model, and then `workdir` is unchanged.
    """
    folder = Path(folder)
    check_fresh("--workdir", workdir)
    found = described(folder)
    if found and config is None:
        raise ValueError(
            f"--from {folder} holds a {found.kind}, which knows no catalogue: give --config a config with your tables "
            "and columns, such as my_catalogue"
        )
    if config is not None and not found:
        raise ValueError(f"--config is for a CLIP or SigLIP, which {folder} does not hold: leave it out")
    if found:
        towers.import_towers(found, folder, Path(workdir), config, say)
    else:
        own.import_run(folder, workdir, say)
