"""Verbs for search: rank products for a query, say why, caption, embed a catalogue, index it, and search the index."""

import os
import shutil
from json import dumps

from fbjax.cli.common import (
    BEAMS,
    DATA,
    INDEX_FORM,
    INDEX_TOKEN,
    JSON,
    SPLITS,
    STEP,
    WORKDIR,
    flag,
    names,
    out_file,
    out_folder,
    out_path,
    verb,
    whole_number,
)
from fbjax.core.console import answer, say
from fbjax.core.paths import is_remote


@verb(
    "rank products for a text or an image",
    WORKDIR,
    flag("--text", "query text; ranks images (default: none; give a text or an image)"),
    flag("--image", "query image file; ranks texts (default: none)"),
    DATA,
    flag("--category", "rank only products of this category (default: all)"),
    whole_number("--top", "number of products to print", default=10),
    whole_number("--scored", "candidates with the nearest vectors that are scored; 0: all", at_least=0, default=200),
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


METHOD = (
    "gradient: integrated gradients, which add up to the score; occlusion: each part hidden in turn; attention: which "
    "patches each word attends to, of a run that scores pairs; alignment: which patches each word goes to, of a "
    "run with tpa"
)


@verb(
    "explain the score of a text with an image: what each word and each patch contributes",
    WORKDIR,
    flag("--text", "text (default: that of the product --id)"),
    flag("--image", "image file (default: that of the product --id)"),
    flag("--id", "product that stands in for text, image or both (default: none; give text and image)"),
    DATA,
    flag("--method", METHOD, choices=["gradient", "occlusion", "attention", "alignment"], default="gradient"),
    STEP,
    JSON,
    out_file("--html", "HTML file for the picture and text in colours (default: none)"),
    examples=(
        'fbjax explain --workdir runs/mine --text "red cotton dress" --image photo.jpg',
        'fbjax explain --workdir runs/mine --text "red dress" --id 1234 --data products.csv --html why.html',
        "fbjax explain --workdir runs/mine --id 1234 --data products.csv --method attention --json",
    ),
)
def explain(html, json, **request) -> None:
    from fbjax.inference.explain.request import explain_request
    from fbjax.inference.explain.table import format_table

    model, text, image, explanation = explain_request(
        **{name: value for name, value in request.items() if value is not None}
    )
    if html:
        from fbjax.report.sections.explained import as_read, write_explanation

        write_explanation(text, as_read(model, image), explanation, html)
    found = {"text": text} | explanation.as_json()
    answer(dumps(found, indent=2, ensure_ascii=False) if json else "\n".join(format_table(explanation)))
    if html:
        (say if json else answer)(f"picture and text in colours: {html}")


@verb(
    "write captions of pictures (needs a run with the task caption)",
    WORKDIR,
    flag("--image", "image files", nargs="+", action="extend", required=True, metavar="FILE"),
    whole_number("--beams", BEAMS, metavar="N"),
    STEP,
    JSON,
    examples=(
        "fbjax caption --workdir runs/captions --image photo.jpg",
        "fbjax caption --workdir runs/captions --image photo.jpg photo.jpg --beams 1 --json",
    ),
)
def caption(workdir, image, beams, step, json) -> None:
    from fbjax.data.sources.images import encoded
    from fbjax.inference.captions.captioner import BEAMS
    from fbjax.inference.model import Model

    for file in image:
        encoded(file)  # a missing file is said before the model is read
    captions = Model.load(workdir, step).caption(image, beams or BEAMS)
    for file, text in zip(image, captions, strict=True):
        answer(dumps({"image": file, "caption": text}, ensure_ascii=False) if json else text)


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


SERVICE_KEY = "FBJAX_SERVICE_KEY"  # who sends it may change products
OTHER_RERANKER = flag("--reranker", "folder of the re-ranker of the index (default: as the index says)")
INDEX = flag("--index", INDEX_FORM, default="index")
CATALOGUE = "product tables or globs, together the catalogue (default: all of the run's)"
FIELDS = (
    "columns of the tables as filters, with commas between; colour=Farbe: of column Farbe; none: without "
    "(default: those of the index)"
)
RERANKER = "folder of a run with tia or qta, to order the first 50 anew; none: without (default: that of the index)"


@verb(
    "put a catalogue into a search index (needs vectors, and the extra serve)",
    WORKDIR,
    INDEX,
    flag("--data", CATALOGUE, nargs="+", action="extend", metavar="TABLE"),
    flag("--fields", FIELDS, type=names, metavar="NAME,.."),
    out_folder("--pictures", "folder for the pictures (default: in the index, of a server's in the workdir)"),
    STEP,
    flag("--split", "split of the run (default: all)", choices=[*SPLITS, "all"]),
    flag("--reranker", RERANKER),
    flag("--shrink", "delete products that the tables lack, even if most are gone", action="store_true"),
    examples=(
        "fbjax index --workdir runs/mine",
        "fbjax index --workdir runs/mine --data products.csv --fields colour,price",
    ),
)
def index(index, fields, reranker, **request) -> None:
    from fbjax.serve.index.indexing import index as make_index
    from fbjax.serve.index.indexing import say_indexed

    pairs = [(name, column or name) for name, _, column in (field.partition("=") for field in fields or ())]
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"--fields {','.join(fields)}: name each field once")
    columns = None if fields is None else {} if fields == ("none",) else dict(pairs)
    request |= {"location": index, "fields": columns, "token": os.environ.get(INDEX_TOKEN, "")}
    request["reranker"] = "" if reranker == "none" else reranker
    answer(say_indexed(make_index(**request)))


@verb(
    "search an index by text, by image, by both, or by a product",
    INDEX,
    flag("--text", "words (default: none; give words, an image, both, or --like)"),
    flag("--image", "image file; with --text, words that say what differs (default: none)"),
    flag("--like", "id of a product: others like it, without its own group (default: none)"),
    flag("--where", "filter, such as 'category == \"Dress\" and price < 50' (default: none)"),
    flag(
        "--mode",
        "dense: by vectors; words: by BM25; hybrid: by both (default: hybrid for a text alone, else dense)",
        choices=["hybrid", "dense", "words"],
    ),
    whole_number("--top", "number of products to print", default=10),
    JSON,
    out_file("--html", "HTML file for the answer with pictures (default: none)"),
    flag("--workdir", "folder of the run that made the index (default: as the index says)"),
    OTHER_RERANKER,
    examples=(
        'fbjax search --text "red cotton dress"',
        'fbjax search --image photo.jpg --text "but in blue" --where \'category == "dress"\' --html found.html',
        "fbjax search --like 1234",
    ),
)
def search(index, workdir, reranker, json, html, **asked) -> None:
    from fbjax.serve.search.query import Query
    from fbjax.serve.search.searching import Searcher
    from fbjax.serve.search.shown import as_json, format_table

    query = Query(**{name: value for name, value in asked.items() if value is not None})
    with Searcher(index, os.environ.get(INDEX_TOKEN, ""), workdir, reranker) as searcher:
        results = searcher.search(query)
        if html:
            from fbjax.report.ranking import write_found

            write_found(query, results, searcher.pictures, html)
    for note in results.notes:
        say(note)
    lines = format_table(results, shutil.get_terminal_size().columns)
    answer(dumps(as_json(query, results), indent=2, ensure_ascii=False) if json else "\n".join(lines))
    if html:
        (say if json else answer)(f"pictures: {html}")


@verb(
    "serve an index and a search page over HTTP",
    INDEX,
    flag("--workdir", "folder of the run that made the index (default: as the index says)"),
    OTHER_RERANKER,
    flag("--host", "address to listen at; 0.0.0.0: reachable from outside", default="127.0.0.1"),
    whole_number("--port", "port to listen at; 0: any free one", at_least=0, default=8000),
    whole_number("--waiting", "number of requests that may wait; further ones are answered with 429", default=64),
    examples=("fbjax serve --index index",),
)
def serve(index, workdir, reranker, host, port, waiting) -> None:
    if port > 65535:
        raise ValueError(f"--port {port}: a port is at most 65535")
    from fbjax.serve.search.searching import Searcher
    from fbjax.serve.web.limits import Limits
    from fbjax.serve.web.server import run

    with Searcher(index, os.environ.get(INDEX_TOKEN, ""), workdir, reranker) as searcher:
        threads = 2 if is_remote(index) else 1  # a folder's Milvus computes in this process, in Python
        limits = Limits(workers=threads, waiting=waiting)
        run(searcher, host, port, limits, os.environ.get(SERVICE_KEY, ""), answer)
