"""Example rankings, chosen by a fixed rule, and the pairs of which scores are explained."""

import random
from collections.abc import Sequence

from fbjax.data.batches.split import Split
from fbjax.data.sources.base import Product
from fbjax.report.page import card, picture

FOUND, BETWEEN, WORST = "The right one came first", "The right one came later", "The worst"
NUM_EACH, SEED = 2, 0
RULE = (
    f"Up to {NUM_EACH} queries drawn (seed {SEED}) from those whose right product came first, {NUM_EACH} from those "
    f"where it came later, and the {NUM_EACH} where it came last of all. Nothing is picked by hand."
)


def choose(rankings: list[dict]) -> dict[str, list[dict]]:
    """Chooses rankings of one direction by `RULE`; leaves out empty kinds."""
    draw = random.Random(SEED)
    worst = sorted((r for r in rankings if r["rank"] > 1), key=lambda r: -r["rank"])[:NUM_EACH]
    first = [r for r in rankings if r["rank"] == 1]
    later = [r for r in rankings if r["rank"] > 1 and r not in worst]
    chosen = {
        FOUND: draw.sample(first, min(NUM_EACH, len(first))),
        BETWEEN: sorted(draw.sample(later, min(NUM_EACH, len(later))), key=lambda r: r["rank"]),
        WORST: worst,
    }
    return {kind: some for kind, some in chosen.items() if some}


def look_up(records: Split, rankings: Sequence[dict]) -> dict[str, Product]:
    """The products of `rankings` by id."""
    ids = list(dict.fromkeys(i for r in rankings for i in (r["query"], r["positive"], *(j for j, _ in r["top"]))))
    return dict(zip(ids, records.products(records.rows(ids)), strict=True)) if ids else {}


def view(ranking: dict, products: dict[str, Product]) -> dict:
    """One ranking as the template shows it."""
    query, positive, top = products[ranking["query"]], ranking["positive"], enumerate(ranking["top"], start=1)
    cards = [card(products[identity], score, place, identity == positive) for place, (identity, score) in top]
    if not any(shown["right"] for shown in cards):
        cards.append(card(products[positive], ranking["score"], ranking["rank"], True))
    by_image, apart = ranking["direction"] == "image_to_text", ranking["rank"] > len(ranking["top"])
    shown = {"ranking": ranking, "query": query, "by_image": by_image, "cards": cards, "apart": apart}
    return shown | {"picture": picture(query.image) if by_image else None}


def pairs_to_explain(chosen: dict[str, dict[str, list[dict]]]) -> list[tuple[str, str, str]]:
    """(title, text's id, image's id) of up to four pairs among the `chosen` of each direction."""

    def pair(ranking: dict, candidate: str) -> tuple[str, str]:
        by_image = ranking["direction"] == "image_to_text"
        return (candidate, ranking["query"]) if by_image else (ranking["query"], candidate)

    found = [r for by_kind in chosen.values() for r in by_kind.get(FOUND, ())]
    worst = [by_kind[WORST][0] for by_kind in chosen.values() if WORST in by_kind][:1]
    pairs = list(dict.fromkeys(("A true pair, ranked first", *pair(r, r["positive"])) for r in found))[:3]
    for r in worst:
        other = "text" if r["direction"] == "image_to_text" else "picture"
        pairs.append((f"A mistake: another product's {other}, ranked first", *pair(r, r["top"][0][0])))
    return pairs
