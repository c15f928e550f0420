"""The prepared splits of a config: arrays where it names a folder of these, else records; and their attributes."""

from collections.abc import Sequence

import numpy as np

from fbjax.config.schema import Config
from fbjax.core.console import progress
from fbjax.data.arrays import attributes
from fbjax.data.arrays.reader import ArraySplit, open_arrays
from fbjax.data.batches.split import Split
from fbjax.data.sources.base import open_source
from fbjax.data.sources.tables import read_cells
from fbjax.data.text.wordpiece import Vocabulary


def open_splits(config: Config, vocabulary: Vocabulary, data: str | Sequence[str] | None = None) -> dict[str, Split]:
    """The prepared splits of the config's own tables, or of the table or glob `data`, which is all "validation".

    Records are made first where they do not exist yet. Raises as `open_arrays` or `build_records`.
    """
    if config.data.arrays and not data:
        return open_arrays(config, vocabulary)
    from fbjax.data.records.builder import build_records  # imports TensorFlow

    source = open_source(config.data, config.patches.image_size, data)
    return dict(build_records(source, vocabulary, config.data.prepared, progress))


def attributes_of(
    config: Config, records: Split, split: str, names: tuple[str, ...], data: str | Sequence[str] | None = None
) -> np.ndarray:
    """The cells of the columns `names` of `records`, str [N, A], "" where empty; `data` as in `open_splits`.

    `split`: the split that `records` are of. Arrays hold the columns that they were written for; the tables hold all.
    Raises ValueError where a column is in neither.
    """
    if isinstance(records, ArraySplit):
        cells = attributes.read(records.folder, names)
        if cells is not None:
            return cells
        if not config.data.train:
            raise ValueError(
                f"data.arrays {config.data.arrays} does not hold {', '.join(map(repr, names))}, and data.train names "
                "no table (write arrays with a config of the task: fbjax prepare --config .. --arrays DIR)"
            )
    files = open_source(config.data, config.patches.image_size, data).files()
    return read_cells(files.get(split) or files["train"], config.data, names, records.ids)
