"""The prepared splits of a config: arrays where it names a folder of these, else records."""

from collections.abc import Sequence

from fbjax.config.schema import Config
from fbjax.core.console import progress
from fbjax.data.arrays.reader import open_arrays
from fbjax.data.batches.split import Split
from fbjax.data.sources.base import open_source
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
