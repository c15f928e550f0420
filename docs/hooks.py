"""Links of the site, by one rule: a page links to any file of the repository by its relative path.

A code host follows such links. On the site README.md is the start page, and CHANGELOG.md and CONTRIBUTING.md are pages.
Any other file outside docs/ that a page links to is copied under source/. A broken link fails the build.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT_PAGES = {"README.md": "index.md", "CHANGELOG.md": "CHANGELOG.md", "CONTRIBUTING.md": "CONTRIBUTING.md"}
ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")


def on_files(files, config):
    """Adds the pages at the root, and each file outside docs/ that a page links to."""
    for path, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text(encoding="utf-8")))
    for file in list(files.documentation_pages()):
        for _, path, _, _ in LINK.findall(FENCE.sub("", file.content_string)):
            target = _repository_path(path, file.src_uri)
            if _outside(target) and (ROOT / target).is_file() and not files.get_file_from_path(f"source/{target}"):
                content = (ROOT / target).read_bytes()
                files.append(File.generated(config, f"source/{target}.txt", content=content))
    return files


def on_page_markdown(markdown, page, **_):
    """The links of a page as the site has them; blocks of code stay as they are."""
    folder = posixpath.dirname(page.file.src_uri) or "."

    def translated(match):
        before, path, anchor, after = match.groups()
        target = _repository_path(path, page.file.src_uri)
        place = ROOT_PAGES.get(target) or (f"source/{target}.txt" if _outside(target) else target.removeprefix("docs/"))
        return f"{before}{posixpath.relpath(place, folder)}{anchor or ''}{after}"

    pieces, end = [], 0
    for fence in FENCE.finditer(markdown):
        pieces += [LINK.sub(translated, markdown[end : fence.start()]), fence.group()]
        end = fence.end()
    return "".join([*pieces, LINK.sub(translated, markdown[end:])])


def _repository_path(path: str, page: str) -> str:
    """What `path`, as the page writes it, is relative to the repository."""
    source = next((root for root, name in ROOT_PAGES.items() if name == page), f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), path))


def _outside(target: str) -> bool:
    return target not in ROOT_PAGES and not target.startswith("docs/")
