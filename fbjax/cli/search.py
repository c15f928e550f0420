"""Verbs for search: rank products for a query, and embed a catalogue."""

import shutil

from fbjax.cli.common import DATA, SPLITS, STEP, WORKDIR, flag, out_file, verb


@verb(
    "rank products for a text or an image",
    WORKDIR,
    flag("--text", "query text; ranks images (default: none; give a text or an image)"),
    flag("--image", "query image file; ranks texts (default: none)"),
    DATA,
    flag("--category", "rank only products of this category (default: all)"),
    flag("--top", "number of products to print", type=int, default=10),
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
    for line in format_table(ranking, shutil.get_terminal_size().columns):
        print(line)
    if html:
        from fbjax.report.ranking import write_ranking

        print(f"pictures: {write_ranking(ranking, html)}")


@verb(
    "write embeddings of a catalogue for a search index (needs a run with the task itc)",
    WORKDIR,
    out_file("--out", "NPZ file for ids, vectors, checkpoint_step and what", required=True),
    flag("--data", "product table or glob (default: a split of the run)"),
    flag("--split", "split of the run (default: validation)", choices=SPLITS),
    flag("--what", "input of the embeddings", choices=["product", "text", "image"], default="product"),
    STEP,
    examples=(
        "fbjax embed --workdir runs/mine --out vectors.npz",
        "fbjax embed --workdir runs/mine --data products.csv --what image --out images.npz",
    ),
)
def embed(out, **request) -> None:
    from fbjax.inference.embed_catalogue import embed

    embed(out=out, **request)
    print(f"vectors: {out}")
