"""Ranks products with a trained model: a catalogue's images for one text, or its texts for one image."""

import dataclasses
from pathlib import Path

import numpy as np

from fbjax.core.console import duration, progress, say
from fbjax.data.batches.split import Split
from fbjax.data.sources.base import Product
from fbjax.data.sources.images import encoded
from fbjax.inference.embedder import make_embedder
from fbjax.inference.known_words import unknown_words
from fbjax.inference.model import Model
from fbjax.inference.pair_scorer import make_scorer
from fbjax.runs.feature_cache import image_inputs, text_inputs

SCORED = 200


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The best products for a query, best first.

    Scores are logit differences, > 0 where a match is likelier, or cosines, of vectors or over tokens, which have no
    threshold.
    """

    query: str | bytes  # a text, or an encoded image
    num_candidates: int
    num_scored: int  # of them
    products: list[Product]
    scores: list[float]
    scores_matches: bool  # whether a score above 0 says "match"
    by_tokens: bool = False  # whether tokens are compared, by late interaction


def rank(
    workdir: str | Path,
    *,
    text: str | None = None,
    image: str | Path | None = None,
    data: str | None = None,
    category: str | None = None,
    top: int = 10,
    scored: int = SCORED,
    step: int | None = None,
) -> Ranking:
    """The `top` products of `data` (a table or glob; default: the run's validation split) for one text or one image.

    `category` keeps only products of that category. Where the run makes vectors beside match scores, only the `scored`
    candidates with the nearest vectors are scored, or all with 0. Says which words of the text the model does not know.
    """
    if (text is None) == (image is None):
        raise ValueError("rank takes a text or an image, one of the two")
    if top < 1:
        raise ValueError(f"--top {top}: take at least 1")
    if scored < 0:
        raise ValueError(f"--scored {scored}: take at least 1, or 0 for all")
    asked = text if text is not None else encoded(image)  # a missing file is said before the model is read
    model = Model.load(workdir, step)
    query = model.encode_text(text) if text is not None else model.read_image(image)
    for line in unknown_words(model.run, [] if text is None else [text]):
        say(line)
    records = model.records(data)
    candidates = _of_category(records, category)
    rows = _nearest(
        model, records, candidates, query, by_text=text is not None, number=max(scored, top) if scored else 0
    )

    patches = model.run.patches if image is not None else model.run.feature_input  # records may have cached features
    scorer = make_scorer(model.run, model.mesh, patches)
    places, first = np.arange(len(rows)), np.zeros(len(rows), int)
    if text is not None:
        inputs = image_inputs(model.run, records, rows, scorer.batch_size, "image embeddings")
        images = scorer.embed_images(model.variables, inputs)
        ids, pairs = query[None], np.stack([first, places], axis=1)
    else:
        images = scorer.embed_images(model.variables, [query[None]])
        ids, pairs = text_inputs(model.run, records, rows), np.stack([places, first], axis=1)
    expected = scorer.expected_seconds(model.variables, ids, images, pairs)
    if expected > 10:
        say(f"{len(rows):,} candidates: about {duration(expected)}")
    scores = scorer.score(model.variables, ids, images, pairs, progress)
    best = np.argsort(-scores, kind="stable")[:top]
    products = records.products(rows[best].tolist())
    kind = model.run.scores_pairs, model.run.late_interaction
    return Ranking(asked, len(candidates), len(rows), products, scores[best].tolist(), *kind)


def format_table(ranking: Ranking, width: int) -> list[str]:
    """The ranking as lines of at most `width` columns: rank, score, id, category, text."""
    ids = max(len(product.id) for product in ranking.products)
    categories = max(len(product.category) for product in ranking.products)
    lines = [f"{'':>3}  {'score':>6}  {'id':{ids}}  {'category':{categories}}  text"]
    for place, (product, score) in enumerate(zip(ranking.products, ranking.scores, strict=True), start=1):
        line = f"{place:>3}  {score:>6.2f}  {product.id:{ids}}  {product.category:{categories}}  {product.text}"
        lines.append(line if len(line) <= width else line[: width - 3] + " ..")
    cosines = ", by the cosines of tokens" if ranking.by_tokens else ", by cosine"
    meaning = "; a score above 0: a match" if ranking.scores_matches else cosines
    nearest = f"; the {ranking.num_scored:,} with the nearest vectors were scored"
    nearest = nearest if ranking.num_scored < ranking.num_candidates else ""
    return lines + [f"best {len(ranking.products)} of {ranking.num_candidates:,} products{meaning}{nearest}"]


def _nearest(
    model: Model, records: Split, rows: np.ndarray, query: np.ndarray, *, by_text: bool, number: int
) -> np.ndarray:
    """The `number` of `rows` with the nearest vectors in the order of the table; all where none has to be left out."""
    run = model.run
    if not (run.reranks and run.has_embedder) or not 0 < number < len(rows):
        return rows
    patches = run.feature_input if by_text else run.patches
    embedder = make_embedder(run, model.mesh, patches)
    if by_text:
        wanted = embedder.embed_queries(model.variables, query[None])[0]
        inputs = image_inputs(run, records, rows, embedder.batch_size, "vectors of images")
        vectors = embedder.embed_images(model.variables, inputs)
    else:
        wanted = embedder.embed_images(model.variables, [query[None]])[0]
        vectors = embedder.embed_texts(model.variables, text_inputs(run, records, rows), progress)
    nearest = np.argpartition(-(vectors @ wanted), number - 1)[:number]
    return rows[np.sort(nearest)]


def _of_category(records: Split, category: str | None) -> np.ndarray:
    if category is None:
        return np.arange(len(records))
    known = [str(name) for name in records.category_names]
    if category not in known:
        shown = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
        raise ValueError(f"no category {category!r}; there are {shown}")
    return np.flatnonzero(records.categories == known.index(category))
