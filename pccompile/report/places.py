"""From a vertex to the user's own words: module path, node name, source line."""

from __future__ import annotations

import difflib
import inspect
import linecache
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import nn

from pccompile.diagnostics import CompileError, Location, listing
from pccompile.ir import PCGraph, Vertex
from pccompile.ir.names import identifier


def names_of(vertex: Vertex) -> Iterator[str]:
    """Everything that a user may call a vertex: its name, and the names and places of the operations in it."""
    yield vertex.name
    for place in (vertex.where, *(n.where for n in vertex.prediction)):
        if place.module:
            yield place.module
    yield from (n.name for n in vertex.prediction)


def find(pc: PCGraph, name: str) -> tuple[Vertex, ...]:
    """The vertices that `name` means: a vertex, a module path or what lies below it, an ONNX node, an operation.

    It may be a pattern: with * for any text, ? for any letter and [...] for one of several, or a regular expression
    between slashes, found anywhere in a name. Raises CompileError, with names that are near, where there is none.
    """
    known = {v.name: v for v in pc.vertices}
    if name in known:
        return (known[name],)
    for means in (_same, _identifier, _pattern(name)):
        found = tuple(v for v in pc.vertices if any(means(name, n) for n in names_of(v)))
        if found:
            return found
    every = dict.fromkeys(n for v in pc.vertices for n in names_of(v))
    near = difflib.get_close_matches(name, every, 3, 0.4) or difflib.get_close_matches(identifier(name), every, 3)
    hint = f"did you mean {listing(near)}?" if near else "without a name, all vertices are listed"
    raise CompileError(f"there is no vertex {name}", hint=hint)


def _pattern(pattern: str) -> Callable[[str, str], bool]:
    """Whether a name fits a pattern. Raises CompileError for a regular expression that is none."""
    if len(pattern) > 2 and pattern[0] == pattern[-1] == "/":
        try:
            expression = re.compile(pattern[1:-1])
        except re.error as e:
            raise CompileError(f"{pattern} is no regular expression: {e}") from None
        return lambda _, known: expression.search(known) is not None
    return lambda _, known: fnmatchcase(known, pattern)


def _same(name: str, known: str) -> bool:
    return name == known or known.startswith((f"{name}.", f"{name}/"))


def _identifier(name: str, known: str) -> bool:
    return identifier(name) == identifier(known)


def source_line(place: Location, model: nn.Module) -> tuple[str, str]:
    """The file with its path, and the line at `place`; '' where the file is not there."""
    if not place.file:
        return "", ""
    for path in _candidates(place, model):
        line = linecache.getline(path, place.line).strip()
        if line:
            return path, line
    return "", ""


def _candidates(place: Location, model: nn.Module) -> Iterator[str]:
    """Files of that name: of the module's class, of the classes around it, here, of what Python has imported."""
    modules: Mapping[str, nn.Module] = dict(model.named_modules())
    path = place.module.split("@")[0]
    while path and path not in modules:
        path = path.rpartition(".")[0]
    chain: list[Any] = []
    while path:
        chain.append(type(modules[path]))
        path = path.rpartition(".")[0]
    for kind in dict.fromkeys((*chain, *map(type, modules.values()))):
        try:
            file = inspect.getsourcefile(kind) or ""
        except (TypeError, OSError):
            continue
        if Path(file).name == place.file:
            yield file
    yield from (str(p) for p in (Path(place.file), Path.cwd() / place.file) if p.is_file())
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None) or ""
        if file.endswith(f"/{place.file}") and "/torch/" not in file:
            yield file
