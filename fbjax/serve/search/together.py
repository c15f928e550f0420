"""Computes inputs together where all are right, and each alone where one is wrong."""

from collections.abc import Callable, Sequence
from typing import Any


def each_alone(compute: Callable[[list], Any], inputs: Sequence) -> list:
    """What ``compute(inputs)`` gives for each of `inputs`, or the ValueError of those that it refuses."""
    if not inputs:
        return []
    try:
        return list(compute(list(inputs)))
    except ValueError as error:
        return [error] if len(inputs) == 1 else [found for one in inputs for found in each_alone(compute, [one])]
