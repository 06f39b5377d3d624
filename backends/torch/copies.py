"""Fewer copies of values that lie in memory otherwise than they are read."""

from __future__ import annotations

from dataclasses import replace

from pccompile.backends.torch.statements import Function, Label, Line, Loop, Lowered, Statement
from pccompile.ir import Ref
from pccompile.ops import bind, definition

PERMUTE, STACK = "aten.permute.default", "aten.stack.default"
PRODUCT, CONTIGUOUS = "aten.matmul.default", "aten.contiguous.default"


def permute_pieces(f: Function, labels: dict[Ref, Label]) -> None:
    """Stack pieces where a permutation wants them: one pass over memory in place of two."""
    readers: dict[Ref, int] = {}
    for s in f.statements():
        for r in s.reads:
            readers[r] = readers.get(r, 0) + 1
    f.lines[:] = _pieces_permuted(f.lines, readers, {*f.results.values()}, labels)


def _pieces_permuted(
    lines: list[Line], readers: dict[Ref, int], kept: set[Ref], labels: dict[Ref, Label]
) -> list[Line]:
    found: list[Line] = []
    for line in lines:
        if isinstance(line, Loop):
            line.body[:] = _pieces_permuted(line.body, readers, kept, labels)
        elif line.op == PERMUTE:
            stack = found[-1] if found else None
            if isinstance(stack, Statement) and stack.op == STACK and stack.target == line.args["self"]:
                alone = readers[stack.target] == 1 and stack.target not in kept
                if alone and stack.since == line.since and not stack.keeps:
                    found[-1:] = _permuted(stack, line, labels)
                    continue
        found.append(line)
    return found


def _permuted(stack: Statement, permutation: Statement, labels: dict[Ref, Label]) -> list[Line]:
    """A permutation of a stack as a stack of permutations."""
    order = permutation.args["dims"]
    rank, dim = len(order), stack.args["dim"] % len(order)
    order = [d % rank for d in order]
    inner = tuple(d - (d > dim) for d in order if d != dim)
    pieces: list[Statement] = []
    names: list[Ref] = []
    for i, piece in enumerate(stack.args["tensors"]):
        names.append(Ref(f"{permutation.target}_piece{i}"))
        labels[names[-1]] = Label(f"{labels[permutation.target].text}_piece")
        args = {"self": piece, "dims": inner}
        pieces.append(Statement(names[-1], PERMUTE, args, stack.vertex, since=stack.since, owner=stack.owner))
        pieces[-1].each = (piece,) if piece in stack.each else ()
    together = {"tensors": tuple(names), "dim": order.index(dim)}
    return [*pieces, replace(permutation, op=STACK, args=together, each=tuple(p.target for p in pieces if p.each))]


def lay_out(lowered: Lowered) -> None:
    """Copy a permuted value once, where batched products read views of it several times: each would copy it anew."""
    predict, labels = lowered.predict, lowered.labels
    kept = {*predict.results.values()}
    permuted = {s.target for s in predict.lines if isinstance(s, Statement) and _mixes_batches(s)} - kept
    copied: dict[Ref, int] = {}
    views = {r: r for r in permuted}
    for f in (predict, lowered.sweep if lowered.sweep.lines else lowered.infer):
        for s in f.statements():
            sources = [views[r] for r in s.reads if r in views]
            if s.op == PRODUCT:
                for r in sources:
                    copied[r] = copied.get(r, 0) + 1
            elif sources and (s.op == "alias" or definition(s.op).wiring):
                views[s.target] = sources[0]
    lines: list[Line] = []
    for line in predict.lines:
        lines.append(line)
        if isinstance(line, Statement) and copied.get(line.target, 0) > 1:
            whole, line.target = line.target, Ref(f"{line.target}_view")
            labels[line.target] = labels[whole]
            lines.append(
                Statement(whole, CONTIGUOUS, bind(CONTIGUOUS, (line.target,), {}), line.vertex, owner=line.owner)
            )
    predict.lines[:] = lines


def _mixes_batches(s: Statement) -> bool:
    """Whether the dimensions in front of a matrix no longer lie one in another, so that a product copies its factor."""
    if s.op != PERMUTE:
        return False
    order = [d % len(s.args["dims"]) for d in s.args["dims"]]
    return len(order) > 3 and order[:-2] != list(range(len(order) - 2))
