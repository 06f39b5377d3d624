"""The lines of a generated file that belong to one vertex."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from textwrap import dedent

from pccompile.ir import Vertex
from pccompile.ir.names import identifier

OPENING = re.compile(r"""\w+ = (?:inputs|buffers)\[['"][^\]]*\](?:\.shape\[\d+\])?$""")
TARGET = re.compile(r"^\s*((?:\w+, )*\w+) (?:=|\+=) ")
SLOT = re.compile(r"(?:minus_)?(?:prediction|value|error|multiplier|part\d+)_(\w+)")


def functions(source: str) -> dict[str, list[str]]:
    """The lines of each function."""
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in source.splitlines():
        if line.startswith("def "):
            current = found.setdefault(line[4 : line.index("(")], [])
        elif line and not line.startswith((" ", ")")):
            current = None
        elif current is not None:
            current.append(line)
    return found


def lines_of(
    vertex: Vertex, source: str, vertices: Collection[str], parameters: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Function by function, the lines that compute a slot of `vertex`, and those that learn its parameters."""
    bodies = functions(source)
    yield from _named("predict", _predicting(bodies.get("predict", []), vertex.name, vertices))
    gradients = tuple(f"gradient_{identifier(p)} = " for p in parameters)
    if bodies.get("infer_and_learn") and any(
        _sets(b, vertex.name, vertices) for b in _blocks(bodies["infer_and_learn"])
    ):
        yield from _named("infer_and_learn", _settling(bodies["infer_and_learn"], vertex.name, vertices))
        return
    settling = _settling(bodies.get("infer", []), vertex.name, vertices)
    yield from _named("infer", settling or _returned(bodies.get("infer", []), vertex.name))
    yield from _named("learn", _learning(bodies.get("learn", []), gradients))


def _named(name: str, lines: list[str]) -> Iterator[tuple[str, str]]:
    kept = [ln for ln in lines if ln.strip() and not ln.strip().startswith(("#", "del ", "return", '"""'))]
    if kept:
        yield name, "\n".join(kept)


def _predicting(lines: list[str], vertex: str, vertices: Collection[str]) -> list[str]:
    """What stands between the previous vertex's prediction and the end of this one's."""
    pending: list[str] = []
    for line in lines:
        pending.append(line.strip())
        owners = [_owner(m[1], vertices) for t in _targets(line) if (m := SLOT.fullmatch(t))]
        if vertex in owners:
            return [ln for ln in pending if not OPENING.match(ln)]
        if owners or _is_break(line):
            pending = []
    return []


def _is_break(line: str) -> bool:
    """Whether a line is none of the model's operations."""
    return line.strip().startswith(('"""', "device = "))


def _settling(lines: list[str], vertex: str, vertices: Collection[str]) -> list[str]:
    """The blocks of this vertex, each without what follows its loop."""
    found: list[str] = []
    for block in _blocks(lines):
        if _sets(block, vertex, vertices):
            margin = len(block[0]) - len(block[0].lstrip())
            own = [ln for ln in block if len(ln) - len(ln.lstrip()) >= margin]
            found += dedent("\n".join(own)).splitlines()
    return found


def _returned(lines: list[str], vertex: str) -> list[str]:
    """Where an error is nothing but another one: the line that says which."""
    return [line.strip().rstrip(",") for line in lines if line.strip().startswith(f'"{vertex}": ')][:1]


def _learning(lines: list[str], gradients: tuple[str, ...]) -> list[str]:
    """The lines that set these gradients, and those that they need."""
    need: set[str] = set()
    found: list[str] = []
    for line in reversed(lines):
        if line.strip().startswith(gradients) or need & set(_targets(line)):
            need |= set(re.findall(r"\w+", line.partition(" = ")[2]))
            found.insert(0, line.strip())
    return found


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """What stands between empty lines, where it has a heading."""
    block: list[str] = []
    for line in [*lines, ""]:
        if line:
            block.append(line)
            continue
        if block and block[0].lstrip().startswith("#"):
            yield block
        block = []


def _targets(line: str) -> list[str]:
    match = TARGET.match(line)
    return match[1].split(", ") if match else []


def _sets(block: list[str], vertex: str, vertices: Collection[str]) -> bool:
    """Whether a block sets one of the vertex's slots."""
    targets = [t for line in block for t in _targets(line)]
    return any(_owner(m[1], vertices) == vertex for t in targets if (m := SLOT.fullmatch(t)))


def _owner(text: str, vertices: Collection[str]) -> str:
    """The vertex in the name of a slot, which may end with a number of its own."""
    return text if text in vertices else re.sub(r"_\d+$", "", text)
