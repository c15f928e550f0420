"""The command `fbjax`: its parser and its errors. Each verb is declared in one of the other files of this package."""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Iterable

from fbjax import __version__
from fbjax.cli import data, evaluation, export, search, tools, training
from fbjax.core.environment import configure_libraries

VERBS = (data.draw, data.prepare, training.train, data.candidates, evaluation.evaluate, evaluation.compare)
VERBS += (evaluation.baseline, evaluation.probe, evaluation.legacy, search.rank, search.embed, export.export)
VERBS += (export.import_, training.report, tools.bench, tools.plan)
VERBS = {verb.name: verb for verb in VERBS}  # in the order in which a newcomer runs them
USER_ERRORS = (ValueError, OSError, FloatingPointError, ModuleNotFoundError, TypeError)


def main(argv: list[str] | None = None) -> int:
    """Runs one verb; the exit status: 0, 1 for bad input with an error of one line, 130 for an interrupt.

    Training that receives SIGTERM saves a checkpoint and exits with 75: see `fbjax.parallel.distributed`.
    """
    try:
        arguments, rest = _parser().parse_known_args(_checked(sys.argv[1:] if argv is None else argv))
        flags = vars(arguments)
        verb = VERBS[flags.pop("verb")]
        configure_libraries()
        verb.run(**_with_config(flags, rest, verb.name))
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
    description = "FashionBERT: image-text matching and retrieval for product catalogues."
    parser = argparse.ArgumentParser("fbjax", description=description)
    parser.add_argument("--version", action="version", version=f"fbjax {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="VERB", dest="verb")
    for verb in VERBS.values():
        verb_parser = subparsers.add_parser(verb.name, help=verb.summary, description=verb.summary)
        verb_parser.epilog = "\n  ".join(["examples:", *verb.examples])
        verb_parser.formatter_class = argparse.RawDescriptionHelpFormatter
        for name, options in verb.flags:
            verb_parser.add_argument(name, **options)
    return parser


def _checked(argv: list[str]) -> list[str]:
    """`argv` with dashes for underscores in flags. Raises ValueError with the nearest name for an unknown verb or flag.

    argparse alone would report a misspelt required flag as missing.
    """
    if not argv or argv[0].startswith("-"):
        return argv
    verb, *given = argv
    if verb not in VERBS:
        raise ValueError(f"unknown verb {verb}{_did_you_mean(verb, VERBS)} (see fbjax --help)")
    known = ["help"] + [name.removeprefix("--") for name, _ in VERBS[verb].flags if name.startswith("--")]
    checked = [verb]
    for argument in given:
        if match := re.fullmatch(r"--(\w[\w-]*)([.=].*)?", argument, flags=re.DOTALL):
            name, value = match[1].replace("_", "-"), match[2] or ""
            if not any(flag.startswith(name) for flag in known):  # argparse accepts a flag's first letters
                raise _unknown(argument, verb, _did_you_mean(name, known, "--"))
            argument = f"--{name}{value}"
        checked.append(argument)
    return checked


def _did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    nearest = difflib.get_close_matches(word, known, n=1)
    return f": did you mean {prefix}{nearest[0]}?" if nearest else ""


def _unknown(argument: str, verb: str, suggestion: str = "") -> ValueError:
    return ValueError(f"unknown argument {argument}{suggestion} (see fbjax {verb} --help)")


def _with_config(flags: dict, rest: list[str], verb: str) -> dict:
    """`flags` with the `Config` in place of its file; `rest` may hold only ``--config.a.b=value``, else ValueError."""
    for argument in rest:
        if not (argument.startswith("--config.") and "=" in argument):
            raise _unknown(argument, verb)
    if flags.get("config"):
        from fbjax.config.load import load_config

        overrides = [argument.removeprefix("--config.") for argument in rest]
        return flags | {"config": load_config(flags["config"], overrides)}
    if rest:
        raise ValueError(f"{rest[0]} needs --config FILE")
    return flags
