"""Verbs that make data: a synthetic catalogue, prepared records, and fixed candidate lists."""

import dataclasses
import functools

from fbjax.cli.common import CONFIG, CONFIG_HELP, MOST_QUERIES, SPLITS, flag, out_file, verb

ARRAYS = "folder for decoded pictures and texts, which config.data.arrays then names (default: none)"
SMALL = "categories with too few groups: exclude their queries, fill their lists from others, or keep their lists short"


@verb(
    "draw a synthetic catalogue of garments with captions",
    flag("--out", "folder for the files of both splits", required=True, metavar="DIR"),
    flag("--format", "parquet, or h5 for the two files of Fashion-Gen", choices=["parquet", "h5"], default="parquet"),
    flag("--products", "number of products", type=int, default=8000),
    flag("--seed", "random seed of the catalogue", type=int, default=0),
    examples=("fbjax draw --out drawn --products 1000", "fbjax draw --out garments --products 100 --format h5"),
)
def draw(out, format, products, seed) -> None:
    from fbjax.core.console import progress
    from fbjax.data.synthetic.hdf5 import write_hdf5
    from fbjax.data.synthetic.products import is_drawn, write_catalogue

    status = "reusing" if is_drawn(out, products, seed) else "drawn"
    write = {"parquet": write_catalogue, "h5": write_hdf5}[format]
    files = write(out, products, seed, progress)
    print(f"{status}: {products:,} products, seed {seed}: {', '.join(map(str, files.values()))}")


@verb(
    "convert product tables to records, or check a table first",
    flag("--config", f"{CONFIG_HELP} (default: none; required without --check)"),
    flag("--check", "table to inspect; prints its contents and a column mapping (default: none)", metavar="TABLE"),
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

        return check_table(check, config, print)

    from fbjax.core.console import progress, say
    from fbjax.data.arrays.writer import check_folder, write_arrays
    from fbjax.data.records.builder import build_records, is_prepared
    from fbjax.data.sources.base import open_source
    from fbjax.runs.vocabulary import make_vocabulary

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
        print(f"{split}: {count:,} products, {groups:,} groups, {categories} categories")
    for reason, count in report["skipped"].items():
        print(f"skipped: {count:,} {reason}")
    print(f"{status}: {splits['train'].home}")
    if arrays:
        status = "written" if write_arrays(config, splits, vocabulary, arrays, progress) else "reusing"
        print(f"{status}: {arrays}; use it with --config.data.arrays={arrays}")


@verb(
    "draw fixed candidate lists: each query's own product and others of its category",
    CONFIG,
    out_file("--out", "JSONL file for the lists; FILE.json describes how they were drawn", required=True),
    flag("--split", "split of the config to draw from (default: validation)", choices=SPLITS),
    flag("--data", "product table or glob to draw from (default: the split)", metavar="TABLE"),
    flag("--others", "number of other products in each list", type=int, default=100),
    flag("--queries", MOST_QUERIES, type=int, default=1000),
    flag("--seed", "random seed of the lists", type=int, default=0),
    flag("--small", SMALL, choices=["exclude", "fill", "short"], default="exclude"),
    examples=(
        "fbjax candidates --config configs/my_catalogue.py --config.data.train=products.csv "
        "--others 20 --small short --out lists.jsonl",
        "fbjax candidates --config configs/my_catalogue.py --config.data.train=products.csv "
        "--split train --others 5 --out train-lists.jsonl",
    ),
)
def candidates(config, out, split, data, **rules) -> None:
    from fbjax.core.console import progress, say
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
    print_record(record, print)
    print(f"{status}: {out}, described in {record_path(out)}")
