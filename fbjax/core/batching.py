"""Rows of different lengths in batches of one padded length each, so that few programs are compiled."""

import numpy as np


def padded_lengths(lengths: np.ndarray, bucket: int, longest: int) -> np.ndarray:
    """`lengths` rounded up to a multiple of `bucket`, at most `longest`."""
    return np.minimum(-(-lengths // bucket) * bucket, longest)


def mixed_batches(lengths: np.ndarray, size: int, bucket: int, longest: int) -> list[tuple[int, np.ndarray]]:
    """(padded length, rows) of batches of `size` rows, shortest first; only the last batch has fewer."""
    order = np.argsort(lengths, kind="stable")
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    return [(int(padded_lengths(lengths[rows[-1]], bucket, longest)), rows) for rows in batches]


def uniform_batches(lengths: np.ndarray, size: int, bucket: int, longest: int) -> list[tuple[int, np.ndarray]]:
    """(padded length, rows) of batches of at most `size` rows, shortest first: a row's padding is its own alone."""
    padded = padded_lengths(lengths, bucket, longest)
    groups = [(int(length), np.flatnonzero(padded == length)) for length in np.unique(padded)]
    return [(length, rows[i : i + size]) for length, rows in groups for i in range(0, len(rows), size)]
