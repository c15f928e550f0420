"""Occlusion: how much a score drops when one word or one image patch is hidden (Zeiler & Fergus 2014, arXiv 1311.2901).

The reference: a forward pass for each part, however many there are. Where two words say the same, neither is missed
alone.
"""

from functools import partial

import jax
import numpy as np

from fbjax.inference.embedder import batch_size
from fbjax.inference.explain.explanation import Explanation
from fbjax.inference.explain.pair import Pair, partial_scores, read_pair
from fbjax.inference.model import Model
from fbjax.inference.pair_scorer import ACCELERATOR_PAIRS, CPU_PAIRS
from fbjax.parallel.mesh import pad_rows, put_batch

_scores = partial(jax.jit, static_argnums=0)(partial_scores)


def occlusion(model: Model, text: str, image) -> Explanation:
    """Value of a part: the score of the pair minus that of the pair without this part."""
    read = read_pair(model, text, image)
    num_words, (_, num_pieces), (_, num_tokens, _) = len(read.words), read.pair.ids.shape, read.pair.features.shape
    words = np.ones((3 + num_words + num_tokens, num_pieces), np.float32)
    patches = np.ones((len(words), num_tokens), np.float32)
    words[1], patches[2] = 0, 0
    words[3 : 3 + num_words] -= np.eye(num_words, num_pieces)
    patches[3 + num_words :] -= np.eye(num_tokens)
    whole, no_words, no_patches, *others = _of_variants(model, read.pair, words, patches)
    drops = whole - np.array(others)
    ends = {"without_words": float(no_words), "without_patches": float(no_patches)}
    return Explanation.of("occlusion", read, whole, drops[:num_words], drops[num_words:], **ends)


def _of_variants(model: Model, pair: Pair, words: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """Scores [N] where shares `words` [N, T] and `patches` [N, P] are shown, in batches of one size."""
    size, scores = batch_size(model.mesh, None, CPU_PAIRS, ACCELERATOR_PAIRS), np.empty(len(words), np.float32)
    for start in range(0, len(words), size):
        rows = slice(start, start + size)
        shown = put_batch(tuple(pad_rows(x[rows], size) for x in (words, patches)), model.mesh)
        part = scores[rows]
        part[:] = np.asarray(_scores(model.run.model, model.variables, pair, *shown))[: len(part)]
    return scores
