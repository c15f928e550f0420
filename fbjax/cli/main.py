"""The command `fbjax`: its parser and its errors. Each verb is declared in one of the other files of this package."""

import argparse
import os
import re
import sys
from typing import NoReturn

from fbjax import __version__
from fbjax.cli import data, evaluation, export, search, tools, training
from fbjax.cli.common import WrongFlag
from fbjax.core import console
from fbjax.core.environment import configure_libraries
from fbjax.core.registry import VERY_CLOSE, meant

VERBS = (data.draw, data.draw_log, data.prepare, training.train, data.candidates)
VERBS += (evaluation.evaluate, evaluation.compare, evaluation.baseline, evaluation.probe, evaluation.legacy)
VERBS += (
    search.rank,
    search.explain,
    search.caption,
    search.embed,
    search.index,
    search.search,
    search.serve,
    export.export,
    export.import_,
    export.interpolate,
)
VERBS += (training.report, tools.bench, tools.plan)
VERBS = {verb.name: verb for verb in VERBS}  # in the order in which a newcomer runs them
USER_ERRORS = (WrongFlag, ValueError, OSError, FloatingPointError, ModuleNotFoundError, TypeError)
STORES = ("tensorflow", "google", "botocore", "fsspec", "gcsfs", "s3fs")  # libraries that read gs:// and s3://


def main(argv: list[str] | None = None) -> int:
    """Runs one verb; the exit status: 0, 1 for bad input with an error of one line, 130 for an interrupt.

    Training that a signal stops saves first and exits with 75, or 130 for Ctrl-C: see `fbjax.parallel.distributed`.
    Where nobody reads the output any more, it is 141.
    """
    console.open_streams()
    try:
        arguments, rest = _parser().parse_known_args(_checked(sys.argv[1:] if argv is None else argv))
        flags = vars(arguments)
        verb = VERBS[flags.pop("verb")]
        configure_libraries()
        verb.run(**_with_config(flags, rest, verb.name))
    except KeyboardInterrupt:
        console.complain("interrupted")
        return 130
    except Exception as error:
        if os.environ.get("FBJAX_TRACEBACK") or not _is_users(error):
            raise
        console.complain(error)
        return 1
    return 0


def _is_users(error: Exception) -> bool:
    """Whether the input is at fault, or a store, whose clients raise types of their own."""
    return isinstance(error, USER_ERRORS) or type(error).__module__.split(".")[0] in STORES


class _Parser(argparse.ArgumentParser):
    """A parser whose help is a result like any other, and whose errors are one line."""

    def _print_message(self, message: str, file: object = None) -> None:
        console.answer(message.rstrip("\n"))

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    description = "FashionBERT: image-text matching and retrieval for product catalogues."
    parser = _Parser("fbjax", description=description)
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
    if not argv or argv[0] in ("-h", "--help", "--version"):
        return argv
    verb, *given = argv
    if verb.startswith("-"):
        raise ValueError(f"unknown argument {verb}: begin with a verb (see fbjax --help)")
    if verb not in VERBS:
        raise ValueError(f"unknown verb {verb}{meant(verb, VERBS)} (see fbjax --help)")
    known = ["--help"] + [name for name, _ in VERBS[verb].flags if name.startswith("--")]
    checked = [verb]
    for argument in given:
        if match := re.fullmatch(r"--(\w[\w-]*)([.=].*)?", argument, flags=re.DOTALL):
            name, value = f"--{match[1].replace('_', '-')}", match[2] or ""
            if not any(flag.startswith(name) for flag in known):  # argparse accepts a flag's first letters
                raise _unknown(argument, verb, meant(name, known, VERY_CLOSE))
            argument = f"{name}{value}"
        checked.append(argument)
    return checked


def _unknown(argument: str, verb: str, suggestion: str = "") -> ValueError:
    return ValueError(f"unknown argument {argument}{suggestion} (see fbjax {verb} --help)")


def _with_config(flags: dict, rest: list[str], verb: str) -> dict:
    """`flags` with the `Config` in place of its file; `rest` may hold only ``--config.a.b=value``, else ValueError."""
    for argument in rest:
        if not (argument.startswith("--config.") and "=" in argument):
            raise _unknown(argument, verb)
    if flags.get("config") is not None:
        from fbjax.config.load import load_config

        overrides = [argument.removeprefix("--config.") for argument in rest]
        return flags | {"config": load_config(flags["config"], overrides)}
    if rest:
        raise ValueError(f"{rest[0]} needs --config FILE")
    return flags
