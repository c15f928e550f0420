"""Text without HTML: shops write descriptions as pages."""

import re
from html.parser import HTMLParser

MARKUP = re.compile(r"</?[a-z!][^<>]*>|&(#\d+|#x[0-9a-f]+|[a-z]\w{1,31});", re.IGNORECASE)
INLINE = "a abbr b bdi bdo big cite code del em font i ins kbd mark q s small span strike strong sub sup u wbr".split()
UNREAD = ("script", "style")  # their content is no text
PASSES = 2  # feeds escape HTML a second time: &lt;p&gt;


def without_markup(text: str) -> str:
    """The words of a text without tags and entities; a tag that breaks the line separates words."""
    for _ in range(PASSES):
        if not MARKUP.search(text):
            break
        words = _Words()
        words.feed(text)
        words.close()
        text = "".join(words.found)
    return text


class _Words(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self._unread = 0

    def handle_starttag(self, tag, attrs):
        self._unread += tag in UNREAD
        self.found += [" "] * (tag not in INLINE)

    def handle_endtag(self, tag):
        self._unread = max(0, self._unread - (tag in UNREAD))
        self.found += [" "] * (tag not in INLINE)

    def handle_data(self, data):
        if not self._unread:
            self.found.append(data)
