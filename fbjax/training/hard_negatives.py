"""The mistakes that the towers of another run make on the training products."""

from pathlib import Path

import numpy as np

from fbjax.core.console import say
from fbjax.core.paths import as_path, atomic_write, local_copy
from fbjax.data.batches.pipeline import read_texts
from fbjax.data.records.builder import Records
from fbjax.inference.embed_catalogue import split_vectors
from fbjax.inference.embedder import make_embedder
from fbjax.runs.run import MINED, Run
from fbjax.training.warm_start import _newest_of_start

ROWS_AT_ONCE = 1024


def nearest_mistakes(run: Run, workdir: str | Path, records: Records, mesh) -> np.ndarray:
    """For each product the rows of `tasks.mined_nearest` products of other groups and texts whose images the towers of
    `train.start_from` find nearest to its text, int32 [N, M], -1 where there are not as many.

    Found once and kept in the workdir.
    """
    path = as_path(workdir) / MINED
    if not path.is_file():
        start, step, params = _newest_of_start(run, mesh)
        towers = make_embedder(start.config, start.model, start.feature_input, mesh)
        ids = read_texts(records, np.arange(len(records)), run.vocabulary, start.config.model.text_tokens)
        texts, images = split_vectors(start, towers, start.frozen | params, records, ids)
        _, same_text = np.unique(ids, axis=0, return_inverse=True)
        mined = nearest_apart(texts, images, records.groups, same_text, run.config.tasks.mined_nearest)
        with atomic_write(path) as file:
            np.save(file, mined)
        say(f"mined: the {mined.shape[1]} nearest mistakes of step {step} of {run.config.train.start_from}")
    with local_copy(path) as file:
        return np.load(file)


def nearest_apart(
    texts: np.ndarray, images: np.ndarray, groups: np.ndarray, same_text: np.ndarray, num_nearest: int
) -> np.ndarray:
    """Rows of the images nearest to each text, none of the text's own group or text: ``[N, E], [N, E] -> [N, M]``."""
    num_nearest = min(num_nearest, len(images))
    nearest = np.empty((len(texts), num_nearest), np.int32)
    for start in range(0, len(texts), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        cosines = texts[rows] @ images.T
        cosines[groups[rows, None] == groups] = -np.inf
        cosines[same_text[rows, None] == same_text] = -np.inf
        best = np.argpartition(-cosines, num_nearest - 1, axis=1)[:, :num_nearest]
        scores = np.take_along_axis(cosines, best, axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")
        best = np.where(np.isfinite(scores), best, -1)
        nearest[rows] = np.take_along_axis(best, order, axis=1)
    return nearest
