"""The weights that a fresh run starts from: a pretrained BERT's or another run's."""

from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special

from fbjax.core.console import say
from fbjax.core.paths import as_path
from fbjax.data.batches.sampler import Sampler
from fbjax.data.batches.split import Split
from fbjax.inference.pair_scorer import PairScorer
from fbjax.model import bert_weights
from fbjax.model.embeddings import QUERY_SEGMENT, TEXT_SEGMENT
from fbjax.model.grids.pictures import mean_picture
from fbjax.model.linear import feature_roots
from fbjax.model.lora import FACTORS, SCALE
from fbjax.runs.feature_cache import image_inputs, text_inputs
from fbjax.runs.loaded import LoadedRun
from fbjax.runs.run import Run
from fbjax.runs.state import abstract_state

CALIBRATED, STANDARDISED = 512, 2048  # products
IMAGES_AT_ONCE = 64
NAMED = 4  # of the arrays of one module
SMALLEST_DEVIATION = 1e-3  # of a feature's root: smaller ones are noise
POSITIONS, SEGMENTS = "fashionbert/text_embeddings/position", "text_embeddings"
LAYER = "fashionbert/encoder/layer_"


def check_start(run: Run, workdir: str | Path, mesh) -> None:
    """Raises ValueError or OSError, before long work, where `run` cannot start from the run that its config names."""
    config, given = run.config, set()
    if any((as_path(workdir) / "checkpoints").glob("[0-9]*")):
        return
    for name in config.train.starts:
        start = LoadedRun.newest(name, run, mesh)
        given |= names_of(start.params)
        if "patches" in start.params and config.patches.mode != "trained":
            raise ValueError(
                f"train.start_from {name} has trained its patch network, this config does not: "
                "its weights would be lost (set patches.mode to 'trained')"
            )
    if config.lora.layers:
        _check_all_given(run, mesh, given)


def _check_all_given(run: Run, mesh, given: set[str]) -> None:
    """Raises ValueError where LoRA would freeze parameters at random values: BERT does not give them, nor is their name
    among `given`."""
    if run.config.model.pretrained:
        given = given | {f"fashionbert/{name}" for name in bert_weights.parameter_names(run.config.model.num_layers)}
    base = abstract_state(run.objective, run.optimizer, run.config, mesh).base
    if lacking := sorted(names_of(base) - given - {f"{FACTORS}/{SCALE}"}):
        group = "/".join(lacking[0].split("/")[:2])
        raise ValueError(
            f"lora would leave parameters at random values, as nothing that it starts from has them: "
            f"{in_short(lacking)} (train them: config.groups.{group}.rate=1, or start from a run that has them)"
        )


def names_of(params: dict) -> set[str]:
    return set(flax.traverse_util.flatten_dict(params, sep="/"))


def initial_params(params: dict, run: Run, records: Split, rows: np.ndarray, mesh) -> dict:
    """`params`, freshly initialised, with all that the runs of `train.start_from`, else its BERT, have of them.

    A run that reads longer texts than the one it starts from has the positions that this lacks from BERT. A linear
    branch has the moments of the features of the training images, `rows` of `records`.
    """
    config = run.config
    if run.model.reads_bags:
        params = standardised(params, run, records, rows)
    if config.model.pretrained and config.reads_encoder:
        folder = bert_weights.find(config.model.pretrained)
        imported = bert_weights.load_bert(folder, config.model, params["fashionbert"], run.vocabulary.rows)
        params = params | {"fashionbert": imported.params}
        taken, layers = len(imported.taken), config.model.num_layers
        say(f"BERT {config.model.pretrained}: {taken} arrays, its first {layers} layers")
        if not config.train.start_from:
            say(f"initialised, as BERT lacks them: {', '.join(imported.initialised)}")
    for name in config.train.starts:
        start = LoadedRun.newest(name, run, mesh)
        given = start.params if start.run.classes == run.classes else without_classes(start)
        params = _taken_over(params, given, f"{name}, step {start.step}")
        if config.reads_queries and SEGMENTS in start.params["fashionbert"] and not start.run.config.reads_queries:
            params = _with_query_segment(params)
    return params


def without_classes(start: LoadedRun) -> dict:
    """The parameters of a run without the head on its attributes, whose classes are not this run's."""
    owned = {name for task in start.run.config.tasks.values() if task.predicts_attributes for name in task.owns}
    model = {name: part for name, part in start.params["fashionbert"].items() if name not in owned}
    return start.params | {"fashionbert": model}


def _with_query_segment(params: dict) -> dict:
    """`params` whose queries begin in the segment of texts: the run that these come from has read no query."""
    model = params["fashionbert"]
    table = model[SEGMENTS]["segment"]
    table = jax.device_put(table.at[QUERY_SEGMENT].set(table[TEXT_SEGMENT]), table.sharding)
    return params | {"fashionbert": model | {SEGMENTS: model[SEGMENTS] | {"segment": table}}}


def standardised(params: dict, run: Run, records: Split, rows: np.ndarray) -> dict:
    """`params` with the linear branch's moments, from the features of at most `STANDARDISED` of the images `rows`."""
    rows = np.sort(np.random.default_rng(run.config.train.seed).permutation(rows)[:STANDARDISED])
    patches = (run.frozen | params).get("patches", {})
    network = run.feature_input
    one = lambda patches, images: mean_picture(network.apply(patches, images), network.num_images)  # noqa: E731
    roots = jax.jit(lambda patches, images: feature_roots(one(patches, images)))
    count, total, squares = 0, 0.0, 0.0
    for images in image_inputs(run, records, rows, IMAGES_AT_ONCE, "images to standardise"):
        found = np.asarray(roots(patches, images), np.float64)
        count, total, squares = count + len(found), total + found.sum(axis=0), squares + np.square(found).sum(axis=0)
    mean = total / count
    deviation = np.maximum(np.sqrt(np.maximum(squares / count - mean**2, 0)), SMALLEST_DEVIATION)
    linear = dict(params["fashionbert"]["linear"])
    for name, values in (("mean", mean), ("deviation", deviation)):
        linear[name] = jax.device_put(values.astype(np.float32), linear[name].sharding)
    return params | {"fashionbert": params["fashionbert"] | {"linear": linear}}


def calibrate_match_bias(params: dict, run: Run, records: Split, sampler: Sampler, scorer: PairScorer) -> dict:
    """`params` with the bias of the match head moved to where it splits true from negative pairs of the first batches.

    A contrast teaches which of two pairs fits better, not from which cosine on a pair matches. A wrong bias would
    change many weights before training corrects it.
    """
    num_batches = -(-CALIBRATED // sampler.batch_size)
    rows, negatives = np.concatenate([sampler.batch(step) for step in range(num_batches)], axis=1)
    variables = run.frozen | params
    ids = text_inputs(run, records, rows)
    inputs = image_inputs(run, records, np.concatenate([rows, negatives]), scorer.batch_size)
    texts = np.arange(len(rows))
    pairs = np.stack([np.tile(texts, 2), np.arange(2 * len(rows))], axis=1)
    scores = scorer.score(variables, ids, scorer.embed_images(variables, inputs), pairs)
    # where as many pairs are expected to match as not: logistic regression's intercept
    split = scipy.optimize.brentq(lambda at: scipy.special.expit(scores - at).mean() - 0.5, scores.min(), scores.max())
    matched, mismatched = (scores > split).reshape(2, -1).mean(axis=1)
    say(f"alignment starts from a bias of {-split:.1f}: {matched:.0%} of pairs match, {mismatched:.0%} of mismatches")
    task = next(task for task in run.objective.tasks if task.scores_pairs)
    return params | {"fashionbert": task.shifted(params["fashionbert"], split)}


def trains_match_head(run: Run, trained: dict) -> bool:
    """Whether parameters of a task that scores pairs are among those that are `trained`."""
    owned = {name for task in run.objective.tasks if task.scores_pairs for name in task.owns}
    return bool(owned & trained.get("fashionbert", {}).keys())


def in_short(names: list[str]) -> str:
    """Paths of parameters, sorted, for a reader: where a module has many, their number."""
    modules = {}
    for name in names:
        modules.setdefault("/".join(name.split("/")[:2]), []).append(name)
    return ", ".join(
        ", ".join(inside) if len(inside) <= NAMED else f"{module} ({len(inside)} arrays)"
        for module, inside in modules.items()
    )


def _taken_over(params: dict, theirs: dict, name: str) -> dict:
    ours, theirs = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (params, theirs))
    shared = ours.keys() & theirs.keys()
    if POSITIONS in shared and len(theirs[POSITIONS]) < len(ours[POSITIONS]):
        known = len(theirs[POSITIONS])
        theirs[POSITIONS] = jnp.concatenate([theirs[POSITIONS], ours[POSITIONS][known:]])
        say(f"its texts are shorter: positions from {known} on stay as they are")
    elif POSITIONS in shared and len(theirs[POSITIONS]) > len(ours[POSITIONS]):
        theirs[POSITIONS] = theirs[POSITIONS][: len(ours[POSITIONS])]
        say(f"its texts are longer: its first {len(ours[POSITIONS])} positions")
    unlike = [
        f"{k} {theirs[k].shape}, here {ours[k].shape}" for k in sorted(shared) if theirs[k].shape != ours[k].shape
    ]
    if unlike:
        raise ValueError(f"the weights of {name} do not fit the config:\n  " + "\n  ".join(unlike))
    say(f"starting from {name}: {len(shared)} arrays")
    num_layers, there = _num_layers(ours), _num_layers(theirs)
    if there > num_layers > 0:
        say(f"its first {num_layers} of {there} layers")
        theirs = {k: v for k, v in theirs.items() if k in shared or not k.startswith(LAYER)}
    if fresh := sorted(ours.keys() - shared):
        say(f"staying as they are, as it lacks them: {in_short(fresh)}")
    if left := sorted(theirs.keys() - shared):
        say(f"left behind, as this run has no place for them: {in_short(left)}")
    merged = {k: jax.device_put(theirs[k], v.sharding) if k in shared else v for k, v in ours.items()}
    return flax.traverse_util.unflatten_dict(merged, sep="/")


def _num_layers(flat: dict) -> int:
    """Of the encoder."""
    return len({name.split("/")[2] for name in flat if name.startswith(LAYER)})
