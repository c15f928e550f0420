"""Verbs that compute metrics: of a run, of two runs, of a linear baseline, of a score file."""

import tempfile
from pathlib import Path

from fbjax.cli.common import (
    CANDIDATES,
    CONFIG,
    OUT,
    PROTOCOL,
    QUERIES,
    RELEVANT,
    STEP,
    WORKDIR,
    flag,
    names,
    show,
    verb,
)

DIRECTION = "direction of the --release file (default: inferred from its rows)"
RERANK = "protocol full: number of nearest products to rerank, 0 for none (default: 20 if the run has the task tia)"
TABLES = "product tables or globs, together the data (default: the run's validation split)"
TOWERS = "protocols full, queries, mixed: run that embeds the products (default: the run itself)"
HUBS = "protocols queries, mixed: also correct for hubs by at most N training texts, 100,000 without N (default: off)"


@verb(
    "evaluate a checkpoint: retrieval over candidate lists, and matching",
    WORKDIR,
    flag("--data", TABLES, nargs="+", action="extend", metavar="TABLE"),
    CANDIDATES,
    flag("--release", "prediction file of the authors' release to evaluate on (default: none)", metavar="FILE"),
    flag("--direction", DIRECTION, choices=["image_to_text", "text_to_image"]),
    PROTOCOL,
    RELEVANT,
    QUERIES,
    flag("--towers", TOWERS, metavar="WORKDIR"),
    flag("--rerank", RERANK, type=int, metavar="N"),
    flag("--correct-hubs", HUBS, type=int, nargs="?", const=100_000, metavar="N"),
    STEP,
    OUT,
    examples=(
        "fbjax evaluate --workdir runs/mine --queries 100 --out metrics.json",
        "fbjax evaluate --workdir runs/mine --candidates lists.jsonl --queries 100",
        "fbjax evaluate --workdir runs/mine --protocol draws,legacy --queries 20",
        "fbjax evaluate --workdir runs/mine --data products.csv --protocol queries --relevant queries.jsonl",
        "fbjax evaluate --workdir runs/mine --release eval.tsv",
    ),
)
def evaluate(release, direction, out, **request) -> None:
    from fbjax.evaluation.evaluate import evaluate
    from fbjax.evaluation.protocols import print_figures

    if release or direction:
        return _evaluate_release(release, direction, out, request)
    show(evaluate(**request), print_figures, out)


def _evaluate_release(release: str | None, direction: str | None, out: str | None, request: dict) -> None:
    from fbjax.core.console import say
    from fbjax.evaluation.released.prediction_file import evaluate_release, print_figures

    if not release:
        raise ValueError(f"--direction {direction} is for --release FILE")
    for name in ("data", "candidates", "relevant", "num_queries", "towers", "rerank", "correct_hubs"):
        if request[name] is not None:
            flag = f"--{name.removeprefix('num_').replace('_', '-')}"
            raise ValueError(f"{flag} does not go with --release, whose file holds the pairs: leave it out")
    figures = evaluate_release(request["workdir"], release, say, direction=direction, step=request["step"])
    show(figures, print_figures, out)


@verb(
    "compare two runs by their last evaluations over the same lists or gallery",
    flag("first", "folder of an evaluated run", metavar="A"),
    flag("second", "folder of the evaluated run to compare it with", metavar="B"),
    OUT,
    examples=("fbjax compare runs/mine runs/other --out comparison.json",),
)
def compare(first, second, out) -> None:
    from fbjax.evaluation.compare import compare, print_figures

    show(compare(first, second), print_figures, out)


FAMILIES = (
    "ngrams: a learned vector for each word, word pair and image feature, by a contrast; vse: embeddings from a hinge "
    "loss, as in the paper; cca: canonical correlation analysis"
)


@verb(
    "evaluate a linear model on the same features: n-grams, VSE as in the paper, or CCA",
    flag("family", FAMILIES, choices=["cca", "ngrams", "vse"]),
    CONFIG,
    flag("--workdir", "folder that keeps the evaluation, and the model of ngrams, as a run does (default: none)"),
    CANDIDATES,
    PROTOCOL,
    RELEVANT,
    QUERIES,
    flag("--seed", "random seed of the model", type=int, default=0),
    flag("--dims", "dimensions of the embeddings", type=int, default=512),
    flag("--svd", "cca, vse: dimensions of the text features (default: 1000)", dest="num_directions", type=int),
    flag("--ridge", "cca: regularisation, as a share of the mean variance (default: 0.03)", type=float),
    flag("--hardest", "vse: use only the hardest negative (VSE++), not all", action="store_true"),
    OUT,
    examples=(
        "fbjax baseline ngrams --config configs/my_catalogue.py --config.data.train=products.csv --queries 100",
        "fbjax baseline cca --config configs/my_catalogue.py --config.data.train=products.csv --queries 100",
    ),
)
def baseline(family, out, workdir, **request) -> None:
    from fbjax.evaluation.protocols import print_figures

    if family == "ngrams":
        figures = _train_ngrams(workdir, **request)
    else:
        from fbjax.evaluation.baselines.run import baseline

        figures = baseline(family, workdir=workdir, **request)
    show(figures, print_figures, out)


def _train_ngrams(workdir, config, seed, dims, num_directions, ridge, hardest, **request) -> dict:
    """Trains the linear model of n-grams in `workdir`, or in a folder that is removed, and evaluates it."""
    given = {"--svd": num_directions is not None, "--ridge": ridge is not None, "--hardest": hardest}
    if unused := [name for name, is_given in given.items() if is_given]:
        raise ValueError(f"{', '.join(unused)} is not for ngrams: leave it out")
    from fbjax.evaluation import protocols, queries
    from fbjax.evaluation.baselines.ngrams import ngrams_config
    from fbjax.evaluation.evaluate import MIXED, evaluate
    from fbjax.runs.halves import trained_half
    from fbjax.training.loop import train

    # what the evaluation would refuse is refused before long work
    protocols.read_request(request["protocols"], request["candidates"], request["num_queries"])
    queries.read_request(request["protocols"], request["relevant"], request["num_queries"])
    if "mixed" in request["protocols"]:
        trained_half(config, workdir or "this baseline", MIXED)
    with tempfile.TemporaryDirectory() as folder:
        train(ngrams_config(config, seed, dims), workdir or folder)
        return evaluate(workdir or folder, **request)


@verb(
    "fit a linear probe on a run's representation, to predict labels of products",
    WORKDIR,
    flag("--labels", "label columns, with commas between (default: the category column)", type=names, default=()),
    flag("--products", "maximum number of training products", dest="num_products", type=int, default=8000),
    STEP,
    OUT,
    examples=("fbjax probe --workdir runs/mine --labels category --products 2000",),
)
def probe(out, **request) -> None:
    from fbjax.evaluation.baselines.probe import print_figures, probe

    show(probe(**request), print_figures, out)


@verb(
    "compute a score file's metrics with the counting error of the authors' release, and without it",
    flag("scores", "tab-separated rows of query, label (1 or 0) and score", metavar="SCORES.tsv"),
    flag("--batch", "rows in each batch of the release's output", type=int, default=64),
    flag("--shuffle", "random seed to shuffle the rows with (default: no shuffling)", type=int, metavar="SEED"),
    OUT,
    examples=("fbjax legacy scores.tsv", "fbjax legacy scores.tsv --shuffle 0 --out legacy.json"),
)
def legacy(scores, batch, shuffle, out) -> None:
    from fbjax.evaluation.released.legacy import WARNING, legacy_figures, print_figures, read_scores

    figures = legacy_figures(*read_scores(scores), batch, shuffle)
    print(WARNING)
    show(figures, lambda figures, say: print_figures(figures, Path(scores).name, say), out)
