"""Fixed prediction path length by path length: each error is a weighted sum of parts, each propagated once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pccompile.algorithms.common import learn, sweep
from pccompile.algorithms.law import path_lengths
from pccompile.ir import Do, PCGraph, Program
from pccompile.ir.law import weight


def closed_form(pc: PCGraph, steps: int, rate: float, facts: tuple[str, ...]) -> Program:
    """Each error as a weighted sum of parts, one for each path length; a part is propagated once."""
    lengths = {v: [k for k in ks if k <= steps] for v, ks in path_lengths(pc).items()}
    infer: list[Do] = []
    for d in _parts(pc, lengths, "part", "clamp"):
        infer.append(d)
        if d.slot == f"part{lengths[d.vertex][-1]}":
            infer.append(Do(d.vertex, "error", _weighted(lengths[d.vertex], steps, rate)))
    infer += [Do(v.name, "error", "zero") for v in pc.latent if not lengths[v.name]]
    together: tuple[Do, ...] = ()
    if all(lengths.values()):
        first = {v.name for v in pc.latent if not set(v.parents) & set(pc.names)}
        weights = {
            v: {"minus_error": 1.0} if v in first else {f"minus_part{k}": weight(steps, rate, k) for k in ks}
            for v, ks in lengths.items()
        }
        parts = [d for d in _parts(pc, lengths, "minus_part", "-clamp") if d.vertex not in first]
        parts += [_weighted_at_once(pc, v.name, lengths, steps, rate) for v in reversed(pc.latent) if v.name in first]
        together = tuple(sweep(pc, tuple(parts), weights))
    return Program(pc, "fixed-prediction", tuple(infer), tuple(learn(pc)), together, facts=facts)


def _weighted_at_once(pc: PCGraph, name: str, lengths: Mapping[str, Sequence[int]], steps: int, rate: float) -> Do:
    """The error of a vertex without parents among the vertices: nobody asks for its parts, so one product a child."""
    senders = {
        c.name: {f"minus_part{k}": weight(steps, rate, k + 1) for k in lengths[c.name] if k + 1 <= steps}
        for c in pc.children()[name]
    }
    return Do(name, "minus_error", "pull", carries=senders)


def _parts(pc: PCGraph, lengths: Mapping[str, Sequence[int]], slot: str, start: str) -> Iterator[Do]:
    """Every part, from the outputs backwards: what arrives over k edges is what the children have over k − 1."""
    children = pc.children()
    for name in pc.clamped:
        yield Do(name, f"{slot}0", start)
    for v in reversed(pc.latent):
        for k in lengths[v.name]:
            senders = {c.name: {f"{slot}{k - 1}": 1.0} for c in children[v.name] if k - 1 in lengths[c.name]}
            yield Do(v.name, f"{slot}{k}", "pull", carries=senders)


def _weighted(lengths: Sequence[int], steps: int, rate: float) -> str:
    weights = {k: weight(steps, rate, k) for k in lengths}
    return " + ".join(f"part{k}" if w == 1 else f"{w!r} * part{k}" for k, w in weights.items())
