"""Changes to lowered functions that keep what they compute: dead code, saved context, masks of fused kernels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from pccompile.backends.torch.copies import lay_out, permute_pieces
from pccompile.backends.torch.gram import behind_weights
from pccompile.backends.torch.in_place import moved_in_place
from pccompile.backends.torch.packed import packed
from pccompile.backends.torch.reuse import reused
from pccompile.backends.torch.slopes import share_slopes
from pccompile.backends.torch.statements import EFFECTS, Function, Line, Loop, Lowered, fresh, made_in
from pccompile.backends.torch.writer import is_parameter
from pccompile.ir import Ref


def optimise(lowered: Lowered, functional: bool = False, lengths: Mapping[str, int] = MappingProxyType({})) -> Lowered:
    """Drop what no result needs, and settle what prediction has to keep for inference and learning.

    Loops overwrite their values, or, where the file is to be `functional`, read weights that are stored for it.
    lengths: the free dimensions as a call has them, by which a functional file decides what pays.
    """
    dims = lowered.program.pc.graph.dims.items()
    sources = {name: lowered.made[s.tensor] for name, s in dims if s.tensor in lowered.made}
    later = [without_dead(f) for f in (lowered.infer, lowered.learn, lowered.sweep)]
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
    if functional:
        later = [packed(f, lowered) for f in later]
    else:
        later = [moved_in_place(f, lowered.program.numbers) for f in later]
    for f in later:
        share_slopes(f, lowered.labels)
        permute_pieces(f, lowered.labels)
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
