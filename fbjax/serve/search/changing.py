"""Changes single products of an index while it is searched. `fbjax index` makes it equal to whole tables."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fbjax.data.sources.cells import clean_name, clean_text
from fbjax.data.sources.images import normalise_image
from fbjax.serve.index.collection import ALWAYS, ID_BYTES, NAME_BYTES, Collection, Stored
from fbjax.serve.index.where import Kind
from fbjax.serve.search.searching import Searcher
from fbjax.serve.search.together import each_alone

Field = str | float | None


@dataclasses.dataclass(frozen=True)
class NewProduct:
    """A product to be added, or to replace the one of the same id."""

    id: str
    text: str
    image: bytes  # encoded
    category: str = ""
    group: str = ""  # id of the product of which it is a variant; default: its own
    fields: Mapping[str, Field] = dataclasses.field(default_factory=dict)


class Products:
    """The products of an open index. A change is in every later answer; what cannot be taken is a ValueError."""

    def __init__(self, searcher: Searcher):
        self._searcher = searcher

    @property
    def _collection(self) -> Collection:
        return self._searcher.collection

    def get_all(self, ids: Sequence[str]) -> list[Stored | None]:
        """The product of each id, None where there is none."""
        found = (self._collection.get(identity) for identity in ids)
        return [product and product[0] for product in found]

    def put_all(self, products: Sequence[NewProduct]) -> list[bool | ValueError]:
        """Whether each product is new in the index, or why it was not taken."""
        return each_alone(self._put, products)

    def delete_all(self, ids: Sequence[str]) -> list[bool]:
        """Whether each product was there."""
        before = self.get_all(ids)
        self._change(self._collection.delete, ids)
        self._forget_pictures(before)
        return [product is not None for product in before]

    def _forget_pictures(self, before: Sequence[Stored | None]) -> None:
        """Deletes the pictures of these products that no product has any more."""
        for picture in {product.picture for product in before if product and product.picture}:
            if not self._collection.shows(picture):
                self._searcher.pictures.remove(picture)

    def _put(self, products: Sequence[NewProduct]) -> list[bool]:
        products = [self._checked(product) for product in products]
        vectors = self._searcher.model.embed_product([p.text for p in products], [p.image for p in products])
        before = self.get_all([p.id for p in products])
        last = {product.id: place for place, product in enumerate(products)}  # of one id only one row can be written
        rows = [self._stored(products[place]) for place in last.values()]
        self._change(self._collection.upsert, rows, vectors[np.array([*last.values()])])
        self._forget_pictures(before)
        return [product is None for product in before]

    def _change(self, change: Callable, *arguments: Any) -> None:
        try:
            change(*arguments)
        finally:
            self._searcher.forget_answers()

    def _checked(self, product: NewProduct) -> NewProduct:
        """`product` as it is indexed. Raises ValueError where something is missing, too long or of another kind."""
        identity, text = clean_identity(product.id), clean_text(product.text)
        if not text:
            raise ValueError(f"product {identity!r} has no text")
        kinds = {name: kind for name, kind in self._collection.fields.items() if name not in ALWAYS}
        for name, value in product.fields.items():
            if name not in kinds:
                raise ValueError(f"the index has no field {name!r}, only {', '.join(kinds) or 'none of its own'}")
            if not _is(value, kinds[name]):
                raise ValueError(f"field {name} holds {kinds[name]}s, not {value!r}")
        image = normalise_image(product.image, self._searcher.model.run.config.patches.image_size)
        group, category = self._group(clean_name(product.group) or identity), clean_name(product.category)
        return dataclasses.replace(product, id=identity, text=text, image=image, group=group, category=category)

    def _group(self, identity: str) -> str:
        """The group of the product of this id, which is named by its first product; the id where there is none."""
        (found,) = self.get_all([identity])
        return str(found.fields["group"]) if found else identity

    def _stored(self, product: NewProduct) -> Stored:
        fields = dict.fromkeys(self._collection.fields) | dict(product.fields)
        fields |= {"category": product.category, "group": product.group}
        row = repr((product.id, product.text, product.image, sorted(fields.items(), key=str)))
        content = f"put-{hashlib.sha256(row.encode()).hexdigest()[:32]}"  # differs from that of any table's row
        return Stored(product.id, product.text, self._searcher.pictures.add(product.image), fields, content)


def clean_identity(identity: str) -> str:
    """An id as it is in an index. Raises ValueError where it is none."""
    cleaned = clean_name(identity)
    if not cleaned or len(cleaned.encode()) > ID_BYTES:
        raise ValueError(f"id {identity[:100]!r}: give one of 1 to {ID_BYTES:,} bytes, not blank and not 'nan'")
    return cleaned


def _is(value: Field, kind: Kind) -> bool:
    if kind == "text":
        return value is None or isinstance(value, str) and len(value.encode()) <= NAME_BYTES
    return value is None or isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
