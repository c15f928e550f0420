"""Halves of the groups of a split: a run may train on one, so that the other is never seen."""

import numpy as np

HALVES = ("first", "second")  # values of config.train.half


def half_of(groups: np.ndarray) -> np.ndarray:
    """bool [N]: whether each row is in the first half, by a hash of its group's code alone (``groups [N]``).

    Halves have about as many groups each, and a group is never split. The codes number the groups of one prepared
    split, so the halves stay the same for the same records; a table with another set of groups has other halves. The
    hash is the finaliser of SplitMix64 (Steele et al. 2014), of which the highest bit counts.
    """
    mixed = groups.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))) >> np.uint64(63) == 0


def rows_of_half(groups: np.ndarray, half: str) -> np.ndarray:
    """The rows of "first", of "second", or all (""). Raises ValueError where the half has no row."""
    if not half:
        return np.arange(len(groups))
    rows = np.flatnonzero(half_of(groups) == (half == HALVES[0]))
    if not len(rows):
        num_groups = len(np.unique(groups))
        raise ValueError(
            f"train.half {half!r}: none of the {num_groups} groups of the training split falls into it (take the "
            "other half, leave train.half '', or use more products)"
        )
    return rows
