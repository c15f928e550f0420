"""Whether texts and pictures belong together, by a model of match scores."""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from fbjax.inference.model import Model
from fbjax.inference.pair_scorer import match_probability
from fbjax.runs.stored_evaluation import read_calibration
from fbjax.serve.search.together import each_alone


class Match(NamedTuple):
    """A match score, and the probability of a match where half of the pairs match; None if not calibrated."""

    score: float
    probability: float | None


class Matcher:
    """Match scores of one model: logit differences, or cosines where it has no match head."""

    def __init__(self, model: Model):
        self.model = model

    def match_all(self, pairs: Sequence[tuple[str, bytes]]) -> list[Match | ValueError]:
        """The match of each text with its encoded picture, or why there is none."""
        return each_alone(self._matches, pairs)

    def _matches(self, pairs: Sequence[tuple[str, bytes]]) -> list[Match]:
        texts, images = map(list, zip(*pairs, strict=True))
        scores = self.model.score(texts, images)
        if not self._calibration:
            return [Match(float(score), None) for score in scores]
        probabilities = match_probability(scores, *self._calibration)
        return [Match(float(score), float(p)) for score, p in zip(scores, probabilities, strict=True)]

    @cached_property
    def _calibration(self) -> tuple[float, float] | None:
        try:
            return read_calibration(self.model.workdir, self.model.step)
        except ValueError:
            return None
