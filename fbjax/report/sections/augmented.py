"""Training pictures as the run saw them: each as it is, and as `patches.augment` changes it in the first steps."""

import jax
import numpy as np

from fbjax.data.batches.batch import Batch
from fbjax.data.batches.split import Split
from fbjax.data.sources.images import encode_array
from fbjax.report.page import picture
from fbjax.runs.run import Run
from fbjax.training.step import step_keys

NUM_PICTURES, NUM_STEPS = 4, 5


def augmented(run: Run, records: Split) -> list[list[str]]:
    """A row for each of the first training products: data URIs of its picture, and of it in steps 0 to 4.

    No row where the run does not augment.
    """
    if not run.config.patches.augment.is_on:
        return []
    rows = np.arange(min(NUM_PICTURES, len(records)))
    images = next(records.images(rows, run.config.patches.image_size, len(rows), run.config.patches.fit))

    @jax.jit
    def seen_in(step: jax.Array) -> jax.Array:
        batch = Batch(rows, rows, rows, rows, images, None)
        return run.objective.augmented(batch, step_keys(run.config.train.seed, step)[0]).image

    columns = [images, *(np.asarray(seen_in(step)) for step in range(NUM_STEPS))]
    return [[picture(encode_array(column[row])) for column in columns] for row in rows]
