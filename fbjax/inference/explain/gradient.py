"""Integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365), by word and by patch.

``value_i = integral over a from 0 to 1 of d score / d share_i at shares a``. The shares of all words grow together from
0, every word masked, to 1, the text, beside the whole image; those of the patches likewise, beside the whole text.
The values are complete::

    sum of words = score - score with every word masked
    sum of patches, with the whole image's token = score - score with every patch zeroed

The time does not depend on the number of words and patches.

A bag without n-grams has no direction. On the way there its vector shrinks to 0, and so does its cosine.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from fbjax.inference.explain.explanation import Explanation
from fbjax.inference.explain.pair import Pair, partial_scores, read_pair
from fbjax.inference.model import Model
from fbjax.model.fashionbert import FashionBert

STEPS = 16  # of the integral, by Gauss-Legendre: in a trained run within .02 of a way of 8 logits, with 8 within .8


def gradient(model: Model, text: str, image) -> Explanation:
    """Value of a part: its share in the way from the score of nothing to the score of the pair.

    Raises ValueError where a run compares tokens: their similarities are cut off at 0 and then made of length 1, so
    they jump on the way.
    """
    if model.run.late_interaction:
        raise ValueError("method 'gradient' needs a smooth score, and this run compares tokens (scan): use 'occlusion'")
    read = read_pair(model, text, image)
    by_word, by_token, ends = jax.device_get(_integrated(model.run.model, model.variables, read.pair))
    whole, no_words, no_patches = map(float, ends)
    ends = {"without_words": no_words, "without_patches": no_patches}
    return Explanation.of("gradient", read, whole, by_word, by_token, **ends)


@partial(jax.jit, static_argnums=0)
def _integrated(model: FashionBert, variables: dict, pair: Pair) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(values of words [T], values of image tokens [P], scores [3] of the pair, without words and without patches).

    One pass back: both ways and their ends are one batch.
    """
    places, weights = (x.astype(np.float32) / 2 for x in np.polynomial.legendre.leggauss(STEPS))
    places += 0.5
    of_words = np.array([*places, *np.ones(STEPS), 1, 0, 1], np.float32)
    of_patches = np.array([*np.ones(STEPS), *places, 1, 1, 0], np.float32)

    def score(shown: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        scores = partial_scores(model, variables, pair, *shown, fixed_length=True)
        return scores.sum(), scores[-3:]

    sizes = pair.ids.shape[1], pair.features.shape[1]
    shown = tuple(jnp.tile(x[:, None], size) for x, size in zip((of_words, of_patches), sizes, strict=True))
    (by_word, by_token), ends = jax.grad(score, has_aux=True)(shown)
    return weights @ by_word[:STEPS], weights @ by_token[STEPS : 2 * STEPS], ends
