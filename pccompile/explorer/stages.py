"""What compilation made, stage by stage, and what each stage changed."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from pccompile.backends.torch import Source
from pccompile.ir import Graph, PCGraph, Program
from pccompile.pipeline import Options, compile_imported
from pccompile.runtime.loaded_program import Runtime

KINDS = {Graph: "graph", PCGraph: "vertices", Program: "program", Source: "code"}
LONGEST = 6000
"""So many lines of a stage are shown."""


class Stages:
    """The results of stages as text, as the pipeline reports them."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, list[str], int]] = []

    def __call__(self, name: str, result: object, seconds: float) -> None:
        """Note a stage's result."""
        kind = next((k for t, k in KINDS.items() if isinstance(result, t)), None)
        if kind is not None:
            lines = (result.text if isinstance(result, Source) else str(result)).splitlines()
            self.found.append((name, kind, lines[:LONGEST], max(0, len(lines) - LONGEST)))


def stages(runtime: Runtime, options: Options) -> list[dict[str, Any]]:
    """Every stage of a model's compilation: its name, what it makes, the lines, and what differs from the one before.

    The lines are of one kind at a time; `changes` pairs "=", "-" and "+" with a number of lines that are kept, left out
    and put in, and is empty for the first of a kind.
    """
    assert runtime.compiled is not None
    noted = Stages()
    compile_imported(runtime.compiled.imported, options, runtime.compiled.loss, hook=noted)
    result, before = [], dict[str, list[str]]()
    for name, kind, lines, more in noted.found:
        changes = list(changed(before[kind], lines)) if kind in before else []
        result.append({"name": name, "kind": kind, "lines": lines, "more": more, "changes": changes})
        before[kind] = lines
    return result


def changed(old: list[str], new: list[str]) -> Iterator[list[Any]]:
    """How `old` becomes `new`, run by run."""
    for tag, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            yield ["=", b - a]
            continue
        if b > a:
            yield ["-", b - a]
        if d > c:
            yield ["+", d - c]
