r"""Fixed-prediction inference: predictions and Jacobians stay at their feedforward values.

    ε_i ← ε_i + η (Σ_c J_ciᵀ ε_c − ε_i)          all vertices together, T times, from ε = 0 and a clamped output error

At the fixed point every error is minus the loss gradient of its value (Millidge, Tschantz & Buckley 2020,
arXiv:2006.04182). After T steps a path of k edges from the output carries the weight P[Binomial(T, η) ≥ k], which gives
two programs for the same result: `relax` takes the steps, `closed-form` splits each error by path length, propagates each
part once and weights it.
"""

from __future__ import annotations

from pccompile.algorithms.common import clamped, learn, sweep
from pccompile.algorithms.law import gradient_error, path_lengths, steps_for, weight
from pccompile.diagnostics import CompileError
from pccompile.ir import Do, PCGraph, Program, Repeat

LOWERINGS = ("closed-form", "relax")


def schedule(
    pc: PCGraph, steps: int | None = None, rate: float = 0.1, tolerance: float | None = None, lowering: str = "closed-form"
) -> Program:
    """`steps` inference steps of size `rate`; or as many as a relative gradient error of `tolerance` needs.

    With neither, 100 steps. Raises CompileError for a rate outside (0, 2), where inference does not converge.
    """
    if not 0 < rate < 2:
        raise CompileError(f"rate {rate} does not converge", hint="fixed-prediction inference converges for 0 < rate < 2")
    if lowering not in LOWERINGS:
        raise CompileError(f"unknown lowering {lowering!r}", hint=f"one of {', '.join(LOWERINGS)}")
    if steps is not None and steps < 0:
        raise CompileError(f"steps is {steps}", hint="a number of inference steps, 0 or more")
    if steps is None:
        steps = 100 if tolerance is None else steps_for(pc, rate, tolerance)
    lengths = path_lengths(pc)
    longest = max(max(ks) for ks in lengths.values() if ks)
    facts = (
        f"{steps} steps of size {rate:g}: predicted relative gradient error at most {gradient_error(pc, steps, rate):.3g} "
        f"(longest path {longest} edges, which carries {weight(steps, rate, longest):.4g})",
    )
    if lowering == "closed-form":
        return _closed_form(pc, steps, rate, facts)
    start = (*clamped(pc), *(Do(v.name, "error", "zero") for v in pc.latent))
    relax = tuple(Do(v.name, "error", "error + rate * (pull - error)") for v in pc.latent)
    arguments = {"steps": steps, "rate": rate}
    return Program(
        pc, "fixed-prediction", (*start, Repeat("steps", relax)), tuple(learn(pc)), arguments=arguments, facts=facts
    )


def _closed_form(pc: PCGraph, steps: int, rate: float, facts: tuple[str, ...]) -> Program:
    """Each error as a weighted sum of parts, one for each path length; a part is propagated once."""
    lengths = {v: [k for k in ks if weight(steps, rate, k) > 0] for v, ks in path_lengths(pc).items()}
    children = pc.children()
    parts: list[Do] = [Do(name, "part0", "clamp") for name in pc.outputs]
    weights = {name: {f"part{k}": weight(steps, rate, k) for k in ks} for name, ks in lengths.items()}
    for v in reversed(pc.latent):
        for k in lengths[v.name]:
            senders = {c.name: {f"part{k - 1}": 1.0} for c in children[v.name] if k - 1 in lengths[c.name]}
            parts.append(Do(v.name, f"part{k}", "pull", carries=senders))
    infer: list[Do] = []
    for d in parts:
        infer.append(d)
        if d.slot == f"part{lengths[d.vertex][-1]}":
            infer.append(Do(d.vertex, "error", _weighted(weights[d.vertex])))
    infer += [Do(v.name, "error", "zero") for v in pc.latent if not lengths[v.name]]
    inference = [d for d in infer if d.slot != "error"]
    return Program(
        pc,
        "fixed-prediction",
        tuple(infer),
        tuple(learn(pc)),
        tuple(sweep(pc, inference, weights)) if all(lengths.values()) else (),
        facts=facts,
    )


def _weighted(terms: dict[str, float]) -> str:
    return " + ".join(slot if w == 1 else f"{w!r} * {slot}" for slot, w in terms.items())
