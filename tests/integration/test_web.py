"""The search service over HTTP: its answers beside those of the index, and what it refuses."""

import concurrent.futures
import dataclasses
import io
import json
import shutil
import socket
import threading
import time
import zlib
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from fbjax.data.sources.images import normalise_image
from fbjax.inference.explain import explain
from fbjax.serve.index.indexing import index
from fbjax.serve.search.kept import KeptAnswers
from fbjax.serve.search.query import Query, Results
from fbjax.serve.search.searching import Searcher
from fbjax.serve.web.app import make_app
from fbjax.serve.web.limits import Limits
from fbjax.serve.web.server import run
from tests.support.service import KEY, PRODUCTS, make_index
from tests.support.tables import encode

PHOTO = encode(PRODUCTS[3]["image"], "JPEG")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a run, a table and an index of it."""
    folder = tmp_path_factory.mktemp("web")
    make_index(folder)
    return folder


@pytest.fixture(scope="module")
def searcher(folder):
    with Searcher(folder / "index") as found:
        found.warm_up()
        yield found


@pytest.fixture
def changed(folder, tmp_path):
    """An index that a test may change, a client of it, and the headers of who may."""
    shutil.copytree(folder / "index", tmp_path / "index")
    with (
        Searcher(tmp_path / "index") as searcher,
        TestClient(make_app(searcher, Limits(), KEY), raise_server_exceptions=False) as client,
    ):
        yield searcher, client, {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def client(searcher):
    with TestClient(make_app(searcher, Limits()), raise_server_exceptions=False) as found:
        yield found


def test_answers_are_those_of_the_index_page_by_page(client, searcher):
    expected = searcher.search(Query(text="red cotton dress", top=40)).hits
    pages = [
        client.get("/search", params={"text": "red cotton dress", "top": 15, "skip": n}).json() for n in (0, 15, 30)
    ]
    assert [p["id"] for page in pages for p in page["products"]] == [hit.product.id for hit in expected]
    assert [page["more"] for page in pages] == [True, True, False]
    assert sum(pages[0]["counts"]["category"].values()) == 40 and set(pages[0]["counts"]) == {"category", "colour"}
    picture = client.get(pages[0]["products"][0]["picture"])
    assert picture.content == searcher.pictures.read(expected[0].product.picture)
    assert picture.headers["content-type"] in ("image/png", "image/jpeg")


@pytest.mark.parametrize(
    "asked",
    [Query(image=PHOTO), Query(image=PHOTO, text="but in blue"), Query(image=PHOTO, where='category == "bag"')],
    ids=["alone", "with words", "filtered"],
)
def test_a_picture_is_searched_for(client, searcher, asked):
    form = {"text": asked.text, "where": asked.where, "top": 24}
    answer = client.post("/search", files={"image": ("photo.jpg", PHOTO)}, data=form).json()
    expected = searcher.search(dataclasses.replace(asked, top=24)).hits
    assert [p["id"] for p in answer["products"]] == [hit.product.id for hit in expected] and expected
    assert answer["mode"] == "dense"


def test_like_a_product(client, searcher):
    own = PRODUCTS[5]["id"]
    found = client.get("/search", params={"like": own, "top": 5}).json()["products"]
    assert [p["id"] for p in found] == [hit.product.id for hit in searcher.search(Query(like=own, top=5)).hits]
    assert own not in [p["id"] for p in found]


def png_of(width, height):
    """A PNG of a few bytes that declares this size."""
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + len(header).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4) + b"\0" * 12


def saved(mode="RGB", form="JPEG", **options):
    out = io.BytesIO()
    Image.new(mode, (40, 56)).save(out, form, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    "picture, status",
    [
        (PHOTO[: len(PHOTO) // 3], 400),
        (png_of(40_000, 40_000), 400),
        (png_of(10_000, 8_000), 400),
        (b"", 400),
        (b"%PDF-1.4 no picture", 400),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", 400),
        (saved("CMYK"), 200),
        (saved("P", "GIF", save_all=True, append_images=[Image.new("P", (40, 56), 7)]), 200),
        (saved(exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"), 200),
        (b"\0" * (11 * 2**20), 413),
    ],
    ids=["cut", "40,000 wide", "80 megapixels", "empty", "PDF", "SVG", "CMYK", "animated", "rotated", "11 MiB"],
)
def test_hostile_pictures_are_refused_or_read(client, picture, status):
    answer = client.post("/search", files={"image": ("x", picture)})
    assert answer.status_code == status, answer.text
    assert answer.json()["error" if status != 200 else "products"]


@pytest.mark.parametrize(
    "asked, status, said",
    [
        ({}, 400, "give a text, an image, both"),
        ({"text": "x" * 30_000}, 400, "text: String should have at most 2000 characters"),
        ({"text": "\0\x07"}, 400, "no words"),
        ({"text": "فستان أحمر 👗"}, 200, ""),
        ({"text": "red", "where": 'colour == "red" or id != ""'}, 400, "no field 'id' among"),
        ({"text": "red", "where": "id in ['x']"}, 400, "no field 'id'"),
        ({"text": "red", "top": 0}, 400, "top: Input should be greater than or equal to 1"),
        ({"text": "red", "skip": 10**9}, 400, "skip: "),
        ({"text": "red", "mode": "magic"}, 400, "mode: "),
        ({"like": "nobody'] or id in ['p7-0001"}, 400, "no product"),
    ],
)
def test_what_is_asked_wrongly_is_said(client, asked, status, said):
    answer = client.get("/search", params=asked)
    assert answer.status_code == status and said in answer.text


@pytest.mark.parametrize(
    "path", ["/pictures/..%2F..%2Fetc%2Fpasswd", "/pictures/" + "a" * 32, "/..%2f..%2fapp.py", "/app.py"]
)
def test_no_path_leads_out_of_the_catalogue_and_the_page(client, path):
    answer = client.get(path)
    assert answer.status_code == 404 and "root:" not in answer.text


def test_the_page_and_what_watches_the_service(client, searcher):
    page = client.get("/")
    assert "page.js" in page.text and "default-src 'self'" in page.headers["content-security-policy"]
    assert "http" not in client.get("/page.js").text.replace("http://www.w3.org", "")
    assert client.get("/healthz").json() == {"status": "ok"} and client.get("/readyz").json() == {"products": 40}
    client.get("/search", params={"text": "red"})
    metrics = client.get("/metrics").text
    assert "process_resident_memory_bytes" in metrics
    assert 'fbjax_requests_total{route="/search",status="200"}' in metrics
    assert 'fbjax_seconds_count{stage="vectors"}' in metrics and 'fbjax_cache{of="vectors",result="hits"}' in metrics
    assert client.get("/openapi.json").json()["paths"].keys() >= {"/search", "/pictures/{name}", "/readyz"}


class Slow:
    """A searcher whose answers wait until they are let go."""

    def __init__(self, searcher):
        self._searcher, self.go, self.sizes = searcher, threading.Event(), []

    def __getattr__(self, name):
        return getattr(self._searcher, name)

    def search_all(self, queries):
        self.sizes.append(len(queries))
        self.go.wait(20)
        return self._searcher.search_all(queries)


def test_beyond_the_bound_requests_are_refused_and_the_others_are_answered(searcher):
    slow = Slow(searcher)
    with TestClient(make_app(slow, Limits(workers=1, waiting=2))) as client:
        ask = lambda _: client.get("/search", params={"text": "red"})  # noqa: E731
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(ask, i) for i in range(8)]
            ended = concurrent.futures.as_completed(answers, timeout=20)
            refused = [next(ended).result() for _ in range(5)]  # while three wait
            slow.go.set()
            answered = [each.result() for each in ended]
    assert [each.status_code for each in refused] == [429] * 5 and refused[0].headers["retry-after"] == "1"
    assert [each.status_code for each in answered] == [200] * 3


def test_requests_that_wait_are_computed_together_and_each_has_its_own_answer(searcher):
    asked = [
        {"text": "red cotton dress"},
        {"text": "denim bag", "mode": "dense"},
        {"like": "nobody"},
        {"text": "denim", "mode": "words", "where": 'category == "bag"'},
        {"like": PRODUCTS[5]["id"]},
        {"text": "red", "where": "colour =="},
    ]
    with TestClient(make_app(searcher, Limits()), raise_server_exceptions=False) as client:
        searcher.forget_answers()
        alone = [client.get("/search", params=params).json() for params in asked]
    slow = Slow(searcher)
    searcher.forget_answers()
    with TestClient(make_app(slow, Limits(workers=1)), raise_server_exceptions=False) as client:
        ask = lambda params: client.get("/search", params=params)  # noqa: E731
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            first = pool.submit(ask, {"text": "zip"})
            while not slow.sizes:
                time.sleep(0.01)
            answers = [pool.submit(ask, params) for params in asked]
            while "fbjax_requests_inside 7.0" not in client.get("/metrics").text:
                time.sleep(0.01)
            slow.go.set()
            together = [each.result() for each in answers]
        assert first.result().status_code == 200 and slow.sizes == [1, 6]
        assert 'fbjax_batch_bucket{le="4.0"} 1.0' in client.get("/metrics").text
    assert [each.status_code for each in together] == [200, 200, 400, 200, 200, 400]
    for mine, own in zip(together, alone, strict=True):
        assert mine.json().get("error") == own.get("error")
        found, expected = (answer.get("products", []) for answer in (mine.json(), own))
        assert [product["id"] for product in found] == [product["id"] for product in expected]
        np.testing.assert_allclose([p["score"] for p in found], [p["score"] for p in expected], rtol=1e-5)


def test_an_answer_that_takes_too_long_is_given_up(searcher):
    slow = Slow(searcher)
    with TestClient(make_app(slow, Limits(seconds=0.2))) as client:
        answer = client.get("/search", params={"text": "red"})
        slow.go.set()
    assert answer.status_code == 503 and "no answer in time" in answer.json()["error"]


def test_a_port_that_is_taken_is_said(searcher, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        host, port = taken.getsockname()
        with pytest.raises(OSError, match=f"cannot listen at {host}:{port} .*: give another --host or --port"):
            run(searcher, host, port, Limits(), "", print)


def found_by(client, text, **more):
    answer = client.get("/search", params={"text": text, "mode": "words", "top": 100} | more)
    return {product["id"]: product for product in answer.json()["products"]}


def test_a_product_is_added_replaced_and_deleted_at_once(changed, folder):
    searcher, client, allowed = changed
    odd, photo = "new/1 'x\"", encode(PRODUCTS[4]["image"], "JPEG")
    kept = normalise_image(photo, searcher.model.run.config.patches.image_size)  # as in prepared records
    before = found_by(client, "turquoise velvet cape")
    form = {"text": "turquoise velvet cape", "category": "cape", "fields": json.dumps({"colour": "turquoise"})}
    for change in ("added", "replaced"):
        answer = client.put(f"/products/{quote(odd, safe='')}", data=form, files={"image": photo}, headers=allowed)
        assert answer.json() == {"id": odd, "change": change}
    found = found_by(client, "turquoise velvet cape")
    assert found.keys() - before.keys() == {odd} and found[odd]["fields"]["colour"] == "turquoise"
    assert client.get("/readyz").json() == {"products": 41} and client.get(found[odd]["picture"]).content == kept
    assert found[odd]["text"] == form["text"]
    vector = searcher.collection.get(odd)[1]
    np.testing.assert_allclose(vector, searcher.model.embed_product([form["text"]], [photo])[0], atol=1e-6)
    assert client.get(f"/products/{quote(odd, safe='')}").json()["text"] == form["text"]

    form |= {"text": "plain scarf"}
    client.put(f"/products/{quote(odd, safe='')}", data=form, files={"image": photo}, headers=allowed)
    assert odd not in found_by(client, "turquoise velvet cape") and odd in found_by(client, "scarf")
    assert client.delete(f"/products/{quote(odd, safe='')}", headers=allowed).json()["change"] == "deleted"
    assert odd not in found_by(client, "scarf") and client.get("/readyz").json() == {"products": 40}
    assert client.delete(f"/products/{quote(odd, safe='')}", headers=allowed).status_code == 404
    own = PRODUCTS[5]["id"]
    client.delete(f"/products/{own}", headers=allowed)
    assert all(own != p["id"] for p in client.get("/search", params={"text": "red", "top": 100}).json()["products"])
    searcher.close()
    again = index(folder / "run", searcher.location, data=str(folder / "products.csv"), fields={"colour": "colour"})
    assert (again.products, again.added, again.changed) == (40, 1, 0)  # the table is what counts


@pytest.mark.parametrize(
    "change, said",
    [
        ({"fields": '{"size": 3}'}, "the index has no field 'size', only colour"),
        ({"fields": '{"colour": 3}'}, "field colour holds texts, not 3"),
        ({"fields": "[1]"}, "fields '[1]': give JSON"),
        ({"fields": '{"colour": true}'}, "give JSON"),
        ({"fields": '{"category": "x"}'}, "no field 'category'"),
        ({"text": " \t "}, "product 'new' has no text"),
        ({"text": "\x07"}, "has no words"),
        ({"image": b"no picture"}, "undecodable image"),
        ({"image": b""}, "undecodable image"),
    ],
)
def test_a_wrong_change_changes_nothing(changed, change, said):
    _, client, allowed = changed
    form = {"text": "turquoise cape"} | {name: value for name, value in change.items() if name != "image"}
    answer = client.put("/products/new", data=form, files={"image": change.get("image", PHOTO)}, headers=allowed)
    assert answer.status_code == 400 and said in answer.json()["error"]
    assert client.get("/products/new").status_code == 404 and client.get("/readyz").json() == {"products": 40}


def test_changes_need_the_key(client, changed, searcher):
    _, with_key, _ = changed
    for wrong in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {KEY}"}, {"Authorization": "Bearer é"}):
        headers = {name: value.encode() for name, value in wrong.items()}
        answer = with_key.delete(f"/products/{PRODUCTS[0]['id']}", headers=headers)
        assert answer.status_code == 401 and "Authorization: Bearer KEY" in answer.json()["error"]
    assert client.delete(f"/products/{PRODUCTS[0]['id']}").status_code == 405  # a service without a key changes nothing
    assert client.get("/readyz").json() == with_key.get("/readyz").json() == {"products": 40}
    with pytest.raises(ValueError, match="the key of the service has 5 characters: use 16 or more"):
        run(searcher, "127.0.0.1", 0, Limits(), "short", print)


def test_a_text_and_a_picture_are_matched(client, searcher):
    answer = client.post("/match", data={"text": "red cotton dress"}, files={"image": PHOTO}).json()
    assert answer["score"] == pytest.approx(searcher.model.score(["red cotton dress"], [PHOTO])[0], abs=1e-6)
    assert answer["probability"] is None
    assert client.post("/match", data={"text": "red"}, files={"image": b"%PDF"}).status_code == 400
    assert "no words" in client.post("/match", data={"text": "\0"}, files={"image": PHOTO}).json()["error"]


def test_the_reason_is_that_of_the_model(client, searcher):
    model, identity = searcher.model, PRODUCTS[5]["id"]
    own, other = (client.get(f"/products/{p['id']}").json() for p in (PRODUCTS[5], PRODUCTS[6]))
    picture = client.get(own["picture"]).content
    word = own["text"].split()[0]
    for asked, text in (
        ({"text": f"{word} zeppelin"}, f"{word} zeppelin"),
        ({"like": other["id"]}, other["text"]),
        ({"text": word, "method": "occlusion"}, word),
    ):
        reason = client.get("/explain", params={"id": identity} | asked).json()
        expected = explain(model, text, picture, asked.get("method", "gradient"))
        assert [w["word"] for w in reason["words"]] == [word for word, _ in expected.words]
        values = [value for _, value in expected.words]
        np.testing.assert_allclose([w["value"] for w in reason["words"]], values, atol=1e-6)
        np.testing.assert_allclose(reason["patches"], expected.patches, atol=1e-6)
        assert reason["picture"] == own["picture"] and reason["text"] == text
        assert "like" in asked or reason["in_text"] == [word]
    reason = client.post("/explain", data={"id": identity}, files={"image": PHOTO}).json()
    assert reason["score"] == pytest.approx(explain(model, own["text"], PHOTO).score, abs=1e-6)
    assert reason["picture"] == "" and reason["text"] == own["text"]


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"text": "red"}, "id: Field required"),
        ({"id": "nobody", "text": "red"}, "no product 'nobody'"),
        ({"id": PRODUCTS[5]["id"]}, "give the text, the image or the product"),
        ({"id": PRODUCTS[5]["id"], "text": "red", "like": "p7-0001"}, "give the text, the image or the product"),
        ({"id": PRODUCTS[5]["id"], "text": "\t"}, "has no words"),
        ({"id": PRODUCTS[5]["id"], "text": "red", "method": "magic"}, "method: Input should be 'gradient'"),
        (
            {"id": PRODUCTS[5]["id"], "text": "red", "method": "attention"},
            "use 'gradient' or 'occlusion'",
        ),  # towers read no pairs
    ],
)
def test_what_has_no_reason_is_said(client, asked, said):
    answer = client.get("/explain", params=asked)
    assert answer.status_code == 400 and said in answer.json()["error"]


def test_an_answer_is_kept_until_products_change(changed):
    searcher, client, allowed = changed
    asked = {"text": "red cotton dress", "top": 5}
    first, again = (client.get("/search", params=asked).json() for _ in range(2))
    assert again["products"] == first["products"] and first["seconds"] and not again["seconds"]
    assert (searcher.kept.hits, searcher.kept.misses) == (1, 1)
    gone = first["products"][0]["id"]
    client.delete(f"/products/{gone}", headers=allowed)
    assert gone not in [product["id"] for product in client.get("/search", params=asked).json()["products"]]


def test_kept_answers_are_bounded_and_never_older_than_the_last_change():
    kept, computed = KeptAnswers(most_bytes=50_000), []  # two answers

    def compute(queries):
        computed.extend(query.text for query in queries)
        if "late" in computed[-1]:
            kept.clear()  # products change while it is computed
        return [Results([], "words", {"words": 1.0}, []) for _ in queries]

    for text in ("a", "b", "a", "c", "a", "b", "late", "late"):
        kept.look_up([Query(text=text)], compute)
    assert computed == ["a", "b", "c", "b", "late", "late"]


def test_a_body_of_no_stated_length_is_bounded_too(client):
    parts = (b"x" * 2**20 for _ in range(12))
    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = client.post("/search", content=parts, headers=headers)
    assert answer.status_code == 413 and "more than 10485760 bytes" in answer.json()["error"]


def test_a_fault_of_the_service_is_counted_and_hides_its_words(searcher):
    class Broken(Slow):
        def search_all(self, queries):
            raise RuntimeError("secret")

    with TestClient(make_app(Broken(searcher), Limits()), raise_server_exceptions=False) as client:
        answer = client.get("/search", params={"text": "red"})
        assert answer.status_code == 500 and "secret" not in answer.text and "error" in answer.json()
        assert "content-security-policy" in answer.headers
        assert 'fbjax_requests_total{route="/search",status="500"} 1.0' in client.get("/metrics").text


def test_ids_are_cleaned_alike_and_no_picture_outlives_its_product(changed):
    searcher, client, allowed = changed
    photo = encode(PRODUCTS[4]["image"].rotate(180), "PNG")
    form = {"text": "cape", "group": PRODUCTS[5]["id"]}
    put = lambda identity: client.put(  # noqa: E731
        f"/products/{identity}", data=form, files={"image": photo}, headers=allowed
    )
    assert put("%20x%20").json() == {"id": "x", "change": "added"}
    assert put("x").json()["change"] == "replaced" and "not 'nan'" in put("nan").json()["error"]
    product = client.get("/products/%20x").json()
    sibling = client.get(f"/products/{PRODUCTS[5]['id']}").json()
    assert product["fields"]["group"] == sibling["fields"]["group"]
    assert client.get(product["picture"]).status_code == 200
    assert client.delete("/products/x%20", headers=allowed).json() == {"id": "x", "change": "deleted"}
    assert client.get(product["picture"]).status_code == 404 and client.get(sibling["picture"]).status_code == 200


@pytest.mark.parametrize("key", ["a key of sixteen or more\n", " " * 20])
def test_a_key_that_no_header_carries_is_refused(searcher, key):
    with pytest.raises(ValueError, match="begins or ends with a blank or a new line"):
        run(searcher, "127.0.0.1", 0, Limits(), key, print)
