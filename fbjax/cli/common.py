"""Shared parts of all verbs: the declaration of a verb, common flags, and the output of results."""

import contextlib
import dataclasses
import json
import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fbjax.core.console import answer

Flag = tuple[str, dict]  # a name and the options of `ArgumentParser.add_argument`
MAX_NUMBER = 2**31 - 1  # what a library may hold in 32 bits


class WrongFlag(Exception):
    """A flag's value that is refused when it is parsed; argparse would put a ValueError in words of its own."""


@dataclasses.dataclass(frozen=True)
class Verb:
    """One verb of the command. `run` takes each flag as a keyword argument, ``--config`` as the `Config` itself."""

    name: str
    run: Callable[..., None]
    summary: str
    flags: tuple[Flag, ...]
    examples: tuple[str, ...]


def verb(summary: str, *flags: Flag, examples: tuple[str, ...]) -> Callable[[Callable], Verb]:
    """A decorator that turns a function of the flags into the `Verb` of the same name."""
    return lambda run: Verb(run.__name__.rstrip("_").replace("_", "-"), run, summary, flags, examples)


def flag(name: str, help: str, **options) -> Flag:
    """A flag; its help text ends with its default. Where there is none, `help` says what happens without the flag.

    Its value is text that is not blank, unless `options` give a type.
    """
    if options.get("required"):
        help += " (required)"
    elif options.get("action") == "store_true":
        help += " (default: off)"
    elif options.get("default") not in (None, "", ()):
        help += " (default: %(default)s)"
    if not options.keys() & {"type", "choices"} and options.get("action") != "store_true":
        options["type"] = partial(_text, name)
    return name, options | {"help": help}


def _text(name: str, text: str) -> str:
    if not text.strip():
        raise WrongFlag(f"{name} {text!r}: give a value, or leave the flag out")
    return text


def out_file(name: str, help: str, **options) -> Flag:
    """A flag for a file to write. Parsing raises WrongFlag, before any work, where its folder takes no file."""
    return flag(name, help, metavar="FILE", type=partial(_check_out, name), **options)


def _check_out(name: str, path: str) -> str:
    folder = Path(path).absolute().parent
    if Path(path).is_dir() or not folder.is_dir():
        raise WrongFlag(f"{name} {path!r}: give a file in an existing folder")
    return _check_written(name, path, folder)


def out_folder(name: str, help: str, **options) -> Flag:
    """A flag for a folder to write, new or not, as `out_file`."""
    return flag(name, help, type=partial(_check_folder, name), **options)


def _check_folder(name: str, path: str) -> str:
    if "://" in _text(name, path):  # a store's clients say for themselves what they refuse
        return path
    wanted = Path(path).absolute()
    there = next(folder for folder in (wanted, *wanted.parents) if folder.exists())
    if not there.is_dir():
        raise WrongFlag(f"{name} {path!r}: {there} is a file; give a folder")
    return _check_written(name, path, there)


def out_path(name: str, help: str, **options) -> Flag:
    """A flag for a file to write, as `out_file`, or without an ending a folder, as `out_folder`."""

    def check(path: str) -> str:
        return _check_out(name, path) if Path(path).suffix else _check_folder(name, path)

    return flag(name, help, metavar="PATH", type=check, **options)


def _check_written(name: str, path: str, folder: Path) -> str:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise WrongFlag(f"{name} {path!r}: {folder} takes no file ({error.strerror}); give another folder") from None
    return path


def whole_number(name: str, help: str, at_least: int = 1, **options) -> Flag:
    """A flag for a whole number. Parsing raises WrongFlag, before any work, where it is too small or huge."""
    wanted = f"a whole number from {at_least} to {MAX_NUMBER}"
    parse = partial(_number, name, int, lambda number: at_least <= number <= MAX_NUMBER, wanted)
    return flag(name, help, type=parse, **options)


def positive_number(name: str, help: str, **options) -> Flag:
    """A flag for a finite number above 0, as `whole_number`."""
    parse = partial(_number, name, float, lambda number: 0 < number < math.inf, "a number above 0")
    return flag(name, help, type=parse, **options)


def share(name: str, help: str, **options) -> Flag:
    """A flag for a number from 0 to 1, as `whole_number`."""
    parse = partial(_number, name, float, lambda number: 0 <= number <= 1, "a number from 0 to 1")
    return flag(name, help, type=parse, **options)


def _number(name: str, convert: Callable, is_allowed: Callable[[float], bool], wanted: str, text: str) -> float:
    with contextlib.suppress(ValueError):
        if is_allowed(number := convert(text)):
            return number
    raise WrongFlag(f"{name} {text.strip() or repr(text)}: give {wanted}")


def names(listed: str) -> tuple[str, ...]:
    """``"a, b" -> ("a", "b")``"""
    return tuple(name.strip() for name in listed.split(","))


CONFIG_HELP = "config file; --config.section.field=value changes a setting"
CONFIG = flag("--config", CONFIG_HELP, required=True)
WORKDIR = flag("--workdir", "folder of a trained run", required=True)
STEP = whole_number("--step", "step of the checkpoint (default: the best on the validation sample)", at_least=0)
DATA = flag("--data", "product table or glob (default: the run's validation split)")
SPLITS = ["train", "validation"]
BEAMS = "sequences that a caption's search keeps, 1 for greedy decoding (default: 3)"
CANDIDATES = flag("--candidates", "file of candidate lists, JSONL (default: lists drawn from the data)")
PROTOCOLS = "protocols with commas between: candidates, matching, draws, legacy, full, queries, mixed, marqo, log, "
PROTOCOLS += "attributes, captioning, system"
PROTOCOL = flag("--protocol", PROTOCOLS, dest="protocols", type=names, default="candidates,matching", metavar="NAME,..")
MOST_QUERIES = "maximum number of queries in each direction"
RELEVANT_FORM = (
    'queries for protocols queries, mixed, marqo, system: {"query": text, "relevant": [ids]} a line (default: none)'
)
RELEVANT = flag("--relevant", RELEVANT_FORM, metavar="FILE")
QUERIES = whole_number("--queries", f"{MOST_QUERIES} (default: all)", dest="num_queries", metavar="N")
OUT = out_file("--out", "JSON file for the metrics (default: none)")
INDEX_FORM = "folder of an index, or address of a Milvus server, such as http://host:19530"
INDEX_TOKEN = "FBJAX_INDEX_TOKEN"  # variable with the token of a Milvus server: a flag would show it to other users
JSON = flag("--json", "print JSON instead of a table", action="store_true")


def show(figures: dict, print_figures: Callable, out: str | None) -> None:
    """Writes `figures` as JSON to the file `out` if there is one, and prints them."""
    if out:  # first: whoever reads what is printed may stop early
        Path(out).write_text(json.dumps(figures, indent=2) + "\n")
    print_figures(figures, answer)


def print_table(figures: dict, format_table: Callable[[dict], list[str]], as_json: bool) -> None:
    answer(json.dumps(figures, indent=2) if as_json else "\n".join(format_table(figures)))
