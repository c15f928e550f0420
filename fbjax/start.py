"""Where a fresh run's weights come from, a pretrained BERT or another run, and the mistakes of that run's towers."""

from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special

from fbjax.console import say
from fbjax.data.catalogue import Records
from fbjax.data.pipeline import read_texts
from fbjax.data.sampling import Sampler
from fbjax.embed import split_vectors
from fbjax.features import image_inputs
from fbjax.model import pretrained
from fbjax.places import here, place, replacing
from fbjax.scoring import Scorer
from fbjax.towers import trained_towers
from fbjax.trained import load_params, newest_step
from fbjax.workdir import MINED, Run

ROWS_AT_ONCE = 1024
CALIBRATED = 512  # products
POSITIONS = "fashionbert/text_embeddings/position"


def check_start(run: Run, workdir: str | Path, mesh) -> None:
    """Raises ValueError or OSError, before long work, where `run` cannot start from the run that its config names.

    A run with a checkpoint has started: of it only the mined partners must still be there.
    """
    config, begun = run.config, any((place(workdir) / "checkpoints").glob("[0-9]*"))
    if begun and config.tasks.mined and not (place(workdir) / MINED).is_file():
        raise FileNotFoundError(f"{workdir} has checkpoints but no {MINED}: its mined partners cannot be drawn again")
    if begun or not config.train.start_from:
        return
    start, _, theirs = _newest_of_start(run, mesh)
    if config.tasks.mined:
        trained_towers(start.config, start.model, start.step_patches, mesh)
    if "patches" in theirs and not config.patches.trainable:
        raise ValueError(
            f"train.start_from {config.train.start_from} has trained its patch network along, this config does not: "
            "its weights would be lost (set patches.trainable)"
        )


def starting_params(params: dict, run: Run, mesh) -> dict:
    """`params`, freshly initialised, with all that the run of `train.start_from`, else its BERT, has of them.

    A run that reads longer texts than the one it starts from has the positions that this lacks from BERT.
    """
    config = run.config
    if config.model.pretrained:
        folder = pretrained.find(config.model.pretrained)
        imported = pretrained.load_bert(folder, config.model, params["fashionbert"], run.vocabulary.rows)
        params = params | {"fashionbert": imported.params}
        taken, layers = len(imported.taken), config.model.num_layers
        say(f"BERT {config.model.pretrained}: {taken} arrays, its first {layers} layers")
        if not config.train.start_from:
            say(f"initialised, as BERT lacks them: {', '.join(imported.initialised)}")
    if config.train.start_from:
        start, step, theirs = _newest_of_start(run, mesh)
        params = _taken_over(params, theirs, f"{config.train.start_from}, step {step}")
        if "tia" not in start.config.tasks.names:
            # nobody has trained this head: its random numbers would drown what the towers' cosines say
            params["fashionbert"]["tia"]["kernel"] *= 0
    return params


def calibrated(params: dict, run: Run, records: Records, sampler: Sampler, scorer: Scorer) -> dict:
    """`params` with the bias of TIA's head moved to where it splits true from mismatched pairs of the first batches.

    Towers know which of two pairs fits better, not from which cosine on a pair matches. Left to training, the error of
    that one number undoes much of what they know before it is mended.
    """
    num_batches = -(-CALIBRATED // sampler.batch_size)
    rows, partners = np.concatenate([sampler.batch(step) for step in range(num_batches)], axis=1)
    variables = run.frozen | params
    ids = read_texts(records, rows, run.vocabulary, run.config.model.text_tokens)
    inputs = image_inputs(run, records, np.concatenate([rows, partners]), scorer.batch_size)
    texts = np.arange(len(rows))
    pairs = np.stack([np.tile(texts, 2), np.arange(2 * len(rows))], axis=1)
    scores = scorer.score(variables, ids, scorer.embed_images(variables, inputs), pairs)
    # where as many pairs are expected to match as not: logistic regression's intercept
    split = scipy.optimize.brentq(lambda at: scipy.special.expit(scores - at).mean() - 0.5, scores.min(), scores.max())
    matched, mismatched = (scores > split).reshape(2, -1).mean(axis=1)
    say(f"alignment starts from a bias of {-split:.1f}: {matched:.0%} of pairs match, {mismatched:.0%} of mismatches")
    head = params["fashionbert"]["tia"]
    head = head | {"bias": head["bias"] + jnp.array([split / 2, -split / 2], jnp.float32)}
    return params | {"fashionbert": params["fashionbert"] | {"tia": head}}


def nearest_mistakes(run: Run, workdir: str | Path, records: Records, mesh) -> np.ndarray:
    """For each product the rows of `tasks.mined_nearest` products of other groups and texts whose images the towers of
    `train.start_from` find nearest to its text, int32 [N, M], -1 where there are not as many.

    Found once and kept in the workdir.
    """
    path = place(workdir) / MINED
    if not path.is_file():
        start, step, params = _newest_of_start(run, mesh)
        towers = trained_towers(start.config, start.model, start.step_patches, mesh)
        ids = read_texts(records, np.arange(len(records)), run.vocabulary, start.config.model.text_tokens)
        texts, images = split_vectors(start, towers, start.frozen | params, records, ids)
        _, same_text = np.unique(ids, axis=0, return_inverse=True)
        mined = nearest_apart(texts, images, records.groups, same_text, run.config.tasks.mined_nearest)
        with replacing(path) as file:
            np.save(file, mined)
        say(f"mined: the {mined.shape[1]} nearest mistakes of step {step} of {run.config.train.start_from}")
    with here(path) as file:
        return np.load(file)


def _newest_of_start(run: Run, mesh) -> tuple[Run, int, dict]:
    """The run of `train.start_from`, its last checkpoint's step and parameters: none picked by a validation figure."""
    workdir = run.config.train.start_from
    start = Run.open_alike(workdir, run)
    return start, *load_params(start, workdir, mesh, newest_step(workdir))


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


def _taken_over(params: dict, theirs: dict, name: str) -> dict:
    ours, theirs = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (params, theirs))
    shared = ours.keys() & theirs.keys()
    if POSITIONS in shared and len(theirs[POSITIONS]) < len(ours[POSITIONS]):
        known = len(theirs[POSITIONS])
        theirs[POSITIONS] = jnp.concatenate([theirs[POSITIONS], ours[POSITIONS][known:]])
        say(f"its texts are shorter: positions from {known} on stay as they are")
    unlike = [
        f"{k} {theirs[k].shape}, here {ours[k].shape}" for k in sorted(shared) if theirs[k].shape != ours[k].shape
    ]
    if unlike:
        raise ValueError(f"the weights of {name} do not fit the config:\n  " + "\n  ".join(unlike))
    say(f"starting from {name}: {len(shared)} arrays")
    if fresh := sorted(ours.keys() - shared):
        say("staying as they are, as it lacks them: " + ", ".join(fresh))
    if left := sorted(theirs.keys() - shared):
        say("left behind, as this run has no place for them: " + ", ".join(left))
    merged = {k: jax.device_put(theirs[k], v.sharding) if k in shared else v for k, v in ours.items()}
    return flax.traverse_util.unflatten_dict(merged, sep="/")
