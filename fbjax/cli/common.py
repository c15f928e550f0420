"""Shared parts of all verbs: the declaration of a verb, common flags, and the output of results."""

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

Flag = tuple[str, dict]  # a name and the options of `ArgumentParser.add_argument`


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
    return lambda run: Verb(run.__name__.rstrip("_"), run, summary, flags, examples)


def flag(name: str, help: str, **options) -> Flag:
    """A flag; its help text ends with its default. Where there is none, `help` says what happens without the flag."""
    if options.get("required"):
        help += " (required)"
    elif options.get("action") == "store_true":
        help += " (default: off)"
    elif options.get("default") not in (None, "", ()):
        help += " (default: %(default)s)"
    return name, options | {"help": help}


def out_file(name: str, help: str, **options) -> Flag:
    """A flag for a file to write. Parsing raises FileNotFoundError, before any work, where its folder is missing."""
    return flag(name, help, metavar="FILE", type=partial(_check_out, name), **options)


def _check_out(name: str, path: str) -> str:
    if Path(path).is_dir() or not Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(f"{name} {path}: give a file in an existing folder")
    return path


def names(listed: str) -> tuple[str, ...]:
    """``"a, b" -> ("a", "b")``"""
    return tuple(name.strip() for name in listed.split(","))


CONFIG_HELP = "config file; --config.section.field=value changes a setting"
CONFIG = flag("--config", CONFIG_HELP, required=True)
WORKDIR = flag("--workdir", "folder of a trained run", required=True)
STEP = flag("--step", "step of the checkpoint (default: the best on the validation sample)", type=int)
DATA = flag("--data", "product table or glob (default: the run's validation split)")
SPLITS = ["train", "validation"]
CANDIDATES = flag("--candidates", "file of candidate lists, JSONL (default: lists drawn from the data)")
PROTOCOLS = "protocols with commas between: candidates, matching, draws, legacy, full, queries, mixed"
PROTOCOL = flag("--protocol", PROTOCOLS, dest="protocols", type=names, default="candidates,matching", metavar="NAME,..")
MOST_QUERIES = "maximum number of queries in each direction"
RELEVANT_FORM = (
    'file of queries, for protocols queries and mixed: {"query": text, "relevant": [ids]} a line (default: none)'
)
RELEVANT = flag("--relevant", RELEVANT_FORM, metavar="FILE")
QUERIES = flag("--queries", f"{MOST_QUERIES} (default: all)", dest="num_queries", type=int, metavar="N")
OUT = out_file("--out", "JSON file for the metrics (default: none)")
JSON = flag("--json", "print JSON instead of a table", action="store_true")


def show(figures: dict, print_figures: Callable, out: str | None) -> None:
    """Prints `figures`, and writes them as JSON to the file `out` if there is one."""
    print_figures(figures, print)
    if out:
        Path(out).write_text(json.dumps(figures, indent=2) + "\n")


def print_table(figures: dict, format_table: Callable[[dict], list[str]], as_json: bool) -> None:
    print(json.dumps(figures, indent=2) if as_json else "\n".join(format_table(figures)))
