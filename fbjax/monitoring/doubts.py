"""Whether the last figures of a training say that it learned nothing, in plain words with the likely remedy."""

import math
from collections.abc import Mapping

from fbjax.config.schema import TrainConfig

DIVERGED = 100.0  # a task's loss: guessing costs each task less than 15
SURE = 2.0  # standard deviations of guessing that a figure must lie above it


def doubts(last: Mapping[str, float], sample_size: int, config: TrainConfig) -> str:
    """A sentence where the newest figures of a training are those of a diverged or guessing model, else "".

    ``last``: "tia/loss", .., "validation/auc", "validation/mrr" by their names in the log; the latter two of a sample
    of ``sample_size`` products.
    """
    rate = f"train.learning_rate ({config.learning_rate:g})"
    losses = {name: value for name, value in last.items() if name.endswith("/loss")}
    if worst := max(losses, key=losses.get, default=""):
        if losses[worst] > DIVERGED:
            return (
                f"{worst} ended at {losses[worst]:.3g}: the training diverged. Lower {rate} or train.clip_norm "
                f"({config.clip_norm:g}), and train in a new workdir"
            )
    for name, (guessing, deviation) in _guessing(sample_size).items():
        value = last.get(f"validation/{name}", math.inf)
        if value <= guessing + SURE * deviation:
            return (
                f"validation {name.upper()} {value:.3f} on {sample_size:,} products cannot be told from guessing, "
                f"{guessing:.3f}: raise train.num_steps ({config.num_steps}), try another {rate}, or "
                "check that the table's texts and images belong together"
            )
    return ""


def _guessing(size: int) -> dict[str, tuple[float, float]]:
    """Expectation and standard deviation of the figures of random scores.

    AUC of N true and N mismatched pairs; MRR of the mean over N ranks, each 1 .. N alike.
    """
    first, second = (sum(1 / rank**power for rank in range(1, size + 1)) / size for power in (1, 2))
    return {
        "auc": (0.5, math.sqrt((2 * size + 1) / (12 * size**2))),
        "mrr": (first, math.sqrt((second - first**2) / size)),
    }
