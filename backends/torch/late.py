"""Large values that one statement reads are made right in front of it.

A vertex that carries several errors gets all of them before the next vertex is looked at. Where each is larger than
what it is made of, as behind the matrix that widens a transformer's stream, they would all lie in memory at once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from pccompile.backends.torch.message_sums import larger
from pccompile.backends.torch.runs import KEYED
from pccompile.backends.torch.statements import EFFECTS, Function, Line, Statement
from pccompile.ir import PCGraph, Ref
from pccompile.ops import definition


def made_late(f: Function, pc: PCGraph) -> Function:
    """`f` with such values as late as they can be made; as it is where it changes what it reads on its way."""
    if any(s.op in EFFECTS for s in f.statements()):
        return f
    types = {v.name: v.type for v in pc.vertices}
    sources = _sources(f)
    reads = Counter(r for line in f.lines for r in line.reads) + Counter(f.results.values())

    def grows(s: Statement) -> bool:
        """Whether a value is larger than all that it is made of."""
        parts = [p for p in map(sources.get, s.reads) if p and p.op not in KEYED and p.vertex in types]
        return bool(parts) and s.vertex in types and all(larger(types[s.vertex], types[p.vertex]) for p in parts)

    lines: list[Line] = []
    waiting: dict[Ref, list[Line]] = {}
    for line in f.lines:
        parts = [x for r in dict.fromkeys(line.reads) for x in waiting.pop(r, ())]
        if isinstance(line, Statement) and reads[line.target] == 1 and (grows(line) or (parts and _is_view(line))):
            waiting[line.target] = [*parts, line]
        else:
            lines += [*(_under(line, x) for x in parts), line]
    return Function([*lines, *(x for rest in waiting.values() for x in rest)], f.results)


def _sources(f: Function) -> dict[Ref, Statement | None]:
    """What has computed each value, or one of its size that it was made of."""
    found: dict[Ref, Statement | None] = {}
    for s in f.lines:
        if isinstance(s, Statement):
            reads = s.reads if s.even or _is_view(s) else ()
            found[s.target] = found.get(reads[0]) if reads else s
    return found


def _under(reader: Line, line: Line) -> Line:
    """A line as it stands in front of what reads it, below one comment with that."""
    if not (isinstance(reader, Statement) and isinstance(line, Statement)) or reader.vertex == line.vertex:
        return line
    return replace(line, vertex=reader.vertex, owner=line.owner or line.vertex)


def _is_view(s: Statement) -> bool:
    return len(s.reads) == 1 and (s.op == "alias" or definition(s.op).wiring)
