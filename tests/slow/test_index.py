"""Indexing that is killed at any moment: no product is lost, none is there twice, and searches work in between."""

import random
import subprocess
import sys
import time

import pytest

from fbjax.serve.index.indexing import index
from fbjax.serve.search.query import Query
from fbjax.serve.search.searching import Searcher
from fbjax.training.loop import train
from tests.support.runs import tiny_config
from tests.support.tables import make_products, write_csv

NUM, KILLS = 1500, 20
TOWERS = ("train.num_steps=4", "train.save_every=4", "model.num_layers=1", "tasks=itc", "tasks.itc.embedding_dim=16")


def text_of(product):
    return f"{product['title']} {product['caption']}"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    train(tiny_config(folder, *TOWERS), folder / "run")
    return folder / "run"


@pytest.mark.parametrize("begin", ["nothing", "another table", "other fields"])
def test_twenty_kills_lose_no_product_and_double_none(run, tmp_path, begin):
    before = make_products(NUM, seed=3)
    after = [p | {"title": f"new {p['title']}"} if i % 2 else p for i, p in enumerate(before[100:])]
    place, rng = tmp_path / "index", random.Random(0)
    old, new = (write_csv(tmp_path / name, products) for name, products in (("old.csv", before), ("new.csv", after)))
    if begin != "nothing":  # other fields make another collection, which takes over at the end
        index(run, place, data=str(old), fields={"kind": "category"} if begin == "other fields" else {})
    texts = {p["id"]: {text_of(p)} for p in before}
    for product in after:
        texts[product["id"]].add(text_of(product))

    command = [sys.executable, "-m", "fbjax", "index", "--workdir", run, "--index", place, "--data", new]
    command += ["--fields", "none"]
    start = time.monotonic()
    index(run, tmp_path / "timed", data=str(new))  # prepares the records as well
    whole = 8 + time.monotonic() - start
    for _ in range(KILLS):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0, whole))
        process.kill()
        process.wait()
        try:
            with Searcher(place) as searcher:
                contents = searcher.collection.contents()
                found = searcher.search(Query(text="red dress", mode="words", top=1000)).hits
        except FileNotFoundError:
            assert begin == "nothing"
            continue
        ids = [hit.product.id for hit in found]
        assert len(set(ids)) == len(ids) and found
        assert all(hit.product.text in texts[hit.product.id] for hit in found)
        assert contents.keys() >= {p["id"] for p in after}
    subprocess.run(command, check=True)
    with Searcher(place) as searcher:
        assert searcher.collection.contents().keys() == {p["id"] for p in after}
        assert searcher.collection.count() == len(after)
        for product in after[::100]:
            assert searcher.collection.get(product["id"])[0].text == text_of(product)
