"""Changes to lowered functions that keep what they compute: dead code, saved context, masks of fused kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from pccompile.backends.torch.copies import lay_out, permute_pieces
from pccompile.backends.torch.gram import behind_weights
from pccompile.backends.torch.in_place import moved_in_place
from pccompile.backends.torch.late import made_late
from pccompile.backends.torch.reuse import reused
from pccompile.backends.torch.statements import (
    EFFECTS,
    Function,
    Label,
    Line,
    Loop,
    Lowered,
    Statement,
    fresh,
    made_in,
    statements_of,
)
from pccompile.backends.torch.writer import is_parameter
from pccompile.ir import Ref
from pccompile.ops import bind, definition

GRAD = "grad_output"
BATCH_NORM = "aten._native_batch_norm_legit_functional.default"
NO_STATISTICS = "aten._native_batch_norm_legit.no_stats"
RUNNING = 3
"""From this result on a batch norm returns its running statistics."""


def optimise(lowered: Lowered, functional: bool = False, lengths: Mapping[str, int] = MappingProxyType({})) -> Lowered:
    """Drop what no result needs, and settle what prediction has to keep for inference and learning.

    Loops overwrite their values, unless the file is to be `functional`.
    lengths: the free dimensions as a call has them, by which a functional file decides what pays.
    """
    dims = lowered.program.pc.graph.dims.items()
    sources = {name: lowered.made[s.tensor] for name, s in dims if s.tensor in lowered.made}
    later = [without_statistics(without_dead(f)) for f in (lowered.infer, lowered.learn, lowered.sweep)]
    if functional:
        later = [behind_weights(f, lowered, lengths) for f in later]
    made = {s.target: s for s in lowered.predict.statements()}
    order = {r: i for i, r in enumerate(lowered.labels)}
    needed: dict[Ref, None] = {}
    for f in later:
        wanted = sorted(f.needs(), key=order.__getitem__)
        params = [made[r] for r in wanted if r in made and is_parameter(made[r])]
        f.lines[:0] = [replace(s) for s in params]
        opened = {s.target for s in params}
        needed.update({r: None for r in wanted if r not in opened})
    measured = [sources[d] for f in later for s in f.statements() for d in s.lengths if d in sources]
    predict = without_dead(Function(lowered.predict.lines, lowered.predict.results), [*needed, *measured], sources)
    read_before_written(predict, needed)
    for f in (predict, *later):
        mask_unread(f)
    if not functional:
        later = [moved_in_place(f, lowered.program.numbers) for f in later]
    for f in later:
        share_slopes(f, lowered.labels)
        permute_pieces(f, lowered.labels)
    later = [made_late(f, lowered.program.pc) for f in later]
    if not functional:
        later = [reused(f, lowered.program.pc) for f in later]
    found = replace(lowered, predict=predict, infer=later[0], learn=later[1], sweep=later[2], context=list(needed))
    lay_out(found)
    return found


def read_before_written(predict: Function, context: Iterable[Ref]) -> None:
    """Copy each buffer that `predict` writes at its end and whose memory it hands on: as it was before the write.

    What is handed on is the context, the results, and what other buffers are given.
    """
    copies = [s for s in predict.statements() if s.op == "copy"]
    written = {(s.args["table"], s.args["key"]) for s in copies}
    if not written:
        return
    made = {s.target: s for s in predict.statements()}
    open_ = [*context, *predict.results.values(), *(s.args["of"] for s in copies)]
    seen: set[Ref] = set()
    while open_:
        value = open_.pop()
        s = made.get(value)
        if value in seen or s is None or fresh(s, made):
            continue
        seen.add(value)
        if s.op == "leaf" and (s.args["table"], s.args["key"]) in written:
            s.args = {**s.args, "clone": True}
        open_ += s.reads


def without_dead(f: Function, also: Iterable[Ref] = (), sources: Mapping[str, Ref] = MappingProxyType({})) -> Function:
    """`f` without statements that neither its results nor `also` need.

    sources: the values that lengths are read off.
    """
    return Function(_live(f.lines, {*f.results.values(), *also}, sources), f.results)


def without_statistics(f: Function) -> Function:
    """`f`, whose batch norms move running statistics only where something reads these."""
    moved = {s.args["of"] for s in f.statements() if s.op == "getitem" and s.args["index"] >= RUNNING}
    changed = False
    for s in f.statements():
        if s.op == BATCH_NORM and s.args["training"] is True and s.target not in moved:
            s.op, s.args = NO_STATISTICS, {k: a for k, a in s.args.items() if not k.startswith("running_")}
            changed = True
    return without_dead(f) if changed else f


def _live(lines: Sequence[Line], need: set[Ref], sources: Mapping[str, Ref]) -> list[Line]:
    """The lines that `need` needs, which grows by what they read."""
    kept: list[Line] = []
    for line in reversed(lines):
        if isinstance(line, Loop):
            loop = _live_loop(line, need, sources)
            if loop.carried or loop.body:
                kept.append(loop)
                need.update(loop.reads)
        elif line.target in need or line.op in EFFECTS:
            kept.append(line)
            need.update(line.reads)
            need.update(sources[d] for d in line.lengths if d in sources)
    return kept[::-1]


def _live_loop(loop: Loop, need: set[Ref], sources: Mapping[str, Ref]) -> Loop:
    """A loop without carried values that nobody reads, and without what only they needed."""
    made = made_in(loop.body)
    carried = [c for c in loop.carried if c.phi in need or c.phi in loop.shown]
    while True:
        inside = {c.next for c in carried} | set(loop.shown) | (need & made)
        body = _live(loop.body, inside, sources)
        more = [c for c in loop.carried if c not in carried and c.phi in inside]
        if not more:
            return replace(loop, carried=carried, body=body)
        carried += more


def mask_unread(f: Function) -> None:
    """Ask fused kernels only for the results that are read."""
    used: dict[Ref, set[int]] = {}
    for s in f.statements():
        if s.op == "getitem":
            used.setdefault(s.args["of"], set()).add(s.args["index"])
    for s in f.statements():
        if "output_mask" in s.args and s.target in used:
            mask = tuple(i in used[s.target] for i in range(len(s.args["output_mask"])))
            s.args = {**s.args, "output_mask": mask}


def share_slopes(f: Function, labels: dict[Ref, Label]) -> None:
    """Call each costly kernel on ones, where it would be called with other errors again, or in a loop.

    Such a kernel is linear in the error, element by element: what it makes of ones is the slope. The ones are one
    number at all places, which takes no memory to write and to read.
    """
    inside = {r for line in f.lines if isinstance(line, Loop) for r in made_in([line])}
    calls: Counter[object] = Counter()
    for s, looped in _costly(f.lines):
        calls[_slope(s)] += 2 if looped or s.each else 1
    shared = {key for key, count in calls.items() if count > 1}
    slopes: dict[object, Ref] = {}
    lines: list[Line] = []
    for line in f.lines:
        for s, _ in _costly([line]):
            key = _slope(s)
            if key not in shared or inside & ({*s.reads} - {s.args[GRAD]}):
                continue
            if key not in slopes:
                one, ones, slopes[key] = (Ref(f"{s.target}_{part}") for part in ("one", "ones", "slope"))
                like = next(r for r in s.reads if r != s.args[GRAD])
                one_args = bind("aten.new_ones.default", (like, ()), {})
                name = labels[s.target].text
                for value, kind in ((one, "one"), (ones, "ones"), (slopes[key], "slope")):
                    labels[value] = Label(f"{kind}_{name}")
                lines += [
                    Statement(one, "aten.new_ones.default", one_args, s.vertex, owner=s.owner),
                    Statement(ones, "aten.expand_as.default", {"self": one, "other": like}, s.vertex, owner=s.owner),
                    Statement(slopes[key], s.op, {**s.args, GRAD: ones}, s.vertex, s.even, owner=s.owner),
                ]
            s.op, s.args, s.even, s.over = "aten.mul.Tensor", {"self": s.args[GRAD], "other": slopes[key]}, True, True
        lines.append(line)
    f.lines[:] = lines


def _costly(lines: Sequence[Line]) -> Iterator[tuple[Statement, bool]]:
    """The calls of costly kernels, and whether they are in a loop."""
    for line in lines:
        for s in statements_of([line]):
            if definition(s.op).costly_slope and s.args[GRAD] not in [a for k, a in s.args.items() if k != GRAD]:
                yield s, isinstance(line, Loop)


def _slope(s: Statement) -> tuple[object, ...]:
    """What two calls share that differ in the error alone."""
    return (s.op, *((k, type(a), a) for k, a in s.args.items() if k != GRAD))
