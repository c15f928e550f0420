"""The products, negatives and text columns of every step, as pure functions of seed, epoch and index.

A batch has texts of similar length, for little padding (the paper's variable sequence length). There is no state: the
step is the data position, on any number of processes. A sampler may draw from one half of the groups alone, or events
of a log, whose products may repeat.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache, partial

import numpy as np

from fbjax.config.schema import ModelConfig, TrainConfig
from fbjax.core.batching import padded_lengths
from fbjax.data.batches.columns import WHOLE, ColumnSampler
from fbjax.data.batches.halves import rows_of_half
from fbjax.data.batches.negatives import NegativeSampler

WINDOW = 64  # batches whose products are sorted by length together
_ORDER, _NEGATIVE, _COLUMN = 1, 2, 3  # streams of random numbers


@dataclasses.dataclass(frozen=True)
class Sampler:
    """The products of every training step."""

    negatives: NegativeSampler  # of the products that are drawn
    lengths: np.ndarray  # [N] int: tokens of each text with [CLS] and [SEP], padded to its bucket
    batch_size: int
    seed: int
    random_share: Callable[[int], float] = lambda step: 0.0  # step -> share of negatives from any category
    chosen: np.ndarray | None = None  # [M]: rows of the products that are drawn; None: all N
    single: ColumnSampler | None = None  # of all N products; None: every text is read whole
    partners: np.ndarray | None = None  # [M]: rows of other products that go with those

    @classmethod
    def of(
        cls,
        records,
        train: TrainConfig,
        model: ModelConfig,
        random_share: Callable[[int], float],
        chosen: np.ndarray | None = None,
        partners: np.ndarray | None = None,
    ) -> "Sampler":
        """The sampler of prepared `records`, of the groups in `train.half`, or of the rows `chosen` [M].

        Raises ValueError where these are too few, or texts of one column cannot meet `train.column_dropout`.
        """
        chosen = rows_of_half(records.groups, train.half) if chosen is None else chosen
        negatives = NegativeSampler(records.categories[chosen], records.groups[chosen])
        lengths = padded_lengths(records.num_pieces + 2, model.text_bucket, model.text_tokens)
        single = ColumnSampler(records.column_ends, train.column_dropout) if train.column_dropout else None
        return cls(negatives, lengths, train.batch_size, train.seed, random_share, chosen, single, partners)

    def of_partners(self) -> "Sampler":
        """The sampler that draws, at each place, the partner in place of the product."""
        return dataclasses.replace(self, chosen=self.partners, partners=self.rows)

    @cached_property
    def rows(self) -> np.ndarray:
        """The rows [M] of the products that are drawn, once an epoch each."""
        return np.arange(len(self.lengths)) if self.chosen is None else self.chosen

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of `step`'s global batch and their negatives' rows, int64 [B] each."""
        drawn, negatives = self.places(step)
        return self.rows[drawn], self.rows[negatives]

    def places(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Where in `rows` those of `batch` are, int64 [B] each."""
        drawn, negatives = (np.empty(self.batch_size, np.int64) for _ in range(2))
        for epoch, here, places in self._epochs(step):
            uniform = _uniform(self.seed, epoch, len(self.rows), _NEGATIVE)[:, places]
            any_category = uniform[0] < self.random_share(step)
            drawn[here], negatives[here] = places, self.negatives.draw(places, uniform[1], any_category)
        return drawn, negatives

    def columns(self, step: int) -> np.ndarray:
        """The column that each text of `step`'s global batch is reduced to, or `WHOLE`, int64 [B]."""
        found = np.full(self.batch_size, WHOLE)
        if self.single:
            for epoch, here, places in self._epochs(step):
                uniform = _uniform(self.seed, epoch, len(self.rows), _COLUMN)[:, places]
                found[here] = self.single.draw(self.rows[places], uniform)
        return found

    def _epochs(self, step: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Each epoch of `step`'s global batch, which examples are of it, bool [B], and their places in `rows`."""
        epochs, positions = np.divmod(step * self.batch_size + np.arange(self.batch_size), len(self.rows))
        for epoch in np.unique(epochs):
            here = epochs == epoch
            yield int(epoch), here, self._order(int(epoch))[positions[here]]

    def text_tokens(self, step: int) -> int:
        """The padded length of `step`'s global batch: that of its longest text, partners' texts included."""
        return int(self._lengths[self.places(step)[0]].max())

    @cached_property
    def _lengths(self) -> np.ndarray:
        """The padded length [M] of each place."""
        own = self.lengths[self.rows]
        return own if self.partners is None else np.maximum(own, self.lengths[self.partners])

    def text_tokens_used(self, num_steps: int) -> tuple[int, ...]:
        """All values of `text_tokens` in the first `num_steps` steps, ascending."""
        num_places = num_steps * self.batch_size
        epochs = range(-(-num_places // len(self.rows)))
        lengths = np.concatenate([self._lengths[self._order(epoch)] for epoch in epochs])[:num_places]
        return tuple(np.unique(lengths.reshape(num_steps, -1).max(axis=1)).tolist())

    @cached_property
    def _order(self) -> Callable[[int], np.ndarray]:
        """The order of an epoch, as places in `rows`. Caches two, since a batch may cross an epoch's end."""
        order = partial(_epoch_order, self.seed, lengths=self._lengths, batch_size=self.batch_size)
        return lru_cache(maxsize=2)(order)


def _epoch_order(seed: int, epoch: int, *, lengths: np.ndarray, batch_size: int) -> np.ndarray:
    """The places of `epoch` in order, [M]: a random permutation whose batches are regrouped by length.

    Every WINDOW batches are sorted by length and split into batches again. Batches of different lengths have random
    order, those of one length keep theirs, so equal lengths change nothing. A batch across two epochs stays unchanged.
    """
    rng = np.random.default_rng([seed, epoch, _ORDER])
    rows = rng.permutation(len(lengths))
    first = -epoch * len(lengths) % batch_size  # products of a batch from the previous epoch
    for start in range(first, len(lengths) - batch_size + 1, WINDOW * batch_size):
        num_batches = min(WINDOW, (len(lengths) - start) // batch_size)
        window = rows[start : start + num_batches * batch_size]
        batches = window[np.argsort(lengths[window], kind="stable")].reshape(num_batches, batch_size)
        longest = lengths[batches].max(axis=1)
        places = np.argsort(rng.permutation(longest), kind="stable")
        window.reshape(num_batches, batch_size)[places] = batches
    return rows


@lru_cache(maxsize=4)
def _uniform(seed: int, epoch: int, size: int, stream: int) -> np.ndarray:
    """Two uniform numbers for each product: for the choice of any category, and of the negative; or for a column."""
    return np.random.default_rng([seed, epoch, stream]).random((2, size))
