"""The `fbjax` command: verbs, their flags and their errors. Verbs import what they need when they run."""

import argparse
import json
import os
import sys
from pathlib import Path

from fbjax import __version__

EXAMPLES = {
    "prepare": "fbjax prepare --config configs/catalogue.py --config.data.prepared=prepared",
    "train": "fbjax train --config configs/catalogue.py --workdir runs/catalogue --config.train.num_steps=1000",
    "evaluate": "fbjax evaluate --workdir runs/catalogue --candidates lists.jsonl --queries 100 --out metrics.json",
    "bench": "fbjax bench --config configs/catalogue.py --repeats 10 --json",
}
USER_ERRORS = (ValueError, OSError, FloatingPointError, ModuleNotFoundError, TypeError)


def main(argv: list[str] | None = None) -> int:
    """Runs one command; the exit status: 0, 1 on bad input (said in one line), 130 when interrupted."""
    arguments, rest = _parser().parse_known_args(argv)
    try:
        overrides = _overrides(rest, arguments)
        _quiet_libraries()
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
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name, run, summary):
        sub = verbs.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"example: {EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run, verb=name)
        return sub

    config_help = "a config file; --config.section.field=value changes a setting"
    prepare = verb("prepare", _prepare, "turn the config's product tables into records; say what was skipped")
    prepare.add_argument("--config", required=True, help=config_help)

    train = verb("train", _train, "train; run again with the same workdir, it resumes exactly")
    train.add_argument("--config", required=True, help=config_help)
    train.add_argument("--workdir", required=True, help="folder for checkpoints and logs")

    evaluate = verb("evaluate", _evaluate, "evaluate a checkpoint: retrieval over candidate lists, and matching")
    evaluate.add_argument("--workdir", required=True, help="folder of a trained run")
    evaluate.add_argument("--data", help="a product table or glob (default: the run's validation split)")
    evaluate.add_argument("--candidates", help="fixed candidate lists, JSONL (default: drawn from the data)")
    evaluate.add_argument("--protocol", default="candidates,matching", help="which figures (default: %(default)s)")
    evaluate.add_argument("--queries", type=int, help="only the first N queries a direction")
    evaluate.add_argument("--step", type=int, help="which checkpoint (default: the best by validation AUC)")
    evaluate.add_argument("--out", help="write the figures to this JSON file")

    bench = verb("bench", _bench, "time the train step under each adaptive method, on synthetic batches")
    bench.add_argument("--config", required=True, help=config_help)
    bench.add_argument("--repeats", type=int, default=10, help="timed rounds (default: %(default)s)")
    bench.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _overrides(rest: list[str], arguments) -> list[str]:
    """``--config.a.b=value`` arguments without their prefix; anything else is an error."""
    for argument in rest:
        if not (argument.startswith("--config.") and "=" in argument and hasattr(arguments, "config")):
            raise ValueError(f"unknown argument {argument} (see fbjax {arguments.verb} --help)")
    return [argument.removeprefix("--config.") for argument in rest]


def _prepare(arguments, overrides) -> None:
    from fbjax import config as configs
    from fbjax.console import progress, say
    from fbjax.data.catalogue import Source, prepare, read_report
    from fbjax.workdir import make_vocabulary

    config = configs.load(arguments.config, overrides)
    records = prepare(Source.from_config(config), make_vocabulary(config, say), config.data.prepared, progress)
    report = read_report(records["train"])
    for split, count in report["splits"].items():
        print(
            f"{split}: {count:,} products, {report['groups'][split]:,} groups, {report['categories'][split]} categories"
        )
    for reason, count in report["skipped"].items():
        print(f"skipped: {count:,} {reason}")
    print(f"records and report: {Path(records['train'].files[0]).parent}")


def _train(arguments, overrides) -> None:
    from fbjax import config as configs
    from fbjax.train import train

    train(configs.load(arguments.config, overrides), arguments.workdir)


def _evaluate(arguments, overrides) -> None:
    from fbjax.evaluate import evaluate, report

    if arguments.out and (Path(arguments.out).is_dir() or not Path(arguments.out).absolute().parent.is_dir()):
        raise FileNotFoundError(f"--out {arguments.out}: give a file in a folder that is there")
    figures = evaluate(
        arguments.workdir,
        data=arguments.data,
        candidates=arguments.candidates,
        protocols=tuple(name.strip() for name in arguments.protocol.split(",")),
        num_queries=arguments.queries,
        step=arguments.step,
    )
    report(figures, print)
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(figures, indent=2) + "\n")


def _bench(arguments, overrides) -> None:
    from fbjax import config as configs
    from fbjax.bench import bench
    from fbjax.console import say

    figures = bench(configs.load(arguments.config, overrides), arguments.repeats, say)
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    print(f"train step: {figures['train']['pairs_per_second']:.0f} pairs/s on {figures['device']}")
    for method, ratio in figures["train"]["adaptive"].items():
        print(f"adaptive {method}: {ratio:.2f} x the step time of fixed weights")


def _quiet_libraries() -> None:
    """Warnings of libraries off; ours are printed."""
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger().setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
