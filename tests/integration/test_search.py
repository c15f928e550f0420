"""An index of a tiny run and what it answers, beside brute force; in a folder, and on a server over the network."""

import concurrent.futures
import itertools
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import fbjax
from fbjax.cli.main import main
from fbjax.core.checksums import SUMS
from fbjax.evaluation.galleries.system import evaluate_index
from fbjax.inference.catalogue.embed_catalogue import model_sha256
from fbjax.inference.query_scorer import match_triples
from fbjax.runs.loaded import LoadedRun
from fbjax.serve.index import pictures as stored_pictures
from fbjax.serve.index.collection import Hit, Stored
from fbjax.serve.index.database import Database
from fbjax.serve.index.indexing import index, measured_recall
from fbjax.serve.search import reranking, searching
from fbjax.serve.search.query import Query
from fbjax.serve.search.searching import Searcher, joined_in_parts
from fbjax.training.loop import train
from tests.support.runs import tiny_config
from tests.support.tables import encode, make_products, write_csv

ODD_IDS = ("a'b", 'z"q', "back\\nslash", "nobody'] or id in ['a'b", "号 7")  # of the first products
PRODUCTS = make_products(40, seed=7)
for product, odd in zip(PRODUCTS, ODD_IDS, strict=False):
    product["id"] = odd
FIELDS = {"colour": "colour", "price": "price"}
TOWERS = ("train.num_steps=4", "train.save_every=4", "model.num_layers=1", "tasks=itc", "tasks.itc.embedding_dim=16")


def with_fields(products):
    """Products with a colour and a price; every seventh has none of either."""
    number = {p["id"]: i for i, p in enumerate(PRODUCTS)}
    each = [(p, number[p["id"]]) for p in products]
    return [p | ({} if i % 7 == 6 else {"colour": p["title"].split()[0], "price": 10 + i / 2}) for p, i in each]


def write(path: Path, products) -> str:
    return str(write_csv(path, with_fields(products), more=tuple(FIELDS)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    train(tiny_config(folder, *TOWERS), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write(tmp_path_factory.mktemp("table") / "products.csv", PRODUCTS)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of Milvus Lite as a server of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    command = [shutil.which("milvus-lite", path=Path(sys.executable).parent), "server", "--data-dir", folder / "data"]
    process = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stderr=subprocess.DEVNULL)
    for _ in range(200):
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


@pytest.fixture(scope="module", params=["folder", "server"])
def location(request, tmp_path_factory, run, table):
    on_server = request.param == "server"
    place = request.getfixturevalue("server") if on_server else tmp_path_factory.mktemp("place") / "index"
    done = index(run, place, data=table, fields=FIELDS)
    assert (done.products, done.added, done.changed, done.deleted, done.recall) == (40, 40, 0, 0, 1.0)
    return place


def vectors_of(run):
    model = fbjax.load(run)
    texts = [f"{p['title']} {p['caption']}" for p in PRODUCTS]
    return model, model.embed_product(texts, [encode(p["image"], p["format"]) for p in PRODUCTS])


def ids_of(results):
    return [hit.product.id for hit in results.hits]


def test_vectors_find_what_brute_force_finds(run, location):
    model, vectors = vectors_of(run)
    ids = np.array([p["id"] for p in PRODUCTS])
    photo = encode(PRODUCTS[3]["image"])
    together = model.embed_image([photo]) + model.embed_text(["but in blue"])
    with Searcher(location) as searcher:
        for query, vector in (
            (Query(text="red cotton dress", mode="dense", top=40), model.embed_query(["red cotton dress"])),
            (Query(image=photo, top=40), model.embed_image([photo])),
            (Query(image=photo, text="but in blue", top=40), together / np.linalg.norm(together)),
        ):
            cosines = (vectors @ vector[0]).astype(float)
            hits = searcher.search(query).hits
            np.testing.assert_allclose([hit.score for hit in hits], np.sort(cosines)[::-1], atol=1e-5)
            by_id = dict(zip(ids, cosines, strict=True))
            np.testing.assert_allclose([by_id[hit.product.id] for hit in hits], [hit.score for hit in hits], atol=1e-5)
            assert len({hit.product.id for hit in hits}) == 40


def test_words_find_texts_by_bm25_and_both_are_joined_by_their_ranks(run, location):
    model, vectors = vectors_of(run)
    ids, text = [p["id"] for p in PRODUCTS], "denim bag with a zip"
    near = [ids[i] for i in np.argsort(-(vectors @ model.embed_query([text])[0]), kind="stable")]
    with Searcher(location) as searcher:
        found = searcher.search(Query(text="Denim", mode="words", top=40)).hits
        assert {hit.product.id for hit in found} == {p["id"] for p in PRODUCTS if "denim" in p["title"]}
        assert searcher.search(Query(text="zzz", mode="words")).hits == []
        words = searcher.search(Query(text=text, mode="words", top=40)).hits
        weights = [hit.score for hit in words]
        assert weights == sorted(weights, reverse=True) and weights[-1] > 0
        scores = dict.fromkeys(ids, 0.0)
        for ranking in (near, [hit.product.id for hit in words]):
            for rank, identity in enumerate(ranking, start=1):
                scores[identity] += 1 / (60 + rank)
        both = searcher.search(Query(text=text, top=12))
        np.testing.assert_allclose([hit.score for hit in both.hits], sorted(scores.values())[::-1][:12], atol=3e-4)
        assert ids_of(both) != near[:12] and both.mode == "hybrid" and {*both.seconds} == {"embed", "vectors", "words"}


def test_filters_and_fields(location):
    expected = {p["id"] for p in with_fields(PRODUCTS) if p.get("colour") == "red" and p["price"] < 25}
    without = {p["id"] for i, p in enumerate(PRODUCTS) if i % 7 == 6}
    with Searcher(location) as searcher:
        for mode in ("dense", "hybrid"):
            found = searcher.search(Query(text="a", where='colour == "red" and price < 25', top=40, mode=mode)).hits
            assert {hit.product.id for hit in found} == expected
            assert all(hit.product.fields["colour"] == "red" for hit in found)
        all_of_them = searcher.search(Query(text="dress", mode="dense", top=40)).hits
        assert {hit.product.id for hit in all_of_them if hit.product.fields["price"] is None} == without
        with pytest.raises(ValueError, match="no field 'size' among category, group, colour, price"):
            searcher.search(Query(text="dress", where="size == 3"))


def test_more_like_a_product_leaves_its_group_out(run, location):
    _, vectors = vectors_of(run)
    groups, ids = np.array([p["group"] for p in PRODUCTS]), np.array([p["id"] for p in PRODUCTS])
    own = next(i for i in range(40) if (groups == groups[i]).sum() > 1)
    cosines = np.where(groups == groups[own], -np.inf, vectors @ vectors[own])
    with Searcher(location) as searcher:
        found = searcher.search(Query(like=ids[own], top=10)).hits
        assert found[0].product.id == ids[cosines.argmax()]
        assert not {hit.product.id for hit in found} & set(ids[groups == groups[own]])
        for odd in ODD_IDS:
            assert searcher.collection.get(odd)[0].id == odd
        with pytest.raises(ValueError, match="no product 'nobody' in the index"):
            searcher.search(Query(like="nobody"))
        with pytest.raises(ValueError, match="no product"):
            searcher.search(Query(like=f"nobody'] or id in ['{ids[9]}"))


def test_pictures_are_those_of_the_catalogue_and_no_other_file(location):
    with Searcher(location) as searcher:
        hit = searcher.search(Query(text="red", top=1)).hits[0]
        assert searcher.pictures.read(hit.product.picture)[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0")
        for name in ("", "../../../etc/passwd", "..", "a" * 32, hit.product.picture + "/..", "/etc/passwd"):
            assert searcher.pictures.read(name) == b""


def test_a_second_command_writes_what_changed_alone(run, tmp_path, monkeypatch):
    monkeypatch.setattr(stored_pictures, "RECENT", 0)
    path, place = tmp_path / "products.csv", tmp_path / "index"
    index(run, place, data=write(path, PRODUCTS[:20]), fields=FIELDS)
    with Database.open(place) as database:
        before = database.published().contents()
    again = index(run, place, data=str(path), fields=FIELDS)
    assert (again.products, again.added, again.changed, again.deleted) == (20, 0, 0, 0)

    other = PRODUCTS[1:20] + PRODUCTS[20:25]  # the first is gone, five are new
    other[0] = other[0] | {"title": "turquoise velvet cape"}
    done = index(run, place, data=write(path, other), fields=FIELDS)
    of_its_group = sum(p["group"] == PRODUCTS[0]["group"] for p in other[1:19])  # a group has the name of its first
    assert (done.products, done.added, done.changed, done.deleted) == (24, 5, 1 + of_its_group, 1)
    with Searcher(place) as searcher:
        assert ids_of(searcher.search(Query(text="turquoise", mode="words"))) == [other[0]["id"]]
        everything = set(ids_of(searcher.search(Query(text="a", mode="dense", top=100))))
        assert everything == {p["id"] for p in other}
        contents = searcher.collection.contents()
        pictures = {path.name for path in (place / "pictures").glob("*/*")}
        assert pictures == searcher.collection.picture_names()
    assert contents[PRODUCTS[10]["id"]] == before[PRODUCTS[10]["id"]]

    for fields in (FIELDS, {}):  # in place, or with another collection
        with pytest.raises(ValueError, match="23 of the 24 products of the index are not in the table: .* --shrink"):
            index(run, place, data=write(path, other[:1]), fields=fields)
    assert index(run, place, data=str(path), fields=FIELDS, shrink=True).products == 1


def test_files_and_collections_of_others_stay(run, table, tmp_path):
    place, photos = tmp_path / "index", tmp_path / "photos"
    (photos / "ab").mkdir(parents=True)
    (photos / "ab" / "1.jpg").write_bytes(b"mine")
    with Database.open(place, create=True) as database:
        for name in ("fbjax_products_2024", "products"):
            database._client.create_collection(name, dimension=4)
    index(run, place, data=table, pictures=photos)
    index(run, place, data=table, pictures=photos, fields=FIELDS)  # drops the first collection, not the others
    with Database.open(place) as database:
        names = database._client.list_collections()
    assert len(names) == 3 and {"fbjax_products_2024", "products"} < set(names)
    assert (photos / "ab" / "1.jpg").read_bytes() == b"mine" and len(list(photos.glob("*/*"))) > 30


def test_a_moved_index_answers_with_its_pictures_and_a_moved_run_is_named(run, table, tmp_path):
    index(run, tmp_path / "index", data=table)
    (tmp_path / "index").rename(tmp_path / "moved")
    shutil.copytree(run, tmp_path / "run")
    with Searcher(tmp_path / "moved", workdir=tmp_path / "run") as searcher:
        found = searcher.search(Query(text="red dress", mode="dense", top=1)).hits[0]
        assert searcher.pictures.read(found.product.picture)
    again = index(tmp_path / "run", tmp_path / "moved", data=table)
    assert (again.added, again.changed, again.recall) == (0, 0, None)
    with Searcher(tmp_path / "moved") as searcher:
        assert searcher.collection.manifest["workdir"] == str(tmp_path / "run")


def test_another_checkpoint_makes_another_index_and_no_other_model_is_taken(run, table, tmp_path):
    place, other = tmp_path / "index", tmp_path / "other"
    index(run, place, data=table)
    train(tiny_config(run.parent, *TOWERS, "train.seed=5"), other)
    with (
        Searcher(place, workdir=other) as searcher,
        pytest.raises(ValueError, match="the index is of another model"),
    ):
        searcher.search(Query(text="red dress"))
    done = index(other, place, data=table)
    assert (done.products, done.added) == (40, 40)
    with Searcher(place) as searcher:
        assert searcher.collection.manifest["workdir"] == str(other)
        assert len(searcher.search(Query(text="red dress", mode="dense", top=100)).hits) == 40


def test_the_recall_of_an_index_is_measured_against_exact_search(run, table, tmp_path, monkeypatch):
    index(run, tmp_path / "index", data=table)
    with Database.open(tmp_path / "index") as database:
        collection = database.published()
        assert measured_recall(collection, 40) == 1.0
        nearest = collection.nearest
        monkeypatch.setattr(collection, "nearest", lambda vectors, limit: nearest(-vectors, limit))
        assert measured_recall(collection, 40) < 0.5


def test_figures_of_the_system_are_those_of_its_answers(run, location, tmp_path, capsys):
    relevant = tmp_path / "relevant.jsonl"
    wanted = {"denim": PRODUCTS[5]["id"], "red cotton dress": PRODUCTS[8]["id"], "long strap": PRODUCTS[11]["id"]}
    relevant.write_text("".join(f'{{"query": "{q}", "relevant": ["{i}", "gone"]}}\n' for q, i in wanted.items()))
    figures = evaluate_index(location, relevant=relevant)["system"]
    with Searcher(location) as searcher:
        for mode, found in figures["modes"].items():
            ranks = []
            for text, identity in wanted.items():
                ids = ids_of(searcher.search(Query(text=text, mode=mode, top=100)))
                ranks.append(1 + ids.index(identity) if identity in ids else np.inf)
            ranks = np.array(ranks)
            assert found["rank@5"] == np.mean(ranks <= 5)
            assert found["mrr@10"] == pytest.approx(np.mean(np.where(ranks <= 10, 1 / ranks, 0)))
            ideal = 1 + 1 / np.log2(3)  # of two relevant products, one of which the index lacks
            assert found["ndcg@10"] == pytest.approx(np.mean(np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0)) / ideal)
            assert found["recall@100"] == np.mean(ranks <= 100) / 2
            assert found["seconds"]["vectors" if mode == "dense" else "words"]["p50"] > 0
    command = ["evaluate", "--workdir", str(run), "--protocol", "system", "--relevant", str(relevant)]
    assert main([*command, "--index", str(location)]) == 0
    assert "over dense     hybrid: Rank@10" in capsys.readouterr().out


@pytest.mark.parametrize(
    "asked, said",
    [
        ({}, "give a text, an image, both, or a product"),
        ({"text": "red", "like": "p"}, "give a text, an image, both, or a product"),
        ({"text": " \t"}, "has no words"),
        ({"text": "x" * 3000}, "has 3,000 characters: use at most 2,000"),
        ({"text": "red", "top": 0}, "ask for 1 to 1,000 products"),
        ({"like": "p7-0001", "mode": "words"}, "mode words needs a text alone"),
        ({"text": "red", "mode": "magic"}, "mode 'magic' is unknown: use hybrid, dense, words"),
    ],
)
def test_what_cannot_be_answered_is_refused(location, asked, said):
    with Searcher(location) as searcher, pytest.raises(ValueError, match=said):
        searcher.search(Query(**asked))


@pytest.mark.parametrize(
    "fields, said",
    [
        ("Größe", "field 'Größe': use letters"),
        ("vector=colour", "field 'vector' cannot be used"),
        ("group=colour", "field 'group' cannot be used"),
        ("class=colour", "field 'class' cannot be used"),
        ("colour,colour=price", "name each field once"),
        ("color", "has no column 'color' .*colour"),
    ],
)
def test_wrong_fields_are_said_before_work(run, table, tmp_path, capsys, fields, said):
    command = ["index", "--workdir", str(run), "--data", table, "--index", str(tmp_path / "index"), "--fields", fields]
    assert main(command) == 1
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "index").exists()


def test_places_without_an_index_are_named(tmp_path, capsys):
    assert main(["search", "--index", str(tmp_path / "none"), "--text", "red"]) == 1
    assert f"no index at {tmp_path / 'none'}: make one with fbjax index" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    for place, said in (
        ("http://127.0.0.1:1", "the index at http://127.0.0.1:1:"),
        ("localhost:19530", "write a server's address as http://localhost:19530"),
        ("gs://bucket/index", "give a folder of this machine, or http://HOST:PORT"),
    ):
        assert main(["search", "--index", place, "--text", "red"]) == 1
        assert said in capsys.readouterr().err


def test_the_command_prints_a_table_json_and_a_page(location, tmp_path, capsys):
    assert main(["search", "--index", str(location), "--text", "red dress", "--html", str(tmp_path / "f.html")]) == 0
    out = capsys.readouterr().out
    assert "scores: sums of 1 / (60 + rank)" in out and "embed" in out
    assert (tmp_path / "f.html").read_text().count("data:image/jpeg") == 10
    capsys.readouterr()
    command = ["search", "--index", str(location), "--text", "red dress", "--json", "--html", str(tmp_path / "g.html")]
    assert main(command) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["mode"] == "hybrid" and len(answer["products"]) == 10 and answer["query"] == {"text": "red dress"}


@pytest.fixture(scope="module", params=["tia", "qta"])
def reader(request, run):
    """A run that reads a query with a picture (tia), or with text and picture (qta)."""
    folder = run.parent
    few = ("train.num_steps=4", "train.save_every=4", "model.num_layers=1", f"tasks={request.param}")
    log = folder / "clicks.csv"
    if request.param == "qta":
        drawn = ["draw-log", "--config", str(folder / "tiny.py"), "--attributes", "category", "--out", str(log)]
        assert main(drawn) == 0
        few += (f"log.table={log}", "log.query_tokens=16")
    train(tiny_config(folder, *few), folder / request.param)
    return folder / request.param


def test_a_reranker_orders_the_first_products_anew(run, reader, table, tmp_path, monkeypatch):
    monkeypatch.setattr(reranking, "RERANKED", 12)
    monkeypatch.setattr(searching, "RERANKED", 12)
    place, query = tmp_path / "index", Query(text="red cotton dress", top=40)
    index(run, place, data=table, reranker=reader)
    model = fbjax.load(reader)
    features = {path.stem for path in place.glob("pictures-*/??/*.npy")}
    assert features == {path.name for path in (place / "pictures").glob("??/*")}  # computed when it was indexed
    with Searcher(place) as searcher:
        before, after = searcher.search(replace(query, rerank=False)), searcher.search(query)
        first = {hit.product.id: hit.product for hit in before.hits[:12]}
        pictures = {i: searcher.pictures.read(product.picture) for i, product in first.items()}
        scores = {i: score_alone(model, query.text, first[i].text, pictures[i]) for i in first}
        assert ids_of(after) == [*sorted(first, key=scores.get, reverse=True), *ids_of(before)[12:]]
        expected = [scores[hit.product.id] for hit in after.hits[:12]]
        np.testing.assert_allclose([hit.score for hit in after.hits[:12]], expected, atol=1e-2)  # features are float16
        assert after.reranked == 12 and "rerank" in after.seconds and not before.reranked
        assert searcher.search(Query(like=PRODUCTS[9]["id"])).reranked == 0
        gone = after.hits[0].product
        for path in (searcher.pictures._path(gone.picture), *place.glob(f"pictures-*/??/{gone.picture}.npy")):
            path.unlink()
        searcher.forget_answers()
        again = searcher.search(query)
        without = [hit.product.id for hit in before.hits[:12] if hit.product.picture == gone.picture]
        assert ids_of(again)[12 - len(without) : 12] == without  # a product without a picture comes after the others


def score_alone(model, query, text, picture):
    """The score of one query with one product, by the model's own functions."""
    if not model.run.objective.aligns_queries:
        return float(model.score([query], [picture])[0])
    run, variables = model.run, model.variables
    features = run.patches.apply(variables["patches"], model.read_image(picture)[None])
    image = run.model.apply({"params": variables["fashionbert"]}, features, method="embed_image")
    ids = run.vocabulary.encode([text], run.config.model.text_tokens)
    asked = run.vocabulary.encode([query], run.config.log.query_tokens)
    logits = match_triples(run.model, variables["fashionbert"], asked, ids, image)
    return float(logits[0, 1] - logits[0, 0])


def test_a_run_that_scores_no_pairs_cannot_rerank(run, table, tmp_path):
    with pytest.raises(ValueError, match="scores no pairs: name a run with the task tia or qta"):
        index(run, tmp_path / "index", data=table, reranker=run)
    assert not (tmp_path / "index").exists()


def test_a_longer_answer_begins_as_a_shorter_one():
    rng = np.random.default_rng(0)
    stored = [Stored(str(i), "", "", {}, "") for i in range(400)]
    near, words = ([Hit(stored[i], 0.0) for i in rng.permutation(400)] for _ in range(2))
    answers = [[hit.product.id for hit in joined_in_parts([near[:n], words[:n]])] for n in (100, 200, 300, 400)]
    for shorter, longer in itertools.pairwise(answers):
        assert longer[: len(shorter)] == shorter
    assert len(set(answers[-1])) == len(answers[-1]) == 400


def test_a_filter_that_the_database_refuses_fails_alone(run, table, tmp_path, monkeypatch):
    index(run, tmp_path / "index", data=table, fields=FIELDS)
    with Searcher(tmp_path / "index") as searcher:
        good = Query(text="red dress")
        deep = "not " * 25 + 'colour == "red"'
        for wrong in (Query(text="red", where='colour == "\\ud800"'), Query(text="red", where=deep)):
            found, problem = searcher.search_all([good, wrong])
            assert ids_of(found) and isinstance(problem, ValueError)
        nearest = searcher.collection.nearest

        def refuses(vectors, limit, where=""):
            if where:
                raise OSError("the database refuses this")
            return nearest(vectors, limit, where)

        monkeypatch.setattr(searcher.collection, "nearest", refuses)
        searcher.forget_answers()
        found, problem = searcher.search_all([good, Query(text="red", where='colour == "red"')])
        assert ids_of(found) and "the database refuses this" in str(problem)


def test_pictures_that_are_gone_or_elsewhere_are_written_again(run, table, tmp_path):
    place = tmp_path / "index"
    index(run, place, data=table)
    some = sorted((place / "pictures").glob("??/*"))[:5]
    for path in some:
        path.unlink()
    again = index(run, place, data=table)
    assert again.changed >= 5 and all(path.is_file() for path in some)
    assert index(run, place, data=table).changed == 0
    assert index(run, place, data=table, pictures=tmp_path / "elsewhere").changed == 40
    with Searcher(place) as searcher:
        assert searcher.pictures.read(searcher.search(Query(text="red", top=1)).hits[0].product.picture)


def test_threads_may_write_one_picture_at_once(tmp_path):
    store = stored_pictures.Pictures.open("", tmp_path)
    for number in range(20):
        photo = bytes([number]) * 100_000
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            names = set(pool.map(store.add, [photo] * 8))
        assert len(names) == 1 and store.read(names.pop()) == photo
    assert not list(tmp_path.rglob("*.partial*"))


def test_a_search_goes_on_when_another_index_takes_its_place(run, table, tmp_path):
    index(run, tmp_path / "index", data=table)
    with Searcher(tmp_path / "index") as searcher:
        before, old = ids_of(searcher.search(Query(text="red dress"))), searcher.collection
        rows = [old.get(product["id"]) for product in PRODUCTS]
        manifest = old.manifest | {"fields": old.manifest["fields"] | {"size": "text"}}
        new = searcher._database.begin(manifest, 40)
        new.upsert([stored for stored, _ in rows], np.stack([vector for _, vector in rows]))
        searcher._database.publish(new, manifest, 40)  # as another process does; the first is dropped
        searcher.forget_answers()
        assert ids_of(searcher.search(Query(text="red dress"))) == before
        assert searcher.count() == 40 and "size" in searcher.collection.fields


def test_fields_and_reranker_stay_until_they_are_taken_away(run, table, tmp_path):
    reader = run.parent / "tia"
    if not reader.exists():
        train(tiny_config(run.parent, "train.num_steps=4", "train.save_every=4", "tasks=tia"), reader)
    place = tmp_path / "index"
    index(run, place, data=table, fields=FIELDS, reranker=reader)
    assert index(run, place, data=table).changed == 0
    with Searcher(place) as searcher:
        assert searcher.collection.fields.keys() >= FIELDS.keys()
        assert searcher.search(Query(text="red")).reranked
    shutil.copytree(reader, tmp_path / "moved")
    with Database.open(place) as database:
        collection = database.published()
        manifest = collection.manifest | {"reranker": collection.manifest["reranker"] | {"workdir": "gone"}}
        database.publish(collection, manifest, 40)
    with (
        Searcher(place) as searcher,
        pytest.raises(FileNotFoundError, match="re-ranker.*by --reranker"),
    ):
        searcher.search(Query(text="red"))
    with Searcher(place, reranker=tmp_path / "moved") as searcher:
        assert searcher.search(Query(text="red")).reranked
    command = ["index", "--workdir", str(run), "--index", str(place), "--data", table]
    assert main([*command, "--fields", "none", "--reranker", "none"]) == 0
    with Searcher(place) as searcher:
        assert not searcher.collection.fields.keys() & FIELDS.keys()
        assert not searcher.search(Query(text="red")).reranked


def test_a_run_from_another_machine_is_indexed(run, table, tmp_path, capsys):
    moved, file = tmp_path / "run", tmp_path / "file"
    shutil.copytree(run, moved)
    file.write_text("no folder can be below this")
    config = json.loads((moved / "config.json").read_text())
    config["data"]["prepared"] = str(file / "prepared")
    (moved / "config.json").write_text(json.dumps(config))
    (moved / SUMS).unlink()  # of the file as it was
    assert index(moved, tmp_path / "index", data=table).products == 40
    assert f"config.data.prepared {file / 'prepared'} cannot be made here" in capsys.readouterr().err
    assert list((moved / "prepared").iterdir())


def test_the_name_of_a_model_depends_on_what_its_vectors_depend_on(run):
    loaded = LoadedRun.load(run)
    digest = model_sha256(loaded)

    def with_model(**changes):
        config = replace(loaded.run.config, model=replace(loaded.run.config.model, **changes))
        return model_sha256(replace(loaded, run=replace(loaded.run, config=config)))

    @dataclass(frozen=True)
    class Later(type(loaded.run.config.model)):
        """The settings of the encoder in a later version, which has one more."""

        another: int = 3

    Later.__name__ = Later.__bases__[0].__name__
    later = Later(**vars(loaded.run.config.model))
    newer = replace(loaded.run, config=replace(loaded.run.config, model=later))
    assert model_sha256(replace(loaded, run=newer)) == digest
    newer = replace(loaded.run, config=replace(loaded.run.config, model=replace(later, another=4)))
    assert model_sha256(replace(loaded, run=newer)) != digest
    assert with_model(num_heads=1) != digest and with_model() == digest
