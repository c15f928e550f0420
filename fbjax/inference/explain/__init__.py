"""Why a text matches an image, or does not: what each word and each patch of the image contributes to their score."""

from fbjax.inference.explain.alignment import alignment
from fbjax.inference.explain.attention import attention
from fbjax.inference.explain.explanation import Explanation as Explanation
from fbjax.inference.explain.gradient import gradient
from fbjax.inference.explain.occlusion import occlusion
from fbjax.inference.model import Model
from fbjax.runs.run import Run

METHODS = {"gradient": gradient, "occlusion": occlusion, "attention": attention, "alignment": alignment}


def explain(model: Model, text: str, image, method: str = "gradient") -> Explanation:
    """The `Explanation` of the score of `text` with `image` (a path, encoded bytes, a PIL image or pixels).

    `gradient`: integrated gradients, which add up to the score's difference from that of nothing, in a time that does
    not grow with the number of parts. `occlusion`: the drop of the score without each part, one at a time. `attention`:
    attention rollout, of runs that score pairs. `alignment`: which word goes to which patch, of runs that learn it.
    Raises ValueError where the text has no words, where the image cannot
    be read, and where the run does not support the method. A dual encoder supports none.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown (use {', '.join(METHODS)})")
    if not can_explain(model.run):
        why = "it is a dual encoder (CLIP, SigLIP), reads features, or several pictures of a product (data.max_images)"
        raise ValueError(f"no method explains {model.workdir}: {why}")
    return METHODS[method](model, text, image)


def can_explain(run: Run) -> bool:
    """Whether words and patches can be hidden: not from a dual encoder, nor where a run reads ready-made features or
    several pictures of a product."""
    apart = any(task.reads_apart == "dual" for task in run.model.tasks)
    return not apart and not run.config.data.feature_size and run.config.data.max_images == 1
