"""Where a fresh run's weights come from, a pretrained BERT or another run, and the mistakes of that run's towers."""

from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special

from fbjax.core.console import say
from fbjax.core.paths import as_path
from fbjax.data.batches.pipeline import read_texts
from fbjax.data.batches.sampler import Sampler
from fbjax.data.records.builder import Records
from fbjax.inference.embedder import make_embedder
from fbjax.inference.pair_scorer import PairScorer
from fbjax.model import bert_weights
from fbjax.runs.feature_cache import image_inputs
from fbjax.runs.run import MINED, Run
from fbjax.runs.trained import load_params, newest_step

CALIBRATED = 512  # products
POSITIONS = "fashionbert/text_embeddings/position"


def check_start(run: Run, workdir: str | Path, mesh) -> None:
    """Raises ValueError or OSError, before long work, where `run` cannot start from the run that its config names.

    A run with a checkpoint has started: of it only the mined negatives must still be there.
    """
    config, begun = run.config, any((as_path(workdir) / "checkpoints").glob("[0-9]*"))
    if begun and config.tasks.mined and not (as_path(workdir) / MINED).is_file():
        raise FileNotFoundError(f"{workdir} has checkpoints but no {MINED}: its mined negatives cannot be drawn again")
    if begun or not config.train.start_from:
        return
    start, _, theirs = _newest_of_start(run, mesh)
    if config.tasks.mined:
        make_embedder(start.config, start.model, start.feature_input, mesh)
    if "patches" in theirs and not config.patches.trainable:
        raise ValueError(
            f"train.start_from {config.train.start_from} has trained its patch network along, this config does not: "
            "its weights would be lost (set patches.trainable)"
        )


def initial_params(params: dict, run: Run, mesh) -> dict:
    """`params`, freshly initialised, with all that the run of `train.start_from`, else its BERT, has of them.

    A run that reads longer texts than the one it starts from has the positions that this lacks from BERT.
    """
    config = run.config
    if config.model.pretrained:
        folder = bert_weights.find(config.model.pretrained)
        imported = bert_weights.load_bert(folder, config.model, params["fashionbert"], run.vocabulary.rows)
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


def calibrate_tia_bias(params: dict, run: Run, records: Records, sampler: Sampler, scorer: PairScorer) -> dict:
    """`params` with the bias of TIA's head moved to where it splits true from negative pairs of the first batches.

    Towers know which of two pairs fits better, not from which cosine on a pair matches. Left to training, the error of
    that one number undoes much of what they know before it is mended.
    """
    num_batches = -(-CALIBRATED // sampler.batch_size)
    rows, negatives = np.concatenate([sampler.batch(step) for step in range(num_batches)], axis=1)
    variables = run.frozen | params
    ids = read_texts(records, rows, run.vocabulary, run.config.model.text_tokens)
    inputs = image_inputs(run, records, np.concatenate([rows, negatives]), scorer.batch_size)
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


def _newest_of_start(run: Run, mesh) -> tuple[Run, int, dict]:
    """The run of `train.start_from`, its last checkpoint's step and parameters: none picked by a validation figure."""
    workdir = run.config.train.start_from
    start = Run.open_alike(workdir, run)
    return start, *load_params(start, workdir, mesh, newest_step(workdir))


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
