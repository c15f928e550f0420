"""Order and negative as pure functions of seed, epoch and index: which products a step sees, and against which images.

Texts of like length meet in a batch, so that little of it is padding (the paper's variable sequence length). Nothing
here is state: the data position is the step, on any number of processes.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property, lru_cache, partial

import numpy as np

from fbjax.config.schema import Config, TaskConfig
from fbjax.data.batches.negatives import NegativeSampler

WINDOW = 64  # batches among which products are exchanged to meet others of their length
_ORDER, _PARTNER = 1, 2  # streams of random numbers


def padded_lengths(num_pieces: np.ndarray, text_tokens: int, text_bucket: int) -> np.ndarray:
    """Tokens of texts of `num_pieces` [N], framed and rounded up to a multiple of text_bucket, at most text_tokens."""
    return np.minimum(-(-(num_pieces + 2) // text_bucket) * text_bucket, text_tokens)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """What every step of training sees."""

    negatives: NegativeSampler
    lengths: np.ndarray  # [N] int: `padded_lengths`
    batch_size: int
    seed: int
    tasks: TaskConfig
    same_category: int = 1  # products of one category that stand together in a batch
    mined: np.ndarray | None = None  # [N, M] int: rows of each product's nearest mistakes

    @classmethod
    def of(cls, config: Config, records, mined: np.ndarray | None = None) -> "Sampler":
        """What training sees of prepared `records` under a `Config`."""
        return cls(
            NegativeSampler(records.categories, records.groups),
            padded_lengths(records.num_pieces, config.model.text_tokens, config.model.text_bucket),
            config.train.batch_size,
            config.train.seed,
            config.tasks,
            same_category=config.train.same_category,
            mined=mined,
        )

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of `step`'s global batch and their negatives' rows, int64 [B] each."""
        num_products = len(self.lengths)
        places = step * self.batch_size + np.arange(self.batch_size)
        epochs, positions = np.divmod(places, num_products)
        rows, negatives = np.empty_like(places), np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self._order(int(epoch))[positions[here]]
            uniform = _uniform(self.seed, int(epoch), num_products)[:, rows[here]]
            any_category = uniform[0] < self.random_share(step)
            negatives[here] = self.negatives.draw(rows[here], uniform[1], any_category)
            if self.mined is not None:
                nearest = self.mined[rows[here], (uniform[1] * self.mined.shape[1]).astype(np.int64)]
                mined = (uniform[0] >= 1 - self.mined_share(step)) & (nearest >= 0)
                negatives[here] = np.where(mined, nearest, negatives[here])
        return rows, negatives

    def text_tokens(self, rows: np.ndarray) -> int:
        """What the texts of a global batch of `rows` are padded to: the longest of them."""
        return int(self.lengths[rows].max())

    def text_tokens_used(self, num_steps: int) -> tuple[int, ...]:
        """Every value that `text_tokens` has in the first `num_steps` steps, ascending."""
        num_places = num_steps * self.batch_size
        epochs = range(-(-num_places // len(self.lengths)))
        lengths = np.concatenate([self.lengths[self._order(epoch)] for epoch in epochs])[:num_places]
        return tuple(np.unique(lengths.reshape(num_steps, -1).max(axis=1)).tolist())

    def random_share(self, step: int) -> float:
        """Share of any-category negatives at `step`: linear from random_negatives_start to random_negatives_end."""
        tasks = self.tasks
        done = min(1.0, step / tasks.random_negatives_steps) if tasks.random_negatives_steps else 1.0
        return tasks.random_negatives_start + (tasks.random_negatives_end - tasks.random_negatives_start) * done

    def mined_share(self, step: int) -> float:
        """Share of mined negatives at `step`: linear from 0 to `tasks.mined`."""
        done = min(1.0, step / self.tasks.mined_steps) if self.tasks.mined_steps else 1.0
        return self.tasks.mined * done

    @cached_property
    def _order(self) -> Callable[[int], np.ndarray]:
        """The order of an epoch. Two are kept: a batch may lie in both."""
        return lru_cache(maxsize=2)(
            partial(
                _epoch_order,
                self.seed,
                lengths=self.lengths,
                batch_size=self.batch_size,
                categories=self.negatives.categories,
                same_category=self.same_category,
            )
        )


def _epoch_order(
    seed: int,
    epoch: int,
    *,
    lengths: np.ndarray,
    batch_size: int,
    categories: np.ndarray,
    same_category: int = 1,
) -> np.ndarray:
    """The rows of `epoch` in order, [N]: a random permutation whose batches are regrouped by length.

    Each window of WINDOW batches is sorted by length and cut into batches anew. Batches of different lengths come in
    random order, those of one length in the order drawn: where all lengths are equal, nothing moves. A batch that lies
    in two epochs stays as drawn. `same_category` n > 1: products move in n of one category, as far as a window has
    them, which are sorted by the longest.
    """
    rng = np.random.default_rng([seed, epoch, _ORDER])
    rows = rng.permutation(len(lengths))
    first = -epoch * len(lengths) % batch_size  # products of a batch that the epoch before began
    for start in range(first, len(lengths) - batch_size + 1, WINDOW * batch_size):
        num_batches = min(WINDOW, (len(lengths) - start) // batch_size)
        window = rows[start : start + num_batches * batch_size]
        units = window.reshape(-1, 1)
        if same_category > 1:
            units = window[np.argsort(categories[window], kind="stable")].reshape(-1, same_category)
            units = rng.permutation(units)
        batches = units[np.argsort(lengths[units].max(axis=1), kind="stable")].reshape(num_batches, batch_size)
        longest = lengths[batches].max(axis=1)
        places = np.argsort(rng.permutation(longest), kind="stable")
        window.reshape(num_batches, batch_size)[places] = batches
    return rows


@lru_cache(maxsize=2)
def _uniform(seed: int, epoch: int, size: int) -> np.ndarray:
    """Two draws for each product: whether its negative is any_category, and which."""
    return np.random.default_rng([seed, epoch, _PARTNER]).random((2, size))
