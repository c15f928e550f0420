"""Verbs for search: rank products for a query, and embed a catalogue."""

import shutil

from fbjax.cli.common import DATA, SPLITS, STEP, WORKDIR, flag, names, out_file, out_path, verb, whole_number
from fbjax.core.console import answer


@verb(
    "rank products for a text or an image",
    WORKDIR,
    flag("--text", "query text; ranks images (default: none; give a text or an image)"),
    flag("--image", "query image file; ranks texts (default: none)"),
    DATA,
    flag("--category", "rank only products of this category (default: all)"),
    whole_number("--top", "number of products to print", default=10),
    STEP,
    out_file("--html", "HTML file for the ranking with pictures (default: none)"),
    examples=(
        'fbjax rank --workdir runs/mine --text "red cotton dress"',
        "fbjax rank --workdir runs/mine --image photo.jpg --data products.csv --category dress --html ranking.html",
    ),
)
def rank(html, **request) -> None:
    from fbjax.inference.rank import format_table, rank

    ranking = rank(**request)
    if html:
        from fbjax.report.ranking import write_ranking

        write_ranking(ranking, html)
    for line in format_table(ranking, shutil.get_terminal_size().columns):
        answer(line)
    if html:
        answer(f"pictures: {html}")


OUT = "FILE.parquet or FILE.npz for ids and vectors, or a folder of .npy files"
TABLES = "product tables or globs, together the catalogue (default: a split of the run)"
WHAT = "inputs of the embeddings, with commas between: product, text, image"
SHARD = "embed part I of N, with I from 0, into a file of its own (default: all)"


@verb(
    "write embeddings of a catalogue for a search index (needs a run with the task itc)",
    WORKDIR,
    out_path("--out", OUT, required=True),
    flag("--data", TABLES, nargs="+", action="extend", metavar="TABLE"),
    flag("--split", "split of the run (default: validation)", choices=[*SPLITS, "all"]),
    flag("--what", WHAT, dest="units", type=names, default="product", metavar="NAME,.."),
    flag("--shard", SHARD, metavar="I/N"),
    STEP,
    examples=(
        "fbjax embed --workdir runs/mine --out vectors.npz",
        "fbjax embed --workdir runs/mine --data products.csv --what text,image,product --out vectors.parquet",
        "fbjax embed --workdir runs/mine --split all --shard 0/4 --out vectors",
    ),
)
def embed(**request) -> None:
    from fbjax.inference.catalogue.embed_catalogue import embed

    answer(f"vectors: {embed(**request)}")
