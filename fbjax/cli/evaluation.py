"""Verbs that compute metrics: of a run, of two runs, of a linear baseline, of a score file."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from fbjax.cli.common import (
    BEAMS,
    CANDIDATES,
    CONFIG,
    INDEX_FORM,
    INDEX_TOKEN,
    OUT,
    PROTOCOL,
    QUERIES,
    RELEVANT,
    STEP,
    WORKDIR,
    flag,
    names,
    out_folder,
    positive_number,
    show,
    verb,
    whole_number,
)
from fbjax.core.console import say

DIRECTION = "direction of the --release file (default: inferred from its rows)"
RERANK = "protocol full: number of nearest products to rerank, 0 for none (default: 20 if the run has the task tia)"
TABLES = "product tables or globs, together the data (default: the run's validation split)"
LOG = "protocols log, system: table of events, or groups for products of one group (default: the run's log)"
TOWERS = "protocols full, queries, mixed, marqo, log: run that embeds the products (default: the run itself)"
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
    whole_number("--rerank", RERANK, at_least=0, metavar="N"),
    flag("--log", LOG, metavar="TABLE"),
    flag("--index", f"protocol system: {INDEX_FORM} (default: index)"),
    whole_number("--correct-hubs", HUBS, nargs="?", const=100_000, metavar="N"),
    whole_number("--beams", f"protocol captioning: {BEAMS}", metavar="N"),
    STEP,
    OUT,
    examples=(
        "fbjax evaluate --workdir runs/mine --queries 100 --out metrics.json",
        "fbjax evaluate --workdir runs/mine --candidates lists.jsonl --queries 100",
        "fbjax evaluate --workdir runs/mine --protocol draws,legacy --queries 20",
        "fbjax evaluate --workdir runs/mine --data products.csv --protocol queries --relevant queries.jsonl",
        "fbjax evaluate --workdir runs/mine --data products.csv --protocol marqo",
        "fbjax evaluate --workdir runs/mine --release eval.tsv",
    ),
)
def evaluate(release, direction, index, out, **request) -> None:
    from fbjax.evaluation.evaluate import evaluate
    from fbjax.evaluation.protocols import print_figures

    if "system" in request["protocols"] or index:
        return _evaluate_index(index or "index", out, request)
    if release or direction:
        return _evaluate_release(release, direction, out, request)
    show(evaluate(**request), print_figures, out)


def _evaluate_index(index: str, out: str | None, request: dict) -> None:
    from fbjax.evaluation.galleries.system import evaluate_index
    from fbjax.evaluation.protocols import print_figures

    asked = {name: request.pop(name) for name in ("workdir", "relevant", "log", "num_queries")}
    if request.pop("protocols") != ("system",) or any(value is not None for value in request.values()):
        raise ValueError("an index is evaluated by --protocol system alone, with --relevant FILE or --log TABLE")
    show(evaluate_index(index, token=os.environ.get(INDEX_TOKEN, ""), **asked), print_figures, out)


def _evaluate_release(release: str | None, direction: str | None, out: str | None, request: dict) -> None:
    from fbjax.evaluation.released.prediction_file import evaluate_release, print_figures

    if not release:
        raise ValueError(f"--direction {direction} is for --release FILE")
    for name in ("data", "candidates", "relevant", "num_queries", "towers", "rerank", "correct_hubs", "log", "beams"):
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
    "loss, as in the paper; cca: canonical correlation analysis; bm25: no model, for the queries of a log"
)


@verb(
    "evaluate a linear model on the same features: n-grams, VSE as in the paper, or CCA; or a search of words, BM25",
    flag("family", FAMILIES, choices=["bm25", "cca", "ngrams", "vse"]),
    CONFIG,
    out_folder("--workdir", "folder that keeps the evaluation, and the model of ngrams, as a run does (default: none)"),
    CANDIDATES,
    PROTOCOL,
    RELEVANT,
    QUERIES,
    whole_number("--seed", "random seed of the model", at_least=0, default=0),
    whole_number("--dims", "dimensions of the embeddings", default=512),
    whole_number("--svd", "cca, vse: dimensions of the text features (default: 1000)", dest="num_directions"),
    positive_number("--ridge", "cca: regularisation, as a share of the mean variance (default: 0.03)"),
    flag("--hardest", "vse: use only the hardest negative (VSE++), not all", action="store_true"),
    OUT,
    examples=(
        "fbjax baseline ngrams --config configs/my_catalogue.py --config.data.train=products.csv --queries 100",
        "fbjax baseline cca --config configs/my_catalogue.py --config.data.train=products.csv --queries 100",
        "fbjax baseline bm25 --config configs/my_catalogue.py --config.data.train=products.csv "
        "--config.log.table=clicks.csv",
    ),
)
def baseline(family, out, workdir, **request) -> None:
    from fbjax.evaluation.protocols import print_figures

    if family == "bm25":
        figures = _search_words(workdir, **request)
    elif family == "ngrams":
        figures = _train_ngrams(workdir, **request)
    else:
        from fbjax.evaluation.baselines.run import baseline

        figures = baseline(family, workdir=workdir, **request)
    show(figures, print_figures, out)


def _search_words(workdir, config, num_queries, num_directions, ridge, hardest, candidates, relevant, **_) -> dict:
    """The figures of BM25, which answers the queries of a log and has nothing to fit."""
    from fbjax.evaluation.baselines.bm25 import bm25

    given = {"--svd": num_directions, "--ridge": ridge, "--candidates": candidates, "--relevant": relevant}
    given["--hardest"] = hardest or None
    if unused := [name for name, value in given.items() if value is not None]:
        raise ValueError(f"{', '.join(unused)} is not for bm25: leave it out")
    return bm25(config, num_queries=num_queries, workdir=workdir)


def _train_ngrams(workdir, config, seed, dims, num_directions, ridge, hardest, **request) -> dict:
    """Trains the linear model of n-grams in `workdir`, or in a folder that is removed, and evaluates it."""
    given = {"--svd": num_directions is not None, "--ridge": ridge is not None, "--hardest": hardest}
    if unused := [name for name, is_given in given.items() if is_given]:
        raise ValueError(f"{', '.join(unused)} is not for ngrams: leave it out")
    from fbjax.evaluation import protocols
    from fbjax.evaluation.baselines.ngrams import ngrams_config
    from fbjax.evaluation.evaluate import MIXED, evaluate
    from fbjax.evaluation.galleries import queries
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
    whole_number("--products", "maximum number of training products", dest="num_products", default=8000),
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
    whole_number("--batch", "rows in each batch of the release's output", default=64),
    whole_number(
        "--shuffle", "random seed to shuffle the rows with (default: no shuffling)", at_least=0, metavar="SEED"
    ),
    OUT,
    examples=("fbjax legacy scores.tsv", "fbjax legacy scores.tsv --shuffle 0 --out legacy.json"),
)
def legacy(scores, batch, shuffle, out) -> None:
    from fbjax.evaluation.released.legacy import WARNING, legacy_figures, print_figures, read_scores

    def print_with_warning(figures: dict, say: Callable) -> None:
        say(WARNING)
        print_figures(figures, Path(scores).name, say)

    show(legacy_figures(*read_scores(scores), batch, shuffle), print_with_warning, out)
