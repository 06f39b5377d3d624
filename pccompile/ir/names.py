"""Names from a model become identifiers here, and nowhere else: a name is data and never code."""

from __future__ import annotations

import hashlib
import keyword
import re
import unicodedata
from collections.abc import Iterable

LONGEST = 60
RESERVED = frozenset(
    (*keyword.kwlist, *keyword.softkwlist, "torch", "F", "params", "buffers", "inputs", "outputs", "targets", "context")
)
"""Names that a generated file uses for itself."""


def identifier(text: str) -> str:
    """`text` as an ASCII identifier: other characters become `_`, a long text keeps its end and gets a digest."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "replace").decode() if not text.isascii() else text
    name = re.sub(r"\W+", "_", plain).strip("_")
    if len(name) > LONGEST:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        name = f"{name[-LONGEST + 9 :].lstrip('_')}_{digest}"
    if not name or name[0].isdigit():
        name = f"n{name}"
    return f"{name}_" if name in RESERVED else name


class Namer:
    """Hands out identifiers that have not been used."""

    def __init__(self, used: Iterable[str] = ()) -> None:
        self.used = set(used)
        self._next: dict[str, int] = {}

    def __call__(self, text: str) -> str:
        """An unused identifier for `text`."""
        base = name = identifier(text)
        while name in self.used:
            self._next[base] = self._next.get(base, 0) + 1
            name = f"{base}_{self._next[base]}"
        self.used.add(name)
        return name
