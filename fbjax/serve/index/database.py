"""The indexes of a Milvus: an alias names the collection that searches read.

A database is a folder with a file of Milvus Lite, or a database of a Milvus server. Another model or other fields make
another collection, which takes over the alias when it is whole.
"""

import hashlib
import json
import logging
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any, Self

from fbjax.core.paths import is_remote
from fbjax.serve.index.collection import Collection, explained, index_kind

ALIAS = "fbjax_products"
NAME = re.compile(rf"{ALIAS}_[0-9a-f]{{12}}")
FORMAT = 1  # of the rows
FILE = "milvus.db"  # in the folder of an index
MANIFEST = "fbjax"  # property of a collection
IDENTITY = ("format", "model_sha256", "what", "embedding_dim", "fields")  # of a manifest: what the rows depend on
SECONDS = 30.0  # for one answer of a server
DATA_CALLS = ("search", "hybrid_search", "query", "get", "upsert", "delete")


class Database:
    """The collections of one alias. A context: it closes the connection."""

    def __init__(self, client: Any, location: str):
        self._client, self.location = client, location

    @classmethod
    def open(cls, location: str | Path, token: str = "", create: bool = False) -> Self:
        """Connects to a server, or opens a folder, which has to be there unless `create`.

        Raises OSError where there is no such folder or server, or another process has the folder open, ValueError where
        the location is neither, ModuleNotFoundError without the extra `serve`.
        """
        check_location(location)
        try:
            from pymilvus import MilvusClient
        except ModuleNotFoundError:
            raise ModuleNotFoundError("an index needs pymilvus and milvus-lite: pip install 'fbjax[serve]'") from None
        for library in ("pymilvus", "milvus_lite", "grpc"):  # they log what they raise
            logging.getLogger(library).setLevel(logging.CRITICAL)
        file = Path(location) / FILE
        if not is_remote(location):
            if not (create or file.exists()):
                raise FileNotFoundError(f"no index at {location}: make one with fbjax index")
            file.parent.mkdir(parents=True, exist_ok=True)
        with explained(str(location)):
            if is_remote(location):
                return cls(_Patient(MilvusClient(str(location), token=token, timeout=SECONDS)), str(location))
            return cls(MilvusClient(str(file)), str(location))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets other processes open the folder. Of several databases of one folder in a process, this closes all."""
        self._client.close()
        if not is_remote(self.location):
            from milvus_lite.server_manager import server_manager_instance

            server_manager_instance.release_server(str(Path(self.location) / FILE))

    def published(self) -> Collection | None:
        """The collection that searches read; None before the first is whole."""
        with explained(self.location):
            if not self._client.has_collection(ALIAS):
                return None
            name = self._client.describe_collection(ALIAS)["collection_name"]
            self._client.load_collection(name)
            return self._opened(name)

    def begin(self, manifest: dict, num_products: int) -> Collection:
        """The collection of this manifest: published, unfinished or new, to hold about so many products."""
        manifest = {"format": FORMAT} | manifest
        identity = json.dumps([manifest[part] for part in IDENTITY], sort_keys=True)
        name = f"{ALIAS}_{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
        with explained(self.location):
            if not self._client.has_collection(name):
                self._remove_remains(name)
                self._create(name, manifest, {MANIFEST: json.dumps(manifest)})
            collection = self._opened(name)
            collection.build(index_kind(num_products))
            return collection

    def publish(self, collection: Collection, manifest: dict, num_products: int) -> None:
        """Makes searches read `collection`, with the kind of index for so many products, and drops our others."""
        with explained(self.location):
            collection.build(index_kind(num_products))
            said = {MANIFEST: json.dumps({"format": FORMAT} | manifest)}
            self._client.alter_collection_properties(collection.name, said)  # workdir, pictures, re-ranker may be new
            there = self._client.has_collection(ALIAS)
            (self._client.alter_alias if there else self._client.create_alias)(collection.name, ALIAS)
            for name in self._client.list_collections():
                if name != collection.name and NAME.fullmatch(name):
                    self._client.drop_collection(name)

    def _opened(self, name: str) -> Collection:
        manifest = json.loads(self._client.describe_collection(name).get("properties", {}).get(MANIFEST, "{}"))
        if manifest.get("format") != FORMAT:
            raise ValueError(f"the index at {self.location} is not of this version of fbjax: run fbjax index anew")
        return Collection(self._client, self.location, name, manifest)

    def _remove_remains(self, name: str) -> None:
        """Removes what a kill has left of a collection: Milvus Lite neither knows nor replaces it."""
        folder = Path(self.location) / FILE / "collections" / name
        if not is_remote(self.location) and folder.is_dir():
            shutil.rmtree(folder)

    def _create(self, name: str, manifest: dict, properties: dict) -> None:
        options = {"properties": properties, "consistency_level": "Strong"}
        self._client.create_collection(name, schema=Collection.schema(self._client, manifest), **options)


class _Patient:
    """A client of a server whose calls for data end after some seconds; its own limit is that of connecting alone."""

    def __init__(self, client: Any):
        self._client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return partial(method, timeout=SECONDS) if name in DATA_CALLS else method


def check_location(location: str | Path) -> None:
    """Raises ValueError where `location` is neither a folder nor the address of a server."""
    text = str(location)
    if is_remote(location) and not re.match("https?://", text):
        raise ValueError(f"--index {text}: give a folder of this machine, or http://HOST:PORT of a Milvus server")
    if re.fullmatch(r"[\w.-]+:\d+", text):
        raise ValueError(f"--index {text}: write a server's address as http://{text}")
