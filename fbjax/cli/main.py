"""The `fbjax` command: its flags and its errors. What a verb does stands in `fbjax.cli.verbs`."""

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path

from fbjax import __version__
from fbjax.cli import verbs

EXAMPLES = {  # in the order in which a newcomer runs them
    "draw": ("fbjax draw --out drawn --products 1000", "fbjax draw --out garments --products 100 --format h5"),
    "prepare": (
        "fbjax prepare --check products.csv",
        "fbjax prepare --config configs/my_catalogue.py --config.data.train=products.csv",
        "fbjax prepare --config configs/my_catalogue.py --config.data.train=products.csv "
        "--beam --beam_options='--direct_num_workers=2'",
    ),
    "train": ("fbjax train --config configs/my_catalogue.py --workdir runs/mine --config.data.train=products.csv",),
    "candidates": (
        "fbjax candidates --config configs/my_catalogue.py --config.data.train=products.csv "
        "--others 20 --small short --out lists.jsonl",
        "fbjax candidates --config configs/my_catalogue.py --config.data.train=products.csv "
        "--split train --others 5 --out train-lists.jsonl",
    ),
    "evaluate": (
        "fbjax evaluate --workdir runs/mine --queries 100 --out metrics.json",
        "fbjax evaluate --workdir runs/mine --candidates lists.jsonl --queries 100",
        "fbjax evaluate --workdir runs/mine --protocol draws,legacy --queries 20",
        "fbjax evaluate --workdir runs/mine --release eval.tsv",
    ),
    "compare": ("fbjax compare runs/mine runs/other --out comparison.json",),
    "baseline": ("fbjax baseline cca --config configs/my_catalogue.py --config.data.train=products.csv --queries 100",),
    "probe": ("fbjax probe --workdir runs/mine --labels category --products 2000",),
    "legacy": ("fbjax legacy scores.tsv", "fbjax legacy scores.tsv --shuffle 0 --out legacy.json"),
    "rank": (
        'fbjax rank --workdir runs/mine --text "red cotton dress"',
        "fbjax rank --workdir runs/mine --image photo.jpg --data products.csv --category dress --html ranking.html",
    ),
    "embed": (
        "fbjax embed --workdir runs/mine --out vectors.npz",
        "fbjax embed --workdir runs/mine --data products.csv --what image --out images.npz",
    ),
    "export": ("fbjax export --workdir runs/mine --format hf --out exported",),
    "import": ("fbjax import --from exported --workdir runs/back",),
    "report": ("fbjax report --workdir runs/mine",),
    "bench": ("fbjax bench --config configs/my_catalogue.py --repeats 0 --json",),
    "plan": (
        "fbjax plan --config configs/my_catalogue.py",
        "fbjax plan --config configs/my_catalogue.py --topology v5e:4x4 --per-chip 8 --plot scaling.svg",
    ),
}
USER_ERRORS = (ValueError, OSError, FloatingPointError, ModuleNotFoundError, TypeError)


def main(argv: list[str] | None = None) -> int:
    """Runs one command; the exit status: 0, 1 on bad input (said in one line), 130 when interrupted.

    Training that is told to stop saves and exits with 75: see `fbjax.parallel.distributed`.
    """
    arguments, rest = _parser().parse_known_args(argv)
    try:
        overrides = _overrides(rest, arguments)
        _quiet_libraries()
        _keep_compilations()
        _look_for_no_tpu()
        arguments.run(arguments, overrides)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except USER_ERRORS as error:
        if os.environ.get("FBJAX_TRACEBACK"):
            raise
        print(f"fbjax: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fbjax", description="FashionBERT: image-text matching and retrieval for product catalogues."
    )
    parser.add_argument("--version", action="version", version=f"fbjax {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name, summary):
        sub = subparsers.add_parser(
            name,
            help=summary,
            description=summary,
            epilog="\n  ".join(["examples:", *EXAMPLES[name]]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=getattr(verbs, {"import": "import_"}.get(name, name)), verb=name)
        return sub

    protocol_help = "which figures, of candidates, matching, draws, legacy, full (default: %(default)s)"
    config_help = "a config file; --config.section.field=value changes a setting"
    draw = verb("draw", "draw a catalogue of garments with captions, to try things on")
    draw.add_argument("--out", required=True, help="folder for train.parquet and validation.parquet")
    draw.add_argument(
        "--format", choices=["parquet", "h5"], default="parquet", help="h5: Fashion-Gen's two files (default: parquet)"
    )
    draw.add_argument("--products", type=int, default=8000, help="how many (default: %(default)s)")
    draw.add_argument("--seed", type=int, default=0, help="another seed, another catalogue (default: %(default)s)")

    prepare = verb("prepare", "turn product tables into records, or check a table first")
    prepare.add_argument("--config", help=config_help)
    prepare.add_argument("--check", metavar="TABLE", help="read a table, say what is understood, propose its mapping")
    prepare.add_argument("--beam", action="store_true", help="by Apache Beam's workers, for huge catalogues")
    prepare.add_argument(
        "--beam_options", metavar="FLAGS", help="Beam's own, as --beam_options='--runner=..' (default: on this machine)"
    )

    train = verb("train", "train; run again with the same workdir, it resumes exactly")
    train.add_argument("--config", required=True, help=config_help)
    train.add_argument("--workdir", required=True, help="folder for checkpoints and logs")

    train.add_argument(
        "--distributed", action="store_true", help="one of many processes that SLURM, a TPU pod or Kubernetes started"
    )
    train.add_argument("--coordinator", metavar="HOST:PORT", help="elsewhere: where process 0 is to be found")
    train.add_argument("--num_processes", type=int, metavar="N", help="... how many there are")
    train.add_argument("--process_id", type=int, metavar="I", help="... and which this is, from 0")
    train.add_argument(
        "--timeout", type=int, default=300, metavar="SECONDS", help="wait so long for the others (default: %(default)s)"
    )

    candidates = verb("candidates", "make fixed candidate lists: each query's own product and others of its category")
    candidates.add_argument("--config", required=True, help=config_help)
    candidates.add_argument(
        "--out", required=True, metavar="LISTS.jsonl", help="what was chosen goes to LISTS.jsonl.json"
    )
    candidates.add_argument("--split", choices=["train", "validation"], help="of the config (default: validation)")
    candidates.add_argument("--data", metavar="TABLE", help="a product table or glob, in place of a split")
    candidates.add_argument("--others", type=int, default=100, help="in each list (default: %(default)s)")
    candidates.add_argument("--queries", type=int, default=1000, help="a direction, at most (default: %(default)s)")
    candidates.add_argument("--seed", type=int, default=0, help="another seed, other lists (default: %(default)s)")
    candidates.add_argument(
        "--small",
        choices=["exclude", "fill", "short"],
        default="exclude",
        help="categories of too few groups: no query of them, filled up from others, or short lists "
        "(default: %(default)s)",
    )

    evaluate = verb("evaluate", "evaluate a checkpoint: retrieval over candidate lists, and matching")
    evaluate.add_argument("--workdir", required=True, help="folder of a trained run")
    evaluate.add_argument("--data", help="a product table or glob (default: the run's validation split)")
    evaluate.add_argument("--candidates", help="fixed lists (see fbjax candidates; default: drawn from the data)")
    evaluate.add_argument("--release", metavar="FILE", help="instead: a prediction file of the authors' release")
    evaluate.add_argument(
        "--direction", choices=["image_to_text", "text_to_image"], help="of --release (default: as its rows show)"
    )
    evaluate.add_argument("--protocol", default="candidates,matching", help=protocol_help)
    evaluate.add_argument("--queries", type=int, help="only the first N queries a direction")
    evaluate.add_argument("--towers", metavar="WORKDIR", help="full: vectors of another run (default: of this one)")
    evaluate.add_argument(
        "--rerank", type=int, help="full: order so many of the nearest anew; 0: none (default: 20 where there is tia)"
    )
    evaluate.add_argument("--step", type=int, help="which checkpoint (default: the best by validation AUC)")
    evaluate.add_argument("--out", help="write the figures to this JSON file")

    baseline = verb(
        "baseline", "evaluate a linear model on the same features: CCA, or VSE as in the paper's comparison"
    )
    baseline.add_argument("family", choices=["cca", "vse"], help="canonical correlation, or embedding by hinge loss")
    baseline.add_argument("--config", required=True, help=config_help)
    baseline.add_argument("--candidates", help="fixed candidate lists, JSONL (default: drawn from the data)")
    baseline.add_argument("--protocol", default="candidates,matching", help=protocol_help)
    baseline.add_argument("--queries", type=int, help="only the first N queries a direction")
    baseline.add_argument("--seed", type=int, default=0, help="of SVD and VSE (default: %(default)s)")
    baseline.add_argument("--dims", type=int, default=512, help="dimensions of the vectors (default: %(default)s)")
    baseline.add_argument(
        "--svd", type=int, default=1000, help="dimensions of a text's features (default: %(default)s)"
    )
    baseline.add_argument(
        "--ridge", type=float, default=0.03, help="cca: share of the mean variance added (default: %(default)s)"
    )
    baseline.add_argument("--hardest", action="store_true", help="vse: the hardest negative alone (VSE++), not all")
    baseline.add_argument("--out", help="write the figures to this JSON file")

    compare = verb("compare", "is one run ahead of another? from their last evaluations over the same lists")
    compare.add_argument("first", metavar="A", help="folder of a trained and evaluated run")
    compare.add_argument("second", metavar="B", help="folder of the one to hold against it")
    compare.add_argument("--out", help="write the figures to this JSON file")

    probe = verb("probe", "what a linear model reads off a run's representation: labels of products")
    probe.add_argument("--workdir", required=True, help="folder of a trained run")
    probe.add_argument("--labels", metavar="COLUMN,..", help="columns of the product tables (default: the category's)")
    probe.add_argument(
        "--products", type=int, default=8000, help="of the train split to learn from, at most (default: %(default)s)"
    )
    probe.add_argument("--step", type=int, help="which checkpoint (default: the best by validation AUC)")
    probe.add_argument("--out", help="write the figures to this JSON file")

    legacy = verb("legacy", "count a score file as the authors' release does, wrongly, and rightly beside it")
    legacy.add_argument("scores", metavar="SCORES.tsv", help="rows of query, label (1 or 0) and score, tabs between")
    legacy.add_argument("--batch", type=int, default=64, help="rows printed at a time (default: %(default)s)")
    legacy.add_argument("--shuffle", type=int, metavar="SEED", help="the rows first (default: as they stand)")
    legacy.add_argument("--out", help="write the figures to this JSON file")

    rank = verb("rank", "rank products for a text or an image")
    rank.add_argument("--workdir", required=True, help="folder of a trained run")
    rank.add_argument("--text", help="rank images for this text ...")
    rank.add_argument("--image", help="... or texts for this image file")
    rank.add_argument("--data", help="a product table or glob (default: the run's validation split)")
    rank.add_argument("--category", help="only products of this category")
    rank.add_argument("--top", type=int, default=10, help="how many to show (default: %(default)s)")
    rank.add_argument("--step", type=int, help="which checkpoint (default: the best by validation AUC)")
    rank.add_argument("--html", help="write the ranking with its pictures to this HTML file")

    embed = verb("embed", "write a catalogue's vectors, for a search index (runs trained with the task itc)")
    embed.add_argument("--workdir", required=True, help="folder of a trained run")
    embed.add_argument("--out", required=True, help="the .npz file: ids, vectors, checkpoint_step, what")
    embed.add_argument("--data", help="a product table or glob (default: a split of the run)")
    embed.add_argument("--split", choices=["train", "validation"], help="of the run (default: validation)")
    embed.add_argument(
        "--what", choices=["product", "text", "image"], default="product", help="(default: %(default)s, both together)"
    )
    embed.add_argument("--step", type=int, help="which checkpoint (default: the best by validation AUC)")

    export = verb("export", "write a run in a format that others load, proved equal to the live model")
    export.add_argument("--workdir", required=True, help="folder of a trained run")
    export.add_argument(
        "--format",
        required=True,
        choices=["hf", "stablehlo", "onnx"],
        help="hf: PyTorch, a Hugging Face folder; stablehlo: JAX alone; onnx: onnxruntime and others",
    )
    export.add_argument("--out", required=True, metavar="DIR", help="a folder that is empty or not there yet")
    export.add_argument("--data", help="prove it on this product table too (default: the run's validation split)")
    export.add_argument("--step", type=int, help="which checkpoint (default: the best by validation AUC)")

    import_ = verb("import", "take a folder of export --format hf back, trained on in PyTorch or not")
    import_.add_argument("--from", required=True, dest="source", metavar="DIR", help="the Hugging Face folder")
    import_.add_argument("--workdir", required=True, help="a folder that is empty or not there yet")

    report = verb("report", "draw a run: curves, figures, rankings with pictures, on one HTML page")
    report.add_argument("--workdir", required=True, help="folder of a trained run")
    report.add_argument("--out", help="the HTML file (default: report.html in the workdir)")
    report.add_argument(
        "--queries", type=int, default=200, help="a direction, where it is not evaluated yet (default: %(default)s)"
    )

    bench = verb("bench", "time training, scoring and patch features on synthetic batches")
    bench.add_argument("--config", default="configs/my_catalogue.py", help=f"{config_help} (default: %(default)s)")
    bench.add_argument(
        "--repeats", type=int, default=10, help="timed rounds; 0 only plans memory (default: %(default)s)"
    )
    bench.add_argument(
        "--compare", choices=["torch"], default="", help="time the same model in PyTorch too: its time over ours"
    )
    bench.add_argument("--trace", metavar="DIR", default="", help="write a profile of three steps to this folder")
    bench.add_argument("--json", action="store_true", help="print JSON")

    plan = verb("plan", "compile the train step ahead of time: memory, FLOPs, collectives, step time, scaling")
    plan.add_argument("--config", required=True, help=config_help)
    plan.add_argument(
        "--topology",
        default="local",
        metavar="NAME,..",
        help="TPU slices such as v5e:4x4, v5p:4x4x8, v6e:16x16, which need not be there (the extra tpu); local: the "
        "devices at hand (default: %(default)s)",
    )
    plan.add_argument(
        "--per-chip",
        type=int,
        help="products on each chip, whose number the batch follows (default: the config's batch)",
    )
    plan.add_argument("--plot", metavar="FILE", help="draw throughput a chip over chips to this .svg, .png or .pdf")
    plan.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _overrides(rest: list[str], arguments) -> list[str]:
    """``--config.a.b=value`` arguments without their prefix; anything else is an error."""
    for argument in rest:
        if not (argument.startswith("--config.") and "=" in argument and hasattr(arguments, "config")):
            raise ValueError(f"unknown argument {argument} (see fbjax {arguments.verb} --help)")
    return [argument.removeprefix("--config.") for argument in rest]


def _quiet_libraries() -> None:
    """Warnings of libraries off; ours are printed."""
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger().setLevel(logging.ERROR)


def _keep_compilations() -> None:
    """Compiled programs are kept for the next command; a cache of the user's own is left as it is.

    Has to come before JAX is imported, which reads the variables; JAX names each file by program, device and version.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(cache, "fbjax", "compiled")
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2 * 2**30))  # bytes; the least recently used go first


def _look_for_no_tpu() -> None:
    """Where libtpu is only there to plan with, JAX would ask it for chips at every start, and it prints its regrets.

    A machine with neither a chip of Google's (PCI vendor 1ae0, as JAX looks for them) nor a GPU has CPUs alone.
    """
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    if find_spec("libtpu") and not any(vendor.read_text().strip() == "0x1ae0" for vendor in vendors):
        if not any(Path("/dev").glob("nvidia*")) and not Path("/dev/dxg").exists():
            os.environ.setdefault("JAX_PLATFORMS", "cpu")


if __name__ == "__main__":
    sys.exit(main())
