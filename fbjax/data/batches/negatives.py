"""Draws the product whose image becomes the negative of a product's text."""

import numpy as np


class NegativeSampler:
    """Uniform draws of another product: of the same category or of any, never of the same group.

    Products are sorted by (category, group), so a category is a range, and a group is a range within it. A draw picks a
    place in the category's range and skips the group's range.
    """

    def __init__(self, categories: np.ndarray, groups: np.ndarray):
        num_products = len(categories)
        self._same, self._any = _Ranges(categories, groups), _Ranges(np.zeros(num_products, np.int64), groups)
        if num_products and not self._any.num_choices.all():
            raise ValueError(f"all {num_products} products are of one group: there is nothing to tell apart")
        self.no_in_category_negative = self._same.num_choices == 0  # [N]: no other group in the category

    def draw(self, rows: np.ndarray, uniform: np.ndarray, any_category: np.ndarray) -> np.ndarray:
        """Negatives of `rows` from `uniform` in [0, 1): of any category if `any_category` or if the own has none."""
        any_category = any_category | self.no_in_category_negative[rows]
        return np.where(any_category, self._any.pick(rows, uniform), self._same.pick(rows, uniform))


class _Ranges:
    """For each product the range of its category less the range of its group, in sorted order."""

    def __init__(self, categories: np.ndarray, groups: np.ndarray):
        self._sorted = np.lexsort((groups, categories))
        place = np.argsort(self._sorted)
        new_category, new_group = (np.diff(x[self._sorted]) != 0 for x in (categories, groups))
        starts, ends = _run_bounds(new_category, len(categories))
        group_starts, group_ends = _run_bounds(new_category | new_group, len(categories))
        self._start, self._group_start = starts[place], group_starts[place]
        self._group_size = (group_ends - group_starts)[place]
        self.num_choices = (ends - starts)[place] - self._group_size

    def pick(self, rows: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        target = self._start[rows] + (uniform * self.num_choices[rows]).astype(np.int64)
        target += np.where(target >= self._group_start[rows], self._group_size[rows], 0)
        return self._sorted[np.minimum(target, len(self._sorted) - 1)]


def _run_bounds(changes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of the run of each of `size` places; `changes` [size - 1] marks the first place of a run."""
    edges = np.concatenate([[0], np.flatnonzero(changes) + 1, [size]])
    lengths = np.diff(edges)
    return np.repeat(edges[:-1], lengths), np.repeat(edges[1:], lengths)
