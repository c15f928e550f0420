"""``attributes.npz`` of a split of arrays: the columns that the task of the config predicts, where it has one."""

from pathlib import Path

import numpy as np

from fbjax.config.schema import Config
from fbjax.data.batches.split import Split
from fbjax.data.sources.base import open_source
from fbjax.data.sources.tables import read_cells

FILE = "attributes.npz"


def write(config: Config, splits: dict[str, Split], folder: Path) -> None:
    """Writes the cells of the products of `splits` into the folder of each. Nothing where no task predicts any."""
    if not config.attributes:
        return
    files = open_source(config.data, config.patches.image_size).files()
    for name, split in splits.items():
        cells = read_cells(files.get(name, files["train"]), config.data, config.attributes, split.ids)
        np.savez(folder / name / FILE, names=np.array(config.attributes), cells=cells)


def read(folder: Path, names: tuple[str, ...]) -> np.ndarray | None:
    """The cells of the columns `names`, str [N, A], of the split in `folder`; None where these are not there."""
    if not (folder / FILE).is_file():
        return None
    with np.load(folder / FILE) as found:
        places = {str(name): place for place, name in enumerate(found["names"])}
        if any(name not in places for name in names):
            return None
        return found["cells"][:, [places[name] for name in names]]
