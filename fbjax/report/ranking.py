"""A ranking, or what a search found, as an HTML page: the query and a card for each of the best products."""

from pathlib import Path

from fbjax.core.paths import as_path
from fbjax.data.sources.base import Product
from fbjax.inference.rank import Ranking
from fbjax.report.page import card, picture, write_page
from fbjax.serve.index.collection import ALWAYS, Stored
from fbjax.serve.index.pictures import Pictures
from fbjax.serve.search.query import MEANINGS, Query, Results

QUERY_HEIGHT = 320


def write_ranking(ranking: Ranking, out: str | Path, title: str = "Ranking") -> Path:
    """Writes `ranking` to the file `out`."""
    by_text = isinstance(ranking.query, str)
    best = enumerate(zip(ranking.products, ranking.scores, strict=True), start=1)
    return write_page(
        out,
        "ranking.html",
        title=title,
        query_text=ranking.query if by_text else None,
        query_picture=None if by_text else picture(ranking.query, QUERY_HEIGHT),
        num_candidates=ranking.num_candidates,
        scores_matches=ranking.scores_matches,
        cards=[card(product, score, place) for place, (product, score) in best],
    )


def write_found(query: Query, results: Results, pictures: Pictures, out: str | Path) -> Path:
    """Writes the answer to `query` to the file `out`."""
    image = query.image if isinstance(query.image, bytes | None) else as_path(query.image).read_bytes()
    return write_page(
        out,
        "found.html",
        title=query.text or (f"Like {query.like}" if query.like else "Like this picture"),
        query=query,
        query_picture=picture(image, QUERY_HEIGHT) if image else None,
        meaning=MEANINGS[results.mode],
        digits=3,  # sums of reciprocal ranks are small
        cards=[
            card(_with_picture(hit.product, pictures), hit.score, place)
            for place, hit in enumerate(results.hits, start=1)
        ],
    )


def _with_picture(found: Stored, pictures: Pictures) -> Product:
    category, group = (str(found.fields[field]) for field in ALWAYS)
    return Product(found.id, found.text, category, group, pictures.read(found.picture), where="")
