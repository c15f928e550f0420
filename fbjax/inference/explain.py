"""What a match score rests on: how far it falls when one word or one image patch is hidden.

Hidden as in pretraining, a word behind [MASK], a patch as zeros, so that the model has seen the like.
"""

import dataclasses
import math

import jax
import numpy as np

from fbjax.data.sources.tables import clean_text
from fbjax.inference.model import Model
from fbjax.inference.pair_scorer import make_scorer
from fbjax.parallel.mesh import make_mesh


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A score (logit difference) and by how much hiding each part lowers it: > 0 speaks for the match."""

    score: float
    words: list[tuple[str, float]]  # as they stand in the text, those cut off left out
    patches: np.ndarray  # [side, side]


def explain(model: Model, text: str, image) -> Explanation:
    """The `Explanation` of one text with one image (a path, encoded bytes or a PIL image)."""
    run, text = model.run, clean_text(text)
    num_patches, patches = run.patches.num_patches, run.patches
    features = np.asarray(jax.jit(patches.apply)(patches.params, model.read_image(image)[None]))
    images = np.repeat(features, 1 + num_patches, axis=0)  # row 0 whole, row 1 + p without patch p
    images[1 + np.arange(num_patches), np.arange(num_patches)] = 0.0

    whole = model.encode_text(text)
    words = run.vocabulary.words(text)
    ((_, word_ids),) = run.vocabulary.pieces([text])
    kept = np.array(word_ids[: run.config.model.text_tokens - 2])  # the piece at place i stands at token 1 + i
    shown = sorted(set(kept.tolist()))
    ids = np.repeat(whole[None], 1 + len(shown), axis=0)
    for row, word in enumerate(shown, start=1):
        ids[row, 1 + np.flatnonzero(kept == word)] = run.vocabulary.mask_id

    scorer = make_scorer(run.config, run.model, patches.precomputed(), make_mesh(run.config.mesh))
    batches = (images[start : start + scorer.batch_size] for start in range(0, len(images), scorer.batch_size))
    embedded = scorer.embed_images(model.variables, batches)
    pairs = [(0, p) for p in range(1 + num_patches)] + [(w, 0) for w in range(1, 1 + len(shown))]
    scores = scorer.score(model.variables, ids, embedded, np.array(pairs))
    drops, whole_image = scores[0] - scores[1:], int(patches.whole_image)
    side = math.isqrt(num_patches - whole_image)
    return Explanation(
        score=float(scores[0]),
        words=[(words[word], float(drop)) for word, drop in zip(shown, drops[num_patches:], strict=True)],
        patches=drops[whole_image:num_patches].reshape(side, side),
    )
