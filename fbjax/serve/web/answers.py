"""The JSON of a search service."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

from fbjax.serve.index.collection import Hit, Stored
from fbjax.serve.search.explaining import Reason
from fbjax.serve.search.query import Results

MOST_COUNTED = 20  # values of a field with counts


class ShownProduct(BaseModel):
    """A product of the index."""

    id: str = Field(examples=["1234"])
    text: str = Field(examples=["Red cotton dress"])
    fields: dict[str, str | float | None] = Field(examples=[{"category": "dress", "price": 49.0}])
    picture: str = Field(description="path of the picture on this server, '' where there is none")


class FoundProduct(ShownProduct):
    """A product that was found."""

    score: float = Field(examples=[0.83])


class Answer(BaseModel):
    """The answer to a search."""

    mode: Literal["hybrid", "dense", "words"]
    products: list[FoundProduct]
    reranked: int = Field(description="so many of the first, of all pages, have the re-ranker's order and match scores")
    more: bool = Field(description="whether there are products after these")
    counts: dict[str, dict[str, int]] = Field(
        description="values of text fields among the first products found, and how many have each",
        examples=[{"category": {"dress": 17, "skirt": 3}}],
    )
    notes: list[str] = Field(description="words that the model does not know")
    seconds: dict[str, float] = Field(
        description="of each stage; none of an answer that was kept", examples=[{"embed": 0.004, "vectors": 0.02}]
    )


class MatchAnswer(BaseModel):
    """Whether a text and a picture belong together."""

    score: float = Field(description="> 0: a match is likelier; a cosine where the model has no match head")
    probability: float | None = Field(description="of a match, where half of the pairs match; none if not calibrated")


class ValuedWord(BaseModel):
    """A word, and what it contributes."""

    word: str
    value: float


class Explained(BaseModel):
    """What the words of a text and the patches of a picture contribute to their match.

    By attention: shares of what [CLS] attends to. By alignment: cosines with what a part goes to.
    """

    method: Literal["gradient", "occlusion", "attention", "alignment"]
    text: str = Field(description="the query's, or the product's where the query is a picture")
    picture: str = Field(description="path of the picture on this server, '' for the given one")
    score: float = Field(description="of the text with the picture: > 0 is a match, or a cosine")
    scores_matches: bool = Field(description="whether the score is a match score, else a cosine")
    words: list[ValuedWord] = Field(description="> 0: speaks for the match")
    patches: list[list[float]] = Field(description="rows of a square grid, from the top left")
    whole_image: float | None = Field(description="of the token of the whole picture, where there is one")
    word_patches: list[list[list[float]]] | None = Field(description="by attention and alignment: of words to patches")
    in_text: list[str] = Field(description="words of the query that the product's text has too")


class Problem(BaseModel):
    """Why there is no answer, and the remedy."""

    error: str


def answer_of(results: Results, first: int, number: int, counted: Sequence[str]) -> Answer:
    """Products `first` to ``first + number`` of the results, with counts of the fields `counted` over all of them."""
    return Answer(
        mode=results.mode,
        reranked=results.reranked,
        products=[_found(hit) for hit in results.hits[first : first + number]],
        more=len(results.hits) > first + number,
        counts={field: _counts(results.hits, field) for field in counted},
        notes=results.notes,
        seconds=results.seconds,
    )


def explained_of(reason: Reason) -> Explained:
    """A reason as it is answered."""
    values = reason.explanation.as_json()
    kept = {name: values[name] for name in Explained.model_fields if name in values}
    picture = f"/pictures/{reason.picture}" if reason.picture else ""
    return Explained(**kept, text=reason.text, picture=picture, in_text=reason.in_text)


def _found(hit: Hit) -> FoundProduct:
    return FoundProduct(**shown(hit.product).model_dump(), score=hit.score)


def shown(product: Stored) -> ShownProduct:
    """A product as it is answered."""
    picture = f"/pictures/{product.picture}" if product.picture else ""
    return ShownProduct(id=product.id, text=product.text, fields=product.fields, picture=picture)


def _counts(hits: Sequence[Hit], field: str) -> dict[str, int]:
    values = Counter(value for hit in hits if isinstance(value := hit.product.fields.get(field), str) and value)
    return dict(values.most_common(MOST_COUNTED))
