"""Explains a match score: how much it drops when one word or one image patch is masked.

Masks are those of pretraining: [MASK] for a word, zeros for a patch.
"""

import dataclasses
import math

import jax
import numpy as np

from fbjax.data.sources.cells import clean_text
from fbjax.inference.model import Model
from fbjax.inference.pair_scorer import make_scorer


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A score (logit difference) and its drop when each part is masked: > 0 is evidence for the match."""

    score: float
    words: list[tuple[str, float]]  # in the order of the text, without those cut off
    patches: np.ndarray  # [side, side]


def explain(model: Model, text: str, image) -> Explanation:
    """The `Explanation` of one text with one image (a path, encoded bytes or a PIL image)."""
    run, text = model.run, clean_text(text)
    num_patches, patches = run.patches.num_patches, run.patches
    features = np.asarray(jax.jit(patches.apply)(model.variables["patches"], model.read_image(image)[None]))
    images = np.repeat(features, 1 + num_patches, axis=0)  # row 0 unmasked, row 1 + p without patch p
    images[1 + np.arange(num_patches), np.arange(num_patches)] = 0.0

    words = run.vocabulary.words(text)
    ((_, word_ids),) = run.vocabulary.pieces([text])
    kept = np.array(word_ids[: run.config.model.text_tokens - 2])  # piece i is token 1 + i
    shown = sorted(set(kept.tolist()))
    ids = np.repeat(model.encode_text(text)[None], 1 + len(shown), axis=0)
    for row, word in enumerate(shown, start=1):
        ids[row, 1 + np.flatnonzero(kept == word)] = run.vocabulary.mask_id

    scorer = make_scorer(run, model.mesh, patches.precomputed())
    batches = (images[start : start + scorer.batch_size] for start in range(0, len(images), scorer.batch_size))
    embedded = scorer.embed_images(model.variables, batches)
    pairs = [(0, p) for p in range(1 + num_patches)] + [(w, 0) for w in range(1, 1 + len(shown))]
    scores = scorer.score(model.variables, ids, embedded, np.array(pairs))
    drops, whole_image = scores[0] - scores[1:], int(patches.whole_image)
    side = math.isqrt(num_patches - whole_image)
    by_word = [(words[word], float(drop)) for word, drop in zip(shown, drops[num_patches:], strict=True)]
    return Explanation(float(scores[0]), by_word, drops[whole_image:num_patches].reshape(side, side))
