"""Products in Milvus: their vectors, their texts as bags of words, and the fields that filters read.

A database is a folder with a file of Milvus Lite, or a Milvus server. In it an alias names the collection that searches
read. Another model or other fields make another collection, which takes over the alias when it is whole.
"""

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from fbjax.core.paths import is_remote
from fbjax.serve.where import Kind

ALIAS = "products"
DATABASE, PICTURES = "milvus.db", "pictures"  # in the folder of an index
MANIFEST = "fbjax"  # property of a collection
FIELD_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
OWN_FIELDS = ("id", "vector", "words", "text", "picture", "content")
ID_BYTES, NAME_BYTES, TEXT_BYTES = 2048, 2048, 65_535  # the last: Milvus' largest
ROWS_AT_ONCE = 1000
MOST_FLAT, MOST_HNSW = 50_000, 5_000_000  # products
EF = 200  # of HNSW: nodes that a search looks at, at least; NPROBE the same of IVF's lists
NPROBE = 64
SECONDS = 30.0  # for one answer of a server


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
    score: float  # a cosine, BM25's score, or for both a sum of 1 / (60 + rank)


class Database:
    """The collections of one alias. A context: it closes the connection."""

    def __init__(self, client: Any, location: str):
        self._client, self.location = client, location

    @classmethod
    def open(cls, location: str | Path, token: str = "", create: bool = False) -> Self:
        """Connects to a server, or opens a folder, which has to be there unless `create`.

        Raises OSError where there is no such folder or server, or another process has the folder open,
        ModuleNotFoundError without the extra `serve`.
        """
        try:
            from pymilvus import MilvusClient
        except ModuleNotFoundError:
            raise ModuleNotFoundError("an index needs pymilvus and milvus-lite: pip install 'fbjax[serve]'") from None
        for library in (
            "pymilvus",
            "milvus_lite",
            "grpc",
        ):  # they log what they raise
            logging.getLogger(library).setLevel(logging.CRITICAL)
        file = Path(location) / DATABASE
        if is_remote(location):
            options: dict[str, Any] = {"uri": str(location), "token": token, "timeout": SECONDS}
        else:
            if not (create or file.exists()):
                raise FileNotFoundError(f"no index at {location}: make one with fbjax index")
            file.parent.mkdir(parents=True, exist_ok=True)
            options = {"uri": str(file)}
        with _explained(str(location)):
            return cls(MilvusClient(**options), str(location))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets other processes open the folder. Of several databases of one folder in a process, this closes all."""
        self._client.close()
        if not is_remote(self.location):
            from milvus_lite.server_manager import server_manager_instance

            server_manager_instance.release_server(str(Path(self.location) / DATABASE))

    def published(self) -> "Collection | None":
        """The collection that searches read; None before the first is whole."""
        with _explained(self.location):
            if not self._client.has_collection(ALIAS):
                return None
            name = self._client.describe_collection(ALIAS)["collection_name"]
            self._client.load_collection(name)
            return self._opened(name)

    def begin(self, manifest: dict, num_products: int) -> "Collection":
        """The collection of this manifest: published, unfinished or new, to hold about so many products."""
        name = f"{ALIAS}_{hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:12]}"
        with _explained(self.location):
            if not self._client.has_collection(name):
                self._create(name, manifest)
            collection = self._opened(name)
            collection.build(index_kind(num_products))
            return collection

    def publish(self, collection: "Collection", num_products: int) -> None:
        """Makes searches read `collection`, with the kind of index for so many products, and drops all others."""
        with _explained(self.location):
            collection.build(index_kind(num_products))
            names = [name for name in self._client.list_collections() if name.startswith(f"{ALIAS}_")]
            there = self._client.has_collection(ALIAS)
            (self._client.alter_alias if there else self._client.create_alias)(collection.name, ALIAS)
            for name in names:
                if name != collection.name:
                    self._client.drop_collection(name)

    def _opened(self, name: str) -> "Collection":
        properties = self._client.describe_collection(name)["properties"]
        return Collection(self._client, self.location, name, json.loads(properties[MANIFEST]))

    def _create(self, name: str, manifest: dict) -> None:
        from pymilvus import DataType, Function, FunctionType

        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, max_length=ID_BYTES, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=manifest["embedding_dim"])
        schema.add_field("words", DataType.SPARSE_FLOAT_VECTOR)
        schema.add_field("text", DataType.VARCHAR, max_length=TEXT_BYTES, enable_analyzer=True)
        schema.add_field("picture", DataType.VARCHAR, max_length=64)
        schema.add_field("content", DataType.VARCHAR, max_length=64)
        for field, kind in manifest["fields"].items():
            options = {"max_length": NAME_BYTES} if kind == "text" else {}
            schema.add_field(field, DataType.VARCHAR if kind == "text" else DataType.DOUBLE, nullable=True, **options)
        bm25 = Function("bm25", FunctionType.BM25, input_field_names=["text"], output_field_names=["words"])
        schema.add_function(bm25)
        properties = {MANIFEST: json.dumps(manifest)}
        self._client.create_collection(name, schema=schema, properties=properties, consistency_level="Strong")


class Collection:
    """One collection: every row is a whole product."""

    def __init__(self, client: Any, location: str, name: str, manifest: dict):
        self._client, self._location, self.name, self.manifest = client, location, name, manifest

    @property
    def fields(self) -> dict[str, Kind]:
        """What filters may name."""
        return self.manifest["fields"]

    def upsert(self, products: Sequence[Stored], vectors: np.ndarray) -> None:
        """Adds products, or replaces those of the same id; vectors [N, E]."""
        rows = [
            {
                "id": product.id,
                "vector": vector,
                "text": _cut(product.text, TEXT_BYTES),
                "picture": product.picture,
                "content": product.content,
                **product.fields,
            }
            for product, vector in zip(products, np.asarray(vectors, np.float32), strict=True)
        ]
        with _explained(self._location):
            for start in range(0, len(rows), ROWS_AT_ONCE):
                self._client.upsert(self.name, rows[start : start + ROWS_AT_ONCE])

    def delete(self, ids: Sequence[str]) -> None:
        """Products that are not there are no error."""
        with _explained(self._location):
            for start in range(0, len(ids), ROWS_AT_ONCE):
                self._client.delete(self.name, ids=list(ids[start : start + ROWS_AT_ONCE]))

    def build(self, kind: str) -> None:
        """Writes what is in memory, and indexes vectors by `kind` and texts by their words, where they are not yet."""
        self._client.flush(self.name)
        there = {name: self._client.describe_index(self.name, name) for name in self._client.list_indexes(self.name)}
        kinds = {index["field_name"]: (name, index["index_type"]) for name, index in there.items()}
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

    def contents(self) -> dict[str, str]:
        """{id: content} of all products."""
        return {row["id"]: row["content"] for rows in self._batches(["id", "content"]) for row in rows}

    def pictures(self) -> set[str]:
        return {row["picture"] for rows in self._batches(["picture"]) for row in rows}

    def vectors(self) -> Iterator[tuple[list[str], np.ndarray]]:
        """Ids and vectors [n, E] of all products, in parts."""
        for rows in self._batches(["id", "vector"]):
            yield [row["id"] for row in rows], np.array([row["vector"] for row in rows], np.float32)

    def _batches(self, fields: list[str]) -> Iterator[list[dict]]:
        with _explained(self._location):
            rows = self._client.query_iterator(self.name, batch_size=ROWS_AT_ONCE, output_fields=fields)
            with contextlib.closing(rows):
                while found := rows.next():
                    yield found

    def get(self, identity: str) -> tuple[Stored, np.ndarray] | None:
        """A product and its vector [E]; None where there is none of this id."""
        with _explained(self._location):
            rows = self._client.get(self.name, ids=[identity], output_fields=[*self._shown, "vector"])
        return (self._stored(rows[0]), np.array(rows[0]["vector"], np.float32)) if rows else None

    def count(self) -> int:
        with _explained(self._location):
            return int(self._client.query(self.name, filter="", output_fields=["count(*)"])[0]["count(*)"])

    def values(self, field: str, where: str = "", limit: int = 16_384) -> list:
        """The values of a field of up to `limit` products that a filter of Milvus keeps."""
        with _explained(self._location):
            rows = self._client.query(self.name, filter=where, output_fields=[field], limit=limit)
        return [row[field] for row in rows]

    def nearest(self, vector: np.ndarray, limit: int, where: str = "") -> list[Hit]:
        """The products with the largest cosines with `vector` [E]; `where`: a filter of Milvus."""
        options = {"params": {"ef": max(EF, limit), "nprobe": NPROBE}}
        return self._found("vector", vector, limit, where, search_params=options)

    def with_words(self, text: str, limit: int, where: str = "") -> list[Hit]:
        """The products whose texts have the words of `text`, by BM25."""
        return self._found("words", text, limit, where)

    def by_both(self, text: str, vector: np.ndarray, limit: int, where: str = "", depth: int = 100) -> list[Hit]:
        """`nearest` and `with_words`, of which each gives its first `depth`, as one list by reciprocal ranks."""
        from pymilvus import AnnSearchRequest, RRFRanker

        depth = max(depth, limit)
        options = {"params": {"ef": max(EF, depth), "nprobe": NPROBE}}
        asked = [
            AnnSearchRequest([vector], "vector", options, depth, expr=where),
            AnnSearchRequest([text], "words", {}, depth, expr=where),
        ]
        with _explained(self._location):
            found = self._client.hybrid_search(self.name, asked, RRFRanker(60), limit, output_fields=self._shown)
        return [Hit(self._stored(hit["entity"] | {"id": hit["id"]}), hit["distance"]) for hit in found[0]]

    def _found(self, field: str, query: Any, limit: int, where: str, **options) -> list[Hit]:
        with _explained(self._location):
            found = self._client.search(
                self.name, [query], anns_field=field, limit=limit, filter=where, output_fields=self._shown, **options
            )
        # Lite gives BM25's scores with a minus
        return [Hit(self._stored(hit["entity"] | {"id": hit["id"]}), abs(hit["distance"])) for hit in found[0]]

    @property
    def _shown(self) -> list[str]:
        return ["id", "text", "picture", "content", *self.fields]

    def _stored(self, row: Mapping[str, Any]) -> Stored:
        fields = {field: row.get(field) for field in self.fields}
        return Stored(row["id"], row["text"], row["picture"], fields, row["content"])


BUILD: dict[str, dict] = {
    "FLAT": {},
    "HNSW": {"M": 16, "efConstruction": 200},
    "IVF_FLAT": {"nlist": 4096},
}


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
        if name in OWN_FIELDS:
            raise ValueError(f"field {name!r} is the index' own: give it another name, as in --fields my_{name}={name}")
    if len(set(names)) < len(names):
        raise ValueError(f"fields {', '.join(names)}: name each once")


def _cut(text: str, size: int) -> str:
    """The beginning of `text` that has at most `size` bytes."""
    return text.encode()[:size].decode(errors="ignore")


@contextlib.contextmanager
def _explained(location: str) -> Iterator[None]:
    """Errors of Milvus as OSError, with the place."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("pymilvus", "milvus_lite", "grpc"):
            raise
        text = str(getattr(error, "message", error))
        if "Open local milvus failed" in text:
            text = "it cannot be opened; if another process has it open, end that, or put the index on a Milvus server"
        raise OSError(f"the index at {location}: {text}") from error
