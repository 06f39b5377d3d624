"""The page: a template into which nothing but base64 and hashes is put.

Text of a model reaches the page as data, packed, and the scripts put it there as text: it can be neither markup nor
code. The Content-Security-Policy lets the page's own scripts run, by their hashes, and lets it ask for nothing.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
from importlib.resources import files

from pccompile.files.writing import SEAL

VENDOR = ("viz.js.gz", "katex.js.gz", "uplot.js.gz")
SCRIPTS = (
    "state", "elements", "colour", "hierarchy", "layout", "graph", "charts", "code", "panel", "modules", "heatmap",
    "convergence", "compare", "stages", "chip", "search", "views", "keys", "main",
)  # fmt: skip
"""The page's own scripts, in this order one after the other in one function."""


@functools.cache
def _part(name: str) -> bytes:
    return files("pccompile.explorer").joinpath(name).read_bytes()


@functools.cache
def vendored() -> tuple[bytes, ...]:
    """The scripts of other people, unpacked."""
    return tuple(gzip.decompress(_part(f"vendor/{name}")) for name in VENDOR)


@functools.cache
def script() -> str:
    """The page's own script."""
    parts = (_part(f"page/{name}.js").decode() for name in SCRIPTS)
    return '(() => {\n"use strict";\n' + "\n".join(parts) + "})();\n"


@functools.cache
def style() -> str:
    """The page's style, with KaTeX's fonts."""
    return gzip.decompress(_part("vendor/vendor.css.gz")).decode() + _part("page/style.css").decode()


def _hash(content: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"


def packed(content: bytes) -> str:
    """Content for a page: compressed, in base64."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def html(data: str) -> str:
    """The page that shows `data`, JSON of an exploration."""
    own = script()
    parts = {
        "hashes": " ".join(_hash(s) for s in (*vendored(), own.encode())),
        "stylehash": _hash(style().encode()),
        "style": style(),
        "vendor": "\n".join(f'<script type="text/plain" class="vendor">{_packed_vendor(i)}</script>' for i in range(3)),
        "data": packed(data.encode()),
        "script": own,
        "seal": SEAL,
    }
    text = _part("page/template.html").decode()
    head, *rest = text.split("{{")
    return head + "".join(parts[name] + tail for name, _, tail in (piece.partition("}}") for piece in rest))


@functools.cache
def _packed_vendor(i: int) -> str:
    return packed(vendored()[i])
