"""What a finished build is looked over for, as warnings, which fail it: dead links, and pages that ask a network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sphinx.util import logging

LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
STORED = re.compile(r'^\s*"outputs": \[\s*\{', re.MULTILINE)


class Page(HTMLParser):
    """The anchors of a page, what it links to and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = {""}
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        values = dict(attrs)
        self.anchors |= {v for k in ("id", "name") if (v := values.get(k))}
        if tag == "a" and (target := values.get("href")):
            self.links.add(target)
        if (where := LOADED.get(tag)) and (target := values.get(where)) and values.get("rel") != "canonical":
            self.loads.add(target)


def faults(root: Path) -> Iterator[str]:
    """What is wrong with the pages below a folder."""
    pages = {
        path: Page(path.read_text("utf-8")) for path in sorted(root.rglob("*.html")) if "_static" not in path.parts
    }
    for path, page in pages.items():
        name = path.relative_to(root)
        for target in sorted(page.loads | page.links):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                if target in page.loads and parts.scheme != "data":
                    yield f"{name} loads {target}: it needs a network"
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not file.exists():
                yield f"{name} links to {target}, which is not there"
            elif file in pages and unquote(parts.fragment) not in pages[file].anchors:
                yield f"{name} links to {target}: no such place on that page"


def stored(source: Path) -> Iterator[str]:
    """Notebooks with outputs in them, which would be stale one day."""
    for path in sorted(source.rglob("*.ipynb")):
        if "_build" not in path.parts and STORED.search(path.read_text("utf-8")):
            yield f"{path.relative_to(source)} has stored outputs: keep it as text, it is run at each build"


def look_over(app: Any, error: Exception | None) -> None:
    """Warn of everything that is wrong with what was built."""
    if error is None and app.builder.name == "html":
        for fault in (*stored(Path(app.srcdir)), *faults(Path(app.outdir).resolve())):
            logging.getLogger(__name__).warning(fault)


def setup(app: Any) -> dict[str, bool]:
    """Tell Sphinx."""
    app.connect("build-finished", look_over)
    return {"parallel_read_safe": True}
