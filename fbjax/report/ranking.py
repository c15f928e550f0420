"""A ranking as an HTML page: the query and a card for each of the best products."""

from pathlib import Path

from fbjax.inference.rank import Ranking
from fbjax.report.page import card, picture, write_page

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
