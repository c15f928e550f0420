"""Attention rollout (Abnar & Zuidema 2020, arXiv 2005.00928): how much of each position reaches each other one.

``R = A_S .. A_1`` with ``A_s = (I + mean over heads of the weights of layer s) / 2``: half of a position stays, by the
residual. A row of R sums to 1. It follows attention alone, not what the values, MLPs and the head make of it.
"""

from functools import partial

import jax
import numpy as np

from fbjax.data.text.wordpiece import PAD_ID
from fbjax.inference.explain.explanation import Explanation
from fbjax.inference.explain.pair import read_pair
from fbjax.inference.model import Model
from fbjax.model.fashionbert import match_score
from fbjax.tasks.teacher import Teacher, Trace


def attention(model: Model, text: str, image) -> Explanation:
    """Value of a part: how much of it reaches [CLS], whose last state is scored; and of each patch, each word.

    Raises ValueError where no encoder reads text and image together, in one stream, to score them.
    """
    if model.run.config.model.architecture == "vilbert":
        raise ValueError(
            "method 'attention' follows the layers of one stream, and this run has two (model.architecture 'vilbert'): "
            "use 'gradient' or 'occlusion'"
        )
    if not model.run.scores_pairs:
        names = ", ".join(model.run.config.tasks)
        others = "'occlusion'" if model.run.late_interaction else "'gradient' or 'occlusion'"
        raise ValueError(
            f"method 'attention' needs an encoder that reads text and image together, and this run has towers (tasks "
            f"{names}): use {others}"
        )
    read = read_pair(model, text, image)
    found = jax.device_get(_trace(Teacher.of(model.run.model), model.variables["fashionbert"], *read.pair[::2]))
    score = float(match_score(found.logits)[0])

    ids, words = (np.asarray(x)[0] for x in read.pair[:2])
    num_tokens = read.pair.features.shape[1]
    is_there = np.concatenate([ids != PAD_ID, np.ones(num_tokens, bool)])
    reach = rollout(found.attention[0][:, :, is_there][..., is_there])
    words = words[ids != PAD_ID]
    pieces_of = (words == np.arange(len(read.words))[:, None]).astype(np.float32)  # [W, T]
    cls, num_pieces = reach[0], len(words)
    word_tokens = pieces_of @ reach[:num_pieces, num_pieces:] / pieces_of.sum(axis=1, keepdims=True)
    grids = {"word_patches": read.grid(word_tokens)}
    return Explanation.of("attention", read, score, pieces_of @ cls[:num_pieces], cls[num_pieces:], **grids)


@partial(jax.jit, static_argnums=0)
def _trace(teacher: Teacher, params: dict, ids: jax.Array, features: jax.Array) -> Trace:
    return teacher.trace(params, ids, features, teacher.model.config.num_layers)


def rollout(weights: np.ndarray) -> np.ndarray:
    """``[S, H, L, L] -> [L, L]``: row i, column j is how much of position j's input is in position i's output.

    Gated cross-attention may have negative weights, and rows that do not sum to 1: these are made absolute and divided
    by their sum.
    """
    mean = np.abs(weights).mean(axis=1)
    mean = mean / mean.sum(axis=-1, keepdims=True)
    reach = np.eye(mean.shape[-1], dtype=mean.dtype)
    for layer in mean:
        reach = (reach + layer @ reach) / 2
    return reach
