"""The search page in a browser: words, a picture, filters, more like this, why, errors; wide and on a phone."""

import contextlib
import re
import shutil
import threading

import pytest
import uvicorn
from playwright.sync_api import expect, sync_playwright

from fbjax.serve.search.searching import Searcher
from fbjax.serve.web.app import make_app
from fbjax.serve.web.limits import Limits
from tests.support.service import PRODUCTS, make_index
from tests.support.tables import encode

pytestmark = pytest.mark.slow
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SIZES = {"wide": {"width": 1280, "height": 860}, "phone": {"width": 390, "height": 844}}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of a service over 40 products."""
    with Searcher(make_index(tmp_path_factory.mktemp("page"))) as searcher:
        server = uvicorn.Server(uvicorn.Config(make_app(searcher, Limits()), port=0, log_level="critical"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            thread.join(0.05)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        pytest.skip(f"no browser among {', '.join(BROWSERS)}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=SIZES)
def page(request, browser, address, tmp_path):
    """The page at one width, which asks no other host and reports no error."""
    page = browser.new_page(viewport=SIZES[request.param])
    asked, wrong = [], []
    page.on("request", lambda sent: asked.append(sent.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.append(line.text) if "Content Security Policy" in line.text else None)
    page.goto(address)
    yield page
    page.close()
    assert all(url.startswith((address, "blob:", "data:")) for url in asked) and not wrong


def search(page, text):
    page.get_by_role("searchbox").fill(text)
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("in all")


def test_words_filters_and_no_product(page):
    search(page, "red cotton dress")
    expect(page.locator(".product")).to_have_count(24)
    page.get_by_role("button", name="More products").click()
    expect(page.locator(".product")).to_have_count(40)
    shown = page.locator(".product img").first.evaluate("image => image.decode().then(() => image.naturalWidth)")
    assert shown > 0
    page.get_by_label(re.compile("^bag")).check()
    expect(page.locator(".category").first).to_have_text("bag")
    bags = sum(product["category"] == "bag" for product in PRODUCTS)
    expect(page.locator(".product")).to_have_count(bags)
    assert set(page.locator(".category").all_inner_texts()) == {"bag"}
    page.get_by_label(re.compile("^bag")).uncheck()
    expect(page.locator(".product")).to_have_count(24)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the window"


def test_a_picture_and_words_beside_it(page, tmp_path):
    photo = tmp_path / "photo.png"
    photo.write_bytes(encode(PRODUCTS[3]["image"]))
    page.set_input_files("#image", photo)
    expect(page.locator("#asked")).to_contain_text("by this picture")
    expect(page.locator(".product")).to_have_count(24)
    page.get_by_role("button", name=re.compile("^Why ")).first.click()
    expect(page.locator("#reason-words mark").first).to_be_visible()
    page.keyboard.press("Escape")
    search(page, "but in blue")
    page.get_by_role("button", name="Remove").click()
    expect(page.locator("#asked")).to_be_hidden()


def test_why_and_more_like_this_by_keyboard(page):
    search(page, "red cotton dress")
    first = page.locator(".product").first
    text = first.locator(".text").inner_text()
    first.get_by_role("button", name=re.compile("^Why ")).focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("#reason-words")).to_have_text(re.compile(r"red \(.*\) cotton \(.*\) dress \(.*\)"))
    assert dialog.locator("#reason-cells span").count() == 16
    colours = dialog.locator("mark").evaluate_all(
        "marks => marks.map((mark) => getComputedStyle(mark).backgroundColor)"
    )
    assert len(set(colours)) > 1
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    first.locator(".like").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#asked")).to_contain_text(f"more like {text[:20]}")
    expect(page.locator("#status")).to_contain_text("in all")
    assert text not in page.locator(".text").all_inner_texts()[:1]


def test_a_slow_reason_is_not_shown_for_another_product(page):
    waiting = []
    page.route("**/explain?*", lambda route: waiting.append(route) if not waiting else route.continue_())
    search(page, "red cotton dress")
    whys = page.get_by_role("button", name=re.compile("^Why "))
    whys.first.click()
    page.keyboard.press("Escape")
    second = page.locator(".product .text").nth(1).inner_text()
    whys.nth(1).click()
    expect(page.locator("#reason-status")).to_have_text(second)
    with contextlib.suppress(Exception):  # the page has given it up
        waiting[0].continue_()
    page.wait_for_timeout(300)
    expect(page.locator("#reason-status")).to_have_text(second)


def test_counts_are_those_of_the_filtered_products(page):
    search(page, "red cotton dress")
    page.get_by_label(re.compile("^dress")).check()
    expect(page.locator(".category").first).to_have_text("dress")
    dresses = [product for product in PRODUCTS if product["category"] == "dress"]
    expect(page.locator(".product")).to_have_count(len(dresses))
    colours = page.locator("#filters section", has_text="colour").locator(".count").all_inner_texts()
    assert sum(int(count) for count in colours if count) == len(dresses)


def test_what_goes_wrong_is_said(page, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    page.set_input_files("#image", broken)
    expect(page.locator("#status.wrong")).to_contain_text("undecodable image")
    expect(page.locator(".product")).to_have_count(0)  # none of an earlier answer
    page.get_by_role("button", name="Remove").click()
    page.route("**/search?*", lambda route: route.abort())
    page.get_by_role("searchbox").fill("red")
    page.keyboard.press("Enter")
    expect(page.locator("#status.wrong")).to_contain_text("The server does not answer")
    page.unroute("**/search?*")
    page.route("**/explain?*", lambda route: route.fulfill(status=429, json={"error": "too many requests wait"}))
    search(page, "red dress")
    page.get_by_role("button", name=re.compile("^Why ")).first.click()
    expect(page.locator("#reason-status.wrong")).to_contain_text("too many requests wait")
