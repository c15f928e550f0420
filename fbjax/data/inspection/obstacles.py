"""What in a table would keep a config from training or evaluating, each with the smallest change that would do."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from fbjax.config.schema import Config
from fbjax.data.inspection.understand import TableCheck

HOLDOUTS = (0.1, 0.2, 0.3, 0.5)  # that are tried
FEWEST_GROUPS = 2  # in each split: a product is told from one of another group


@dataclasses.dataclass(frozen=True)
class Obstacle:
    message: str
    flag: str = ""  # the change as ``config.section.field=value``; "" where a person has to choose


def obstacles(found: TableCheck, config: Config) -> Iterator[Obstacle]:
    """Of a table with products, for the training of `config`."""
    groups = found.group_places
    if len(groups) < FEWEST_GROUPS:
        mapped = found.mapping["group"]
        message = f"all {found.num_products:,} products are of one group: there is nothing to tell apart"
        yield Obstacle(message, "config.data.columns.group=") if mapped else Obstacle(f"{message}; add products")
        return
    if all(num_groups < FEWEST_GROUPS for _, _, num_groups in found.categories):
        yield Obstacle(
            "no category holds two groups: negatives come from any category, and evaluate finds no candidates; map a "
            "coarser column as `category`"
        )
    holdout = 0.0 if found.holdout == 1 else found.holdout
    if holdout and not _divides(groups, holdout):
        held = f"{_num_below(groups, holdout)} of {len(groups):,} groups"
        said = f"at config.data.holdout {holdout:g}, {held} are validated on"
        other = next((share for share in HOLDOUTS if _divides(groups, share)), None)
        if other is None:
            yield Obstacle(f"{said}: too few to divide; add products, or a table as config.data.validation")
            return
        yield Obstacle(f"{said}, and each part needs {FEWEST_GROUPS}", f"config.data.holdout={other:g}")
        holdout = other
    trained = int(found.group_sizes[groups >= holdout].sum())
    if trained < config.train.batch_size:
        smaller = 2 ** (trained.bit_length() - 1)
        message = f"{trained:,} training products are fewer than a batch of {config.train.batch_size:,}"
        yield Obstacle(message, f"config.train.batch_size={smaller}")


def _divides(groups: np.ndarray, holdout: float) -> bool:
    return FEWEST_GROUPS <= _num_below(groups, holdout) <= len(groups) - FEWEST_GROUPS


def _num_below(groups: np.ndarray, holdout: float) -> int:
    return int((groups < holdout).sum())
