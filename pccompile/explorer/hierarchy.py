"""Where vertices stand in the model: module path, which call of that module, and a label within it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from pccompile.ir import Vertex
from pccompile.ir.names import identifier


@dataclass(frozen=True)
class Spot:
    """The place of a vertex: `module` is a path, its parts joined by dots; a later call of a module says so in it."""

    module: tuple[str, ...]
    label: str


def ancestors(path: str) -> Iterator[str]:
    """`a`, `a.b`, `a.b.c` of `a.b.c`."""
    parts = path.split(".") if path else []
    yield from (".".join(parts[: i + 1]) for i in range(len(parts)))


def spots(vertices: tuple[Vertex, ...], model: nn.Module) -> dict[str, Spot]:
    """The place of each vertex.

    A module is called anew where vertices come back to it after some that are not in it; a layer of torch's own also
    where the line changes that calls it.
    """
    modules: Mapping[str, nn.Module] = dict(model.named_modules())
    calls: dict[str, int] = {}
    lines: dict[str, int] = {}
    inside: set[str] = set()
    found: dict[str, tuple[str, dict[str, int]]] = {}
    for v in vertices:
        path = v.where.module.split("@")[0].replace("/", ".").strip(".")
        chain = list(ancestors(path))
        for m in chain:
            own = m in modules and not [*modules[m].children()] and type(modules[m]).__module__.startswith("torch.nn")
            moved = own and lines.get(m, v.where.line) != v.where.line
            if m not in calls:
                calls[m] = 1
            elif m not in inside or moved:
                calls[m] += 1
            lines[m] = v.where.line
        inside = set(chain)
        found[v.name] = path, {m: calls[m] for m in chain}
    return {name: Spot(_parts(path, at, calls), _label(name, path)) for name, (path, at) in found.items()}


def _parts(path: str, at: Mapping[str, int], calls: Mapping[str, int]) -> tuple[str, ...]:
    """The parts of a path, the calls of a module that is called more than once told apart."""
    last = (m.rpartition(".")[2] for m in ancestors(path))
    whole = zip(ancestors(path), last, strict=True)
    return tuple(f"{part} · call {at[m]}" if calls[m] > 1 else part for m, part in whole)


def _label(name: str, path: str) -> str:
    """A vertex's name without that of its module."""
    prefix = identifier(path) if path else ""
    return name[len(prefix) + 1 :] if prefix and name.startswith(f"{prefix}_") else name
