r"""Fixed-prediction inference: predictions and Jacobians stay at their feedforward values.

    ε_i ← ε_i + η (Σ_c J_ciᵀ ε_c − ε_i)          all vertices together, T times, from ε = 0 and a clamped output error

At the fixed point every error is minus the loss gradient of its value (Millidge, Tschantz & Buckley 2020,
arXiv:2006.04182). After T steps a path of k edges from the output carries the weight P[Binomial(T, η) ≥ k], which gives
two programs for the same result: `relax` takes the steps, `closed-form` splits each error by path length, propagates
each part once and weights it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pccompile.algorithms.common import clamped, learn, sweep
from pccompile.algorithms.law import gradient_error, path_lengths, steps_for
from pccompile.diagnostics import CompileError
from pccompile.ir import Do, PCGraph, Program, Repeat
from pccompile.ir.law import weight

LOWERINGS = ("closed-form", "relax")
MOST_PARTS = 3000
"""The longest closed form that is chosen by itself: each part is a few lines of the generated file."""


def schedule(
    pc: PCGraph,
    steps: int | None = None,
    rate: float = 0.1,
    tolerance: float | None = None,
    lowering: str | None = None,
) -> Program:
    """`steps` inference steps of size `rate`; or as many as a relative gradient error of `tolerance` needs.

    With neither, 100 steps. lowering: "closed-form" or "relax"; by default the closed form, unless its program would be
    very long, as on deep recurrent graphs with paths of a hundred lengths.
    Raises CompileError for a rate outside (0, 2), where inference does not converge.
    """
    if not 0 < rate < 2:
        raise CompileError(
            f"rate {rate} does not converge", hint="fixed-prediction inference converges for 0 < rate < 2"
        )
    if lowering not in (None, *LOWERINGS):
        raise CompileError(f"unknown lowering {lowering!r}", hint=f"one of {', '.join(LOWERINGS)}")
    if steps is not None and tolerance is not None:
        raise CompileError("steps and tolerance are both given", hint="tolerance chooses the steps: give one of them")
    if steps is not None and steps < 0:
        raise CompileError(f"steps is {steps}", hint="a number of inference steps, 0 or more")
    if steps is None:
        steps = 100 if tolerance is None else steps_for(pc, rate, tolerance)
    lengths = path_lengths(pc)
    longest = max(max(ks) for ks in lengths.values() if ks)
    facts: tuple[str, ...] = (
        f"{steps} steps of size {rate:g}: predicted gradient error {gradient_error(pc, steps, rate):.3g} "
        f"(what is missing on the longest path, {longest} edges, which carries {weight(steps, rate, longest):.4g})",
    )
    parts = sum(k <= steps for ks in lengths.values() for k in ks)
    if lowering is None and parts > MOST_PARTS:
        facts = (*facts, f"relaxed step by step: the closed form would have {parts} parts")
    elif lowering in (None, "closed-form"):
        return _closed_form(pc, steps, rate, facts)
    start = (*clamped(pc), *(Do(v.name, "error", "zero") for v in pc.latent))
    relax = tuple(Do(v.name, "error", "error + rate * (pull - error)") for v in pc.latent)
    arguments = {"steps": steps, "rate": rate}
    return Program(
        pc, "fixed-prediction", (*start, Repeat("steps", relax)), tuple(learn(pc)), arguments=arguments, facts=facts
    )


def _closed_form(pc: PCGraph, steps: int, rate: float, facts: tuple[str, ...]) -> Program:
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
