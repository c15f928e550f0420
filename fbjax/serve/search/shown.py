"""The answer to a search as a table or as JSON."""

from fbjax.serve.search.query import MEANINGS, Query, Results


def format_table(results: Results, width: int) -> list[str]:
    """Lines of at most `width` columns: rank, score, id, category, text."""
    if not results.hits:
        return ["no product meets this"]
    ids = max(len(hit.product.id) for hit in results.hits)
    categories = max(len(str(hit.product.fields["category"])) for hit in results.hits)
    lines = [f"{'':>3}  {'score':>6}  {'id':{ids}}  {'category':{categories}}  text"]
    for place, hit in enumerate(results.hits, start=1):
        product, category = hit.product, str(hit.product.fields["category"])
        line = f"{place:>3}  {hit.score:>6.3f}  {product.id:{ids}}  {category:{categories}}  {product.text}"
        lines.append(line if len(line) <= width else line[: width - 3] + " ..")
    times = ", ".join(f"{stage} {1000 * seconds:.0f} ms" for stage, seconds in results.seconds.items())
    meaning = MEANINGS[results.mode]
    if results.reranked:
        rest = f", then {meaning}" if results.reranked < len(results.hits) else ""
        meaning = f"match scores of the first {results.reranked}{rest}"
    return lines + [f"scores: {meaning}; {times}"]


def as_json(query: Query, results: Results) -> dict:
    """The answer as a tree of plain values."""
    products = [
        {"id": hit.product.id, "score": hit.score, "text": hit.product.text, "fields": hit.product.fields}
        for hit in results.hits
    ]
    asked = {"text": query.text, "like": query.like, "where": query.where, "image": query.image is not None}
    return {
        "query": {name: value for name, value in asked.items() if value},
        "mode": results.mode,
        "reranked": results.reranked,
        "seconds": results.seconds,
        "notes": results.notes,
        "products": products,
    }
