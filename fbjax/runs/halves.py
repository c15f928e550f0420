"""Which half of the groups a run was trained on, for those who need products that it has not seen."""

from pathlib import Path

from fbjax.config.load import read_config
from fbjax.config.schema import Config
from fbjax.core.console import say
from fbjax.core.paths import as_path
from fbjax.data.batches.split import Split
from fbjax.runs.run import CONFIG, other_data


def trained_half(config: Config, workdir: str | Path, asker: str) -> str:
    """The one half that the run in `workdir`, and those that it started from, have seen; `asker` needs it.

    Raises ValueError where there is no such half.
    """
    half, seen = config.train.half, {str(workdir)}
    if not half:
        raise ValueError(
            f"{asker} needs a run that was trained on half of the groups, and {workdir} was trained on all: "
            "train one with --config.train.half=first"
        )
    waiting = list(config.train.starts)
    while waiting:
        start = waiting.pop()
        if start in seen:
            continue
        seen.add(start)
        if not (as_path(start) / CONFIG).is_file():
            say(f"NOTE: {start}, whose weights this run began with, is gone: what that was trained on is unknown")
            continue
        config = read_config(as_path(start) / CONFIG)
        waiting += config.train.starts
        if config.train.half != half:
            raise ValueError(
                f"{asker}: {workdir} was trained on the {half} half of the groups, but began with weights of "
                f"{start}, whose train.half is {config.train.half!r}: start from one that was trained on the same half"
            )
    return half


def check_table(workdir: str | Path, train: Split, asker: str) -> None:
    """Raises ValueError where `train` is not what the run in `workdir` was trained on, and so has other halves."""
    if other_data(workdir, train):
        raise ValueError(
            f"the training table is not the one that {workdir} was trained on, so its half of the groups is unknown: "
            f"{asker} needs the old table"
        )
