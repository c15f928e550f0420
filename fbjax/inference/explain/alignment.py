"""Which word goes to which patch, by the task that aligns them: see `fbjax.tasks.alignment.tpa`."""

import dataclasses
from functools import partial

import jax
import numpy as np

from fbjax.data.text.wordpiece import PAD_ID
from fbjax.inference.explain.explanation import Explanation
from fbjax.inference.explain.pair import NO_WORD, Pair, read_pair
from fbjax.inference.model import Model
from fbjax.model.fashionbert import FashionBert, match_score


def alignment(model: Model, text: str, image) -> Explanation:
    """Value of a part: the mean cosine with what it goes to; and of each word, the share that goes to each patch.

    The token of the whole image takes no part. Raises ValueError where the run has no task that aligns.
    """
    if not any(task.aligns_words for task in model.run.model.tasks):
        raise ValueError(
            f"method 'alignment' needs a task that aligns words with patches, and this run has "
            f"{', '.join(model.run.config.tasks)}: train with tpa, or use another method"
        )
    read = read_pair(model, text, image)
    params = model.variables["fashionbert"]
    cost, plan, score = (np.asarray(x)[0] for x in jax.device_get(aligned(model.run.model, params, read.pair)))
    pieces_of = (np.asarray(read.pair.words)[0] == np.arange(len(read.words))[:, None]).astype(np.float32)  # [W, T]
    whole = ((0, 0), (int(read.whole_image), 0))
    shares, agreement = (np.pad(pieces_of @ x, whole) for x in (plan, (1 - cost) * plan))  # [W, P]
    mass = shares.sum(axis=1, keepdims=True)
    by_token = agreement.sum(axis=0) / np.maximum(shares.sum(axis=0), 1e-12)
    grids = {"word_patches": read.grid(shares / mass)}
    found = Explanation.of("alignment", read, float(score), (agreement / mass).sum(axis=1), by_token, **grids)
    return dataclasses.replace(found, whole_image=None)


@partial(jax.jit, static_argnums=0)
def aligned(model: FashionBert, params: dict, pair: Pair) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(cost [N, T, P], plan [N, T, P], match scores [N]) of N pairs, without the token of the whole image."""
    apply, first = partial(model.apply, {"params": params}), pair.ids.shape[1] + model.spec.first_patch
    text, image = apply(pair.ids, method="embed_text"), apply(pair.features, method="embed_image")
    hidden, means = apply(text, pair.ids != PAD_ID, image, method="encode_pair")
    name = next(task.name for task in model.tasks if task.aligns_words)
    parts = hidden[:, : pair.ids.shape[1]], pair.words != NO_WORD, hidden[:, first:]
    cost, plan = apply(name, "alignment", *parts, method="run_head")
    return cost, plan, match_score(apply(hidden[:, 0], means, method="match_logits"))
