"""Products in a collection of Milvus: their vectors, their texts as bags of words, and the fields that filters read."""

import contextlib
import hashlib
import keyword
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fbjax.serve.index.where import Kind

FIELD_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
ALWAYS = ("category", "group")  # fields that every product has
OWN_FIELDS = ("key", "id", "vector", "words", "text", "picture", "content", *ALWAYS)
MILVUS_WORDS = ("like", "exists", "is", "iso", "interval", "null", "true", "false", "in", "and", "or", "not")
ID_BYTES, NAME_BYTES, TEXT_BYTES = 2048, 2048, 65_535  # the last: Milvus' largest
ROWS_AT_ONCE = 1000  # of one call
MOST_FLAT, MOST_HNSW = 10_000, 5_000_000  # products
EF, NPROBE = 200, 64  # nodes of HNSW that a search looks at, at least; lists of IVF
BUILD: dict[str, dict] = {"FLAT": {}, "HNSW": {"M": 16, "efConstruction": 200}, "IVF_FLAT": {"nlist": 4096}}


class Stored(NamedTuple):
    """A product as the index holds it."""

    id: str
    text: str
    picture: str  # a name of `Pictures`
    fields: dict[str, str | float | None]
    content: str  # a hash of all that its row was made of


class Hit(NamedTuple):
    """A product that a search found."""

    product: Stored
    score: float  # a cosine, BM25's score, or a sum of 1 / (60 + rank)


class Collection:
    """One collection: every row is a whole product, under a hash of its id, which Milvus takes in any expression."""

    def __init__(self, client: Any, location: str, name: str, manifest: dict):
        self._client, self._location, self.name, self.manifest = client, location, name, manifest

    @staticmethod
    def schema(client: Any, manifest: dict) -> Any:
        """The schema of a collection with the fields and the size of vectors of its manifest."""
        from pymilvus import DataType, Function, FunctionType

        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", DataType.VARCHAR, max_length=64, is_primary=True)
        schema.add_field("id", DataType.VARCHAR, max_length=ID_BYTES)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=manifest["embedding_dim"])
        schema.add_field("words", DataType.SPARSE_FLOAT_VECTOR)
        schema.add_field("text", DataType.VARCHAR, max_length=TEXT_BYTES, enable_analyzer=True)
        schema.add_field("picture", DataType.VARCHAR, max_length=64)
        schema.add_field("content", DataType.VARCHAR, max_length=64)
        for field, kind in manifest["fields"].items():
            options = {"max_length": NAME_BYTES} if kind == "text" else {}
            schema.add_field(field, DataType.VARCHAR if kind == "text" else DataType.DOUBLE, nullable=True, **options)
        bm25 = Function("bm25", FunctionType.BM25, input_field_names=["text"], output_field_names=["words"])
        return schema.add_function(bm25)

    @property
    def fields(self) -> dict[str, Kind]:
        """What filters may name."""
        return self.manifest["fields"]

    def upsert(self, products: Sequence[Stored], vectors: np.ndarray) -> None:
        """Adds products, or replaces those of the same id; vectors [N, E]. What is too long is cut."""
        rows = [
            {
                "key": _key(product.id),
                "id": product.id,
                "vector": vector,
                "text": _cut(product.text, TEXT_BYTES),
                "picture": product.picture,
                "content": product.content,
                **{name: _cut(v, NAME_BYTES) if isinstance(v, str) else v for name, v in product.fields.items()},
            }
            for product, vector in zip(products, np.asarray(vectors, np.float32), strict=True)
        ]
        with self._explained():
            for start in range(0, len(rows), ROWS_AT_ONCE):
                self._client.upsert(self.name, rows[start : start + ROWS_AT_ONCE])

    def delete(self, ids: Sequence[str]) -> None:
        """Products that are not there are no error."""
        with self._explained():
            for start in range(0, len(ids), ROWS_AT_ONCE):
                self._client.delete(self.name, ids=[_key(identity) for identity in ids[start : start + ROWS_AT_ONCE]])

    def build(self, kind: str) -> None:
        """Writes what is in memory, and indexes vectors by `kind` and texts by their words, where they are not yet."""
        with self._explained():
            self._client.flush(self.name)
            there = [self._client.describe_index(self.name, name) for name in self._client.list_indexes(self.name)]
            kinds = {index["field_name"]: (index["index_name"], index["index_type"]) for index in there}
            if kinds.get("vector", ("", ""))[1] != kind:
                if "vector" in kinds:
                    self._client.release_collection(self.name)
                    self._client.drop_index(self.name, kinds["vector"][0])
                self._index("vector", kind, "IP", BUILD[kind])
            if "words" not in kinds:
                self._index("words", "SPARSE_INVERTED_INDEX", "BM25", {})
            self._client.load_collection(self.name)

    def _index(self, field: str, kind: str, metric: str, params: dict) -> None:
        asked = self._client.prepare_index_params()
        asked.add_index(field, index_type=kind, metric_type=metric, params=params)
        self._client.create_index(self.name, asked)

    def contents(self) -> dict[str, tuple[str, str]]:
        """{id: (content, name of the picture)} of all products."""
        batches = self._batches(["id", "content", "picture"])
        return {row["id"]: (row["content"], row["picture"]) for rows in batches for row in rows}

    def shows(self, picture: str) -> bool:
        """Whether a product has the picture of this name."""
        with self._explained():
            return bool(self._client.query(self.name, filter=f'picture == "{picture}"', output_fields=["id"], limit=1))

    def picture_names(self) -> set[str]:
        """Those of all products."""
        return {row["picture"] for rows in self._batches(["picture"]) for row in rows}

    def vectors(self) -> Iterator[np.ndarray]:
        """Vectors [n, E] of all products, in parts, always in the same order."""
        for rows in self._batches(["vector"]):
            yield np.array([row["vector"] for row in rows], np.float32)

    def _batches(self, fields: list[str]) -> Iterator[list[dict]]:
        with self._explained():
            rows = self._client.query_iterator(self.name, batch_size=ROWS_AT_ONCE, output_fields=fields)
            with contextlib.closing(rows):
                while found := rows.next():
                    yield found

    def get(self, identity: str) -> tuple[Stored, np.ndarray] | None:
        """A product and its vector [E]; None where there is none of this id."""
        with self._explained():
            rows = self._client.get(self.name, ids=[_key(identity)], output_fields=[*self._shown, "vector"])
        return (self._stored(rows[0]), np.array(rows[0]["vector"], np.float32)) if rows else None

    def any(self) -> Stored | None:
        """A product; None where there is none."""
        with self._explained():
            rows = self._client.query(self.name, filter="", output_fields=self._shown, limit=1)
        return self._stored(rows[0]) if rows else None

    def count(self) -> int:
        with self._explained():
            return int(self._client.query(self.name, filter="", output_fields=["count(*)"])[0]["count(*)"])

    def nearest(self, vectors: np.ndarray, limit: int, where: str = "") -> list[list[Hit]]:
        """The products with the largest cosines with each of `vectors` [n, E]; `where`: a filter of Milvus."""
        return self._found("vector", list(vectors), limit, where, search_params=_near(limit))

    def with_words(self, texts: Sequence[str], limit: int, where: str = "") -> list[list[Hit]]:
        """The products whose texts have the words of each of `texts`, by BM25."""
        found = self._found("words", list(texts), limit, where)
        return [[Hit(hit.product, abs(hit.score)) for hit in hits] for hits in found]  # Lite gives them with a minus

    def _found(self, field: str, queries: list, limit: int, where: str, **options) -> list[list[Hit]]:
        options |= {"limit": limit, "filter": where, "output_fields": self._shown}
        with self._explained():
            found = self._client.search(self.name, queries, anns_field=field, **options)
        return [[Hit(self._stored(hit["entity"]), hit["distance"]) for hit in hits] for hits in found]

    @property
    def _shown(self) -> list[str]:
        return ["id", "text", "picture", "content", *self.fields]

    def _stored(self, row: Mapping[str, Any]) -> Stored:
        fields = {field: row.get(field) for field in self.fields}
        return Stored(row["id"], row["text"], row["picture"], fields, row["content"])

    def _explained(self) -> contextlib.AbstractContextManager:
        return explained(self._location)


def index_kind(num_products: int) -> str:
    """The kind of index for so many vectors: exact, then a graph, then lists, which take less memory."""
    if num_products <= MOST_FLAT:
        return "FLAT"
    return "HNSW" if num_products <= MOST_HNSW else "IVF_FLAT"


def check_fields(names: Sequence[str]) -> None:
    """Raises ValueError where a name is none for a field of an index."""
    for name in names:
        if not FIELD_NAME.fullmatch(name) or len(name) > 64:
            raise ValueError(
                f"field {name!r}: use letters from a to z, digits and _, as in --fields colour=Farbe for a column Farbe"
            )
        if name in OWN_FIELDS or keyword.iskeyword(name) or name.lower() in MILVUS_WORDS:
            raise ValueError(f"field {name!r} cannot be used: give it another name, as in --fields my_{name}={name}")


def _near(limit: int) -> dict:
    return {"params": {"ef": max(EF, limit), "nprobe": NPROBE}}


def _key(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def _cut(text: str, size: int) -> str:
    """The beginning of `text` that has at most `size` bytes."""
    return text.encode()[:size].decode(errors="ignore")


@contextlib.contextmanager
def explained(location: str) -> Iterator[None]:
    """Errors of Milvus as OSError, with the place."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("pymilvus", "milvus_lite", "grpc"):
            raise
        text = str(getattr(error, "message", error))
        if "Open local milvus failed" in text:
            text = (
                "it cannot be opened. If another process has it open, end that, or put the index on a Milvus server; "
                "else see whether the folder takes files"
            )
        raise OSError(f"the index at {location}: {text}") from error
