"""The search service over HTTP: its answers beside those of the index, and what it refuses."""

import concurrent.futures
import dataclasses
import io
import socket
import threading
import zlib

import pytest
from PIL import Image
from starlette.testclient import TestClient

from fbjax.serve.indexing import index
from fbjax.serve.searching import Query, Searcher
from fbjax.serve.web.app import make_app
from fbjax.serve.web.limits import Limits
from fbjax.serve.web.server import run
from fbjax.training.loop import train
from tests.support.runs import tiny_config
from tests.support.tables import encode, make_products, write_csv

PRODUCTS = make_products(40, seed=7)
PHOTO = encode(PRODUCTS[3]["image"], "JPEG")
TOWERS = ("train.num_steps=4", "train.save_every=4", "model.num_layers=1", "tasks=itc", "tasks.itc.embedding_dim=16")


@pytest.fixture(scope="module")
def searcher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("web")
    train(tiny_config(folder, *TOWERS), folder / "run")
    table = write_csv(
        folder / "products.csv", [p | {"colour": p["title"].split()[0]} for p in PRODUCTS], more=("colour",)
    )
    index(folder / "run", folder / "index", data=str(table), fields={"colour": "colour"})
    with Searcher(folder / "index") as found:
        found.warm_up()
        yield found


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
    assert 'fbjax_requests_total{route="/search",status="200"}' in metrics
    assert 'fbjax_seconds_count{stage="retrieve"}' in metrics and 'fbjax_cache{result="hits"}' in metrics
    assert client.get("/openapi.json").json()["paths"].keys() >= {"/search", "/pictures/{name}", "/readyz"}


class Slow:
    """A searcher whose answers wait until they are let go."""

    def __init__(self, searcher):
        self._searcher, self.go = searcher, threading.Event()
        self.collection, self.pictures, self.model = searcher.collection, searcher.pictures, searcher.model

    def search(self, query):
        self.go.wait(20)
        return self._searcher.search(query)


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
            run(searcher, host, port, Limits(), print)
