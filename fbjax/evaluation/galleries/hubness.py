"""Hubs: pictures that are near to most texts, and so are found by queries that they do not answer.

A picture that a run was trained on is a hub for the words of its own text. The correction measures each picture
against a bank of texts that are no queries, and takes what it has too much from its scores.
"""

import numpy as np

from fbjax.evaluation.galleries.gallery import cosines_in_parts

NEAREST = 10  # texts of the bank, as in Conneau et al. 2018
SEED = 0


def hub_penalties(images: np.ndarray, bank: np.ndarray, nearest: int = NEAREST) -> np.ndarray:
    """float32 [N]: the mean cosine of each image with the `nearest` texts of the bank; ``images [N, E], bank [M, E]``.

    A corrected score is the cosine less the penalty of its image. That is the gallery's side of CSLS (Conneau et al.
    2018, arXiv 1710.04087), which takes half of it from the cosine; the side of the query changes no rank. Texts that
    are no queries in place of the queries: Bogolin et al. 2022 (arXiv 2112.12777). Raises ValueError on an empty bank.
    """
    if not len(bank):
        raise ValueError("no text to measure hubs against: the bank is empty")
    nearest, penalties = min(nearest, len(bank)), np.empty(len(images), np.float32)
    for part, cosines in cosines_in_parts(images, bank):
        penalties[part] = np.partition(cosines, -nearest, axis=1)[:, -nearest:].mean(axis=1)
    return penalties


def bank_rows(rows: np.ndarray, size: int) -> np.ndarray:
    """At most `size` of `rows`, ascending: a seeded choice."""
    return np.sort(np.random.default_rng(SEED).permutation(rows)[:size])
