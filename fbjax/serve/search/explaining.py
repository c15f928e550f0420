"""Why a product was found: what the words and the patches of its picture contribute to their match."""

import dataclasses
from collections.abc import Sequence

from fbjax.inference.explain import METHODS, Explanation, explain
from fbjax.serve.index.collection import Stored
from fbjax.serve.search.query import check_text
from fbjax.serve.search.searching import Searcher


@dataclasses.dataclass(frozen=True)
class Why:
    """A product that was found for a text, for a picture, or for being like another; one of the three is given."""

    id: str
    text: str = ""
    image: bytes | None = None
    like: str = ""
    method: str = "gradient"


@dataclasses.dataclass(frozen=True)
class Reason:
    """An explanation of a text with a picture, either of which may be the product's."""

    text: str
    picture: str  # name of the picture, "" for the given one
    explanation: Explanation
    in_text: list[str]  # words of the query that the product's text has


class Explainer:
    """Explanations by the model that matches texts with pictures. A product's own text is not explained."""

    def __init__(self, searcher: Searcher):
        self._searcher = searcher

    def explain_all(self, asked: Sequence[Why]) -> list[Reason | ValueError]:
        """The reason of each, or why there is none."""
        reasons: list[Reason | ValueError] = []
        for why in asked:
            try:
                reasons.append(self._reason(why))
            except ValueError as error:
                reasons.append(error)
        return reasons

    def _reason(self, why: Why) -> Reason:
        if bool(why.text) + (why.image is not None) + bool(why.like) != 1:
            raise ValueError("give the text, the image or the product that the search was for")
        if why.method not in METHODS:
            raise ValueError(f"method {why.method!r} is unknown: use {', '.join(METHODS)}")
        product, model = self._product(why.id), self._searcher.matcher.model
        if why.image is not None:
            return Reason(product.text, "", explain(model, product.text, why.image, why.method), [])
        text = why.text or self._product(why.like).text
        check_text(why.text)
        if not (picture := self._searcher.pictures.read(product.picture)):
            raise ValueError(f"the picture of product {why.id!r} is gone")
        theirs = {word.casefold() for word in model.run.vocabulary.words(product.text)}
        shared = [word for word in model.run.vocabulary.words(text) if word.isalnum() and word.casefold() in theirs]
        return Reason(text, product.picture, explain(model, text, picture, why.method), list(dict.fromkeys(shared)))

    def _product(self, identity: str) -> Stored:
        if (found := self._searcher.collection.get(identity)) is None:
            raise ValueError(f"no product {identity!r} in the index")
        return found[0]

    def warm_up(self) -> None:
        """Explains texts of every length once, so that no request waits for a program to be compiled."""
        product = self._searcher.collection.any()
        if product and self._searcher.pictures.read(product.picture):
            for text in self._searcher.texts_of_all_lengths():
                self._reason(Why(product.id, text))
