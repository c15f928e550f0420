"""Routes that read and change single products. Changes need the key of the service; without one there are none."""

import secrets
from collections.abc import Callable
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, File, Form, HTTPException, Path
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, StrictFloat, StrictStr, TypeAdapter, ValidationError

from fbjax.serve.index.collection import ID_BYTES, NAME_BYTES, TEXT_BYTES
from fbjax.serve.search.changing import NewProduct, Products, clean_identity
from fbjax.serve.web.answers import Problem, ShownProduct, shown
from fbjax.serve.web.workers import Workers

KEY_LENGTH = 16  # characters, at least
Identity = Annotated[str, Path(description="id of the product", max_length=ID_BYTES, examples=["1234"])]
FIELDS = TypeAdapter(dict[str, StrictStr | StrictFloat | None])
NO_PRODUCT = {404: {"model": Problem}}


class Change(BaseModel):
    """What was done."""

    id: str
    change: Literal["added", "replaced", "deleted"]


def check_key(key: str) -> None:
    """Raises ValueError where a key is easily guessed, or no header can carry it."""
    if key != key.strip():
        raise ValueError("the key of the service begins or ends with a blank or a new line: remove it")
    if key and (len(key) < KEY_LENGTH or not key.isascii()):
        raise ValueError(f"the key of the service has {len(key)} characters: use {KEY_LENGTH} or more of ASCII")


def product_routes(products: Products, workers: Workers, key: str) -> APIRouter:
    """``GET /products/ID``, and with a `key` ``PUT`` and ``DELETE`` too."""
    routes = APIRouter(prefix="/products", tags=["products"])

    @routes.get("/{identity:path}", responses=NO_PRODUCT)
    async def get_product(identity: Identity) -> ShownProduct:
        """A product of the index."""
        found = (await workers.run(products.get_all, clean_identity(identity))).answer
        if found is None:
            raise HTTPException(404, f"no product {identity[:100]!r} in the index")
        return shown(found)

    if key:
        _add_changes(routes, products, workers, _asks_for(key))
    return routes


def _add_changes(routes: APIRouter, products: Products, workers: Workers, allowed: Callable) -> None:
    refused = {401: {"model": Problem}}

    @routes.put("/{identity:path}", dependencies=[Depends(allowed)], responses=refused)
    async def put_product(
        identity: Identity,
        text: Annotated[str, Form(description="all of its text", max_length=TEXT_BYTES)],
        image: Annotated[bytes, File(description="its picture: JPEG, PNG, WebP, ..")],
        category: Annotated[str, Form(max_length=NAME_BYTES)] = "",
        group: Annotated[str, Form(description="id of which it is a variant", max_length=NAME_BYTES)] = "",
        fields: Annotated[str, Form(description="JSON of values", examples=['{"colour": "red"}'])] = "{}",
    ) -> Change:
        """Adds a product, or replaces the one of this id. Later answers have it."""
        product = NewProduct(clean_identity(identity), text, image, category, group, _fields(fields))
        new = (await workers.run(products.put_all, product)).answer
        return Change(id=product.id, change="added" if new else "replaced")

    @routes.delete("/{identity:path}", dependencies=[Depends(allowed)], responses=refused | NO_PRODUCT)
    async def delete_product(identity: Identity) -> Change:
        """Deletes a product. No later answer has it."""
        identity = clean_identity(identity)
        if not (await workers.run(products.delete_all, identity)).answer:
            raise HTTPException(404, f"no product {identity[:100]!r} in the index")
        return Change(id=identity, change="deleted")


def _fields(given: str) -> dict[str, str | float | None]:
    try:
        return FIELDS.validate_json(given)
    except ValidationError:
        raise ValueError(f'fields {given[:100]!r}: give JSON such as {{"colour": "red", "price": 49}}') from None


def _asks_for(key: str) -> Callable:
    scheme = HTTPBearer(auto_error=False, description="the key of the service")

    def allowed(given: Annotated[HTTPAuthorizationCredentials | None, Depends(scheme)]) -> None:
        sent = given.credentials if given else ""
        if not secrets.compare_digest(sent.encode(), key.encode()):
            headers = {"WWW-Authenticate": "Bearer"}
            raise HTTPException(401, "changes need the key: send the header Authorization: Bearer KEY", headers)

    return allowed
