"""The lines of a generated file that belong to one vertex."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from textwrap import dedent

from pccompile.ir import Vertex
from pccompile.ir.names import identifier

FUNCTIONS = ("predict", "infer", "learn", "infer_and_learn")
TARGET = re.compile(r"^\s*((?:\w+, )*\w+) (?:=|\+=) ")
SLOT = re.compile(r"(?:prediction|value|error|multiplier|part\d+)_(\w+)")


def functions(source: str) -> dict[str, list[list[str]]]:
    """Each function's blocks: what stands between its empty lines."""
    found: dict[str, list[list[str]]] = {}
    current: list[list[str]] | None = None
    for line in source.splitlines():
        if line.startswith("def "):
            current = found.setdefault(line[4 : line.index("(")], [[]])
        elif line and not line.startswith((" ", ")")):
            current = None
        elif current is not None:
            if line:
                current[-1].append(line)
            else:
                current.append([])
    return found


def lines_of(vertex: Vertex, source: str, vertices: Collection[str], parameters: Collection[str]) -> Iterator[tuple[str, str]]:
    """Function by function, the blocks that set a slot of `vertex` and the lines that learn its parameters."""
    blocks = functions(source)
    learning = "infer_and_learn" if any(_sets(b, vertex.name, vertices) for b in blocks.get("infer_and_learn", ())) else "learn"
    gradients = tuple(f"gradient_{identifier(p)} = " for p in parameters)
    for name in FUNCTIONS:
        if name in ("learn", "infer_and_learn") and name != learning:
            continue
        own = [line for block in blocks.get(name, ()) if _sets(block, vertex.name, vertices) and name != "learn" for line in block]
        if name == "infer" and learning == "infer_and_learn":
            continue  # the sweep has the same lines, and those that learn
        own = own if name != "learn" else [ln for b in blocks.get(name, ()) for ln in b if ln.strip().startswith(gradients)]
        text = dedent("\n".join(ln for ln in own if not ln.strip().startswith(("del ", "return"))))
        if text:
            yield name, text


def _sets(block: list[str], vertex: str, vertices: Collection[str]) -> bool:
    """Whether a block belongs to `vertex`: it stands under a heading and sets one of the vertex's slots."""
    if not any(line.strip().startswith("#") for line in block):
        return False
    targets = [t for line in block if (m := TARGET.match(line)) for t in m[1].split(", ")]
    return any(_owner(m[1], vertices) == vertex for t in targets if (m := SLOT.fullmatch(t)))


def _owner(text: str, vertices: Collection[str]) -> str:
    """The vertex in the name of a slot, which may end with a number of its own."""
    return text if text in vertices else re.sub(r"_\d+$", "", text)
