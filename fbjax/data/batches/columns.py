"""Draws the texts that a step reads as one of their columns alone, and the column of each."""

import numpy as np

WHOLE = -1  # in place of a column: the text of all columns


class ColumnSampler:
    """Uniform draws of a column that is not empty, for a share of the texts."""

    def __init__(self, column_ends: np.ndarray, share: float):
        """``column_ends [N, F]``: pieces up to the end of each column. Raises ValueError where F is 1."""
        if column_ends.shape[1] < 2:
            raise ValueError(
                f"train.column_dropout {share}: the texts of this data have one column, and a share of them cannot be "
                "read as one column alone (set it to 0, or take a data.source that knows the columns of a text)"
            )
        filled = np.diff(column_ends, axis=1, prepend=0) > 0
        self._share, self._num_filled = share, filled.sum(axis=1)
        self._filled = np.argsort(~filled, axis=1, kind="stable")  # [N, F]: first the columns that are not empty

    def draw(self, rows: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """A column of each of `rows`, or `WHOLE`, from ``uniform [2, B]`` in [0, 1): for whether, and for which."""
        places = (uniform[1] * self._num_filled[rows]).astype(np.int64)
        return np.where(uniform[0] < self._share, self._filled[rows, places], WHOLE)
