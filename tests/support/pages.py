"""An HTML page as a browser would read it."""

import html.parser
import re


class Page(html.parser.HTMLParser):
    """What a browser would make of a page: its elements, and the text between them."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.text = [], ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = spaced(self.text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def attributes(self, name):
        return [attributes[name] for _, attributes in self.elements if name in attributes]


def spaced(text):
    return " ".join(text.split())


def assert_self_contained(page):
    tags = {tag for tag, _ in page.elements}
    assert tags.isdisjoint({"script", "link", "iframe", "object", "embed", "base"})
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.attributes("src"))
    references = page.attributes("href") + page.attributes("xlink:href")
    assert all(reference.startswith("#") for reference in references)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page.source))
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert all(attributes.get("alt") for tag, attributes in page.elements if tag == "img")
