"""Verbs that make data: a synthetic catalogue, prepared records, and fixed candidate lists."""

import dataclasses
import functools
from pathlib import Path

from fbjax.cli.common import (
    CONFIG,
    CONFIG_HELP,
    MOST_QUERIES,
    SPLITS,
    flag,
    names,
    out_file,
    out_folder,
    share,
    verb,
    whole_number,
)
from fbjax.core.console import answer, progress, say

ARRAYS = "folder for decoded pictures and texts, which config.data.arrays then names (default: none)"
SMALL = "categories with too few groups: exclude their queries, fill their lists from others, or keep their lists short"


@verb(
    "draw a synthetic catalogue of garments with captions",
    out_folder("--out", "folder for the files of both splits", required=True, metavar="DIR"),
    flag("--format", "parquet, or h5 for the two files of Fashion-Gen", choices=["parquet", "h5"], default="parquet"),
    whole_number("--products", "number of products", default=8000),
    whole_number("--seed", "random seed of the catalogue", at_least=0, default=0),
    examples=("fbjax draw --out drawn --products 1000", "fbjax draw --out garments --products 100 --format h5"),
)
def draw(out, format, products, seed) -> None:
    from fbjax.data.synthetic.hdf5 import write_hdf5
    from fbjax.data.synthetic.products import is_drawn, write_catalogue

    status = "reusing" if is_drawn(out, products, seed) else "drawn"
    write = {"parquet": write_catalogue, "h5": write_hdf5}[format]
    files = write(out, products, seed, progress)
    answer(f"{status}: {products:,} products, seed {seed}: {', '.join(map(str, files.values()))}")


@verb(
    "derive a synthetic click log from a catalogue, to try out what needs one",
    CONFIG,
    out_file("--out", "table for the events of both splits, .parquet or .csv", required=True),
    flag(
        "--attributes",
        "columns with commas between, such as colour,article_type,brand: what queries name besides words of the text",
        type=names,
        required=True,
        metavar="NAME,..",
    ),
    share(
        "--mismatches",
        "also rows with label 0, a product that lacks what its query names: as a share of the others",
        default=0.0,
    ),
    whole_number("--seed", "random seed of the queries", at_least=0, default=0),
    examples=(
        "fbjax draw-log --config configs/my_catalogue.py --config.data.train=products.csv --attributes category "
        "--out clicks.parquet",
    ),
)
def draw_log(config, out, attributes, mismatches, seed) -> None:
    from fbjax.data.sources.base import open_source
    from fbjax.data.sources.tables import read_labels
    from fbjax.data.synthetic.queries import FORMATS, Described, write_log

    if Path(out).suffix not in FORMATS:
        raise ValueError(f"--out {out}: give it a name that ends in {' or '.join(FORMATS)}")
    source, columns = open_source(config.data, config.patches.image_size), config.data.columns
    wanted = (columns.category, *attributes, *columns.text)
    splits = {}
    for split, files in source.files().items():
        labels = read_labels(files, config.data, wanted)
        end = 1 + len(attributes)
        splits[split] = [Described(i, row[0], row[1:end], " ".join(row[end:])) for i, row in labels.items()]
    counts = write_log(out, splits, seed, mismatches, progress)
    events = ", ".join(f"{count:,} events of {split} products" for split, count in counts.items())
    answer(f"synthetic log, seed {seed}: {events}: {out}; use it with --config.log.table={out}")


@verb(
    "convert product tables to records, or check a table first",
    flag("--config", f"{CONFIG_HELP} (default: none; required without --check)"),
    flag(
        "--check",
        "table or folder to inspect; prints its contents and a mapping of columns (default: none)",
        metavar="TABLE",
    ),
    flag(
        "--arrays", "also decode all pictures into this folder, which data.arrays names (default: none)", metavar="DIR"
    ),
    flag("--beam", "prepare with Apache Beam's workers, for very large catalogues", action="store_true"),
    flag("--beam-options", "Beam's own flags, as --beam-options='--runner=..' (default: Beam's local runner)"),
    examples=(
        "fbjax prepare --check products.csv",
        "fbjax prepare --config configs/my_catalogue.py --config.data.train=products.csv",
        "fbjax prepare --config configs/my_catalogue.py --config.data.train=products.csv --arrays arrays",
        "fbjax prepare --config configs/my_catalogue.py --config.data.train=products.csv "
        "--beam --beam-options='--direct_num_workers=2'",
    ),
)
def prepare(config, check, arrays, beam, beam_options) -> None:
    if not config and not check:
        raise ValueError("prepare needs --config FILE, or --check TABLE")
    if beam_options is not None and not beam:
        raise ValueError(f"--beam-options {beam_options} needs --beam")
    if check and arrays:
        raise ValueError(f"--arrays {arrays} does not go with --check, which writes nothing: leave one of them out")
    if check:
        from fbjax.data.inspection.check import check as check_table

        return check_table(check, config, answer, _ready_vocabulary(config) if config else None)

    from fbjax.data.arrays.writer import check_folder, write_arrays
    from fbjax.data.records.builder import build_records, is_prepared
    from fbjax.data.sources.base import open_source
    from fbjax.runs.vocabulary import make_vocabulary, unknown_of

    if config.data.max_images > 1 and (beam or arrays):
        flag = "--beam" if beam else f"--arrays {arrays}"
        raise ValueError(f"{flag} prepares one picture of a product: leave it out, or data.max_images at 1")
    builder = None
    if beam:
        from fbjax.data.records.beam import BeamBuilder, parse_options

        builder = functools.partial(BeamBuilder, options=parse_options(beam_options or ""))
    if arrays:
        check_folder(arrays)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, arrays=""))  # records are made of tables
    source = open_source(config.data, config.patches.image_size)
    vocabulary = make_vocabulary(config, say)
    status = "reusing" if is_prepared(source, vocabulary, config.data.prepared) else "prepared"
    splits = build_records(source, vocabulary, config.data.prepared, progress, builder)
    report = splits["train"].report()
    for split, count in report["splits"].items():
        groups, categories = report["groups"][split], report["categories"][split]
        answer(f"{split}: {count:,} products, {groups:,} groups, {categories} categories")
    for reason, count in report["skipped"].items():
        answer(f"skipped: {count:,} {reason}")
    answer(f"texts: {unknown_of(splits['train'], vocabulary)}")
    answer(f"{status}: {splits['train'].home}")
    if config.patches.fit == "foreground":
        _say_foregrounds(splits)
    if config.log.table:
        _check_log(config, splits, vocabulary)
    if arrays:
        status = "written" if write_arrays(config, splits, vocabulary, arrays, progress) else "reusing"
        answer(f"{status}: {arrays}; use it with --config.data.arrays={arrays}")


def _say_foregrounds(splits) -> None:
    """Says how many pictures have no foreground, and how large the others' boxes are."""
    import numpy as np

    from fbjax.data.records.pipeline import RECORDS_AT_ONCE

    for name, split in splits.items():
        if split.holds_features:
            continue
        batches, label = -(-len(split) // RECORDS_AT_ONCE), f"foregrounds of {name}, in batches"
        shares = np.concatenate([*progress(split.foreground_shares(), batches, label)])
        found = shares[shares > 0]
        size = f"; the box of the others is {np.median(found):.0%} of the picture in the median" if len(found) else ""
        none = len(shares) - len(found)
        answer(f"{name}: no foreground in {none:,} of {len(shares):,} pictures, which are read whole{size}")


def _check_log(config, splits, vocabulary) -> None:
    """Joins the config's log, says what is in it, and lists what was skipped."""
    from fbjax.data.log.events import described, join_log, write_skipped

    joined = join_log(config.log, config.data, splits, vocabulary)
    for line in described(joined):
        answer(line)
    if joined.skipped:
        answer(f"log, skipped events: {write_skipped(joined, config.data.prepared)}")


def _ready_vocabulary(config):
    """The vocabulary that a config takes pieces from; None where it trains its own. Says where it cannot be read."""
    from fbjax.runs.vocabulary import ready_vocabulary

    try:
        return ready_vocabulary(config)
    except (OSError, ModuleNotFoundError) as error:
        answer(f"! {error}: what it knows of the texts is not checked")


@verb(
    "draw fixed candidate lists: each query's own product and others of its category",
    CONFIG,
    out_file("--out", "JSONL file for the lists; FILE.json describes how they were drawn", required=True),
    flag("--split", "split of the config to draw from (default: validation)", choices=SPLITS),
    flag("--data", "product table or glob to draw from (default: the split)", metavar="TABLE"),
    whole_number("--others", "number of other products in each list", default=100),
    whole_number("--queries", MOST_QUERIES, default=1000),
    whole_number("--seed", "random seed of the lists", at_least=0, default=0),
    flag("--small", SMALL, choices=["exclude", "fill", "short"], default="exclude"),
    examples=(
        "fbjax candidates --config configs/my_catalogue.py --config.data.train=products.csv "
        "--others 20 --small short --out lists.jsonl",
        "fbjax candidates --config configs/my_catalogue.py --config.data.train=products.csv "
        "--split train --others 5 --out train-lists.jsonl",
    ),
)
def candidates(config, out, split, data, **rules) -> None:
    from fbjax.data.records.builder import build_records
    from fbjax.data.sources.base import open_source
    from fbjax.evaluation.fixed_lists import Rules, describe, make_lists, print_record, record_path, write_lists
    from fbjax.runs.vocabulary import make_vocabulary

    if data and split:
        raise ValueError(f"--data {data} has no splits: leave --split {split} out")
    rules = Rules(**rules)
    source = open_source(config.data, config.patches.image_size, data)
    splits = build_records(source, make_vocabulary(config, say), config.data.prepared, progress)
    split = split or "validation"
    lists = make_lists(splits[split], rules)
    record = describe(lists, splits[split], rules) | ({} if data else {"split": split})
    record["tables"] = [file.name for file in source.files()[split if split in source.files() else "train"]]
    record["columns"] = {"category": config.data.columns.category, "group": config.data.columns.group}
    status = "written" if write_lists(out, lists, record) else "unchanged"
    print_record(record, answer)
    answer(f"{status}: {out}, described in {record_path(out)}")
