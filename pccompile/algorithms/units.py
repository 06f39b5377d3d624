"""Programs of single vertices: what one does when it is woken, with what it knows of its neighbours.

`view` is what it last heard of its parents' values, `own` its own value (or its error, where predictions stay). From
these it predicts, and sends a message to each parent; an event-driven run (analysis.asynchronous) decides when.
"""

from __future__ import annotations

from pccompile.algorithms.common import each, energetic, learn, learners
from pccompile.diagnostics import CompileError
from pccompile.ir import Argument, Do, PCGraph, Program

KINDS = ("fixed-prediction", "strict", "alm")
"""The algorithms whose vertices can be run one by one."""


def unit(pc: PCGraph, name: str, algorithm: str) -> Program:
    """The program of one vertex: its error, `told` to each parent, and what it sent, holds and keeps as multiplier.

    Raises CompileError for an algorithm that is none of KINDS.
    """
    if algorithm not in KINDS:
        what = f"{algorithm} cannot be run vertex by vertex"
        raise CompileError(what, hint=f"algorithms that can: {', '.join(KINDS)}")
    v = next(v for v in pc.vertices if v.name == name)
    latent, name = {v.name for v in pc.latent}, str(name)
    arguments: dict[str, Argument] = {}
    if algorithm == "fixed-prediction":
        steps = each([v], "error = zero + own", "sent = error") if name in latent else each([v], "error = clamp")
        arguments |= {"own": {name: 0.0}} if name in latent else {}
    else:
        known = [str(p) for p in v.parents if p in latent]
        others = [str(o) for o in pc.clamped if o != name]
        arguments |= {"view": dict.fromkeys(known, 0.0), "shown": dict.fromkeys(others, 0.0)}
        steps = (*each(known, "value = zero + view"), *each(others, "prediction = zero + shown"))
        steps += each([v], "prediction = predict", at="value")
        if name in latent:
            steps += each([v], "value = zero + own", "error = value - prediction")
            arguments["own"] = {name: 0.0}
        else:
            steps += each([v], "error = clamp")
    if name not in latent:
        steps += each([v], "sent = send" if v.energy and name in pc.clamped else "sent = error")
    elif algorithm == "strict":
        steps += each([v], "sent = send", "held = hold") if energetic(pc) else each([v], "sent = error", "held = error")
    elif algorithm == "alm":
        arguments |= {"dual": {name: 0.0}, "penalty": 1.0, "dual_rate": 1.0}
        weighed = "send" if energetic(pc) else "error"
        steps += each([v], "multiplier = dual + dual_rate * error", f"sent = multiplier + penalty * {weighed}")
        steps += each([v], "held = sent")
    else:
        steps += each([v], "held = error")
    at = "prediction" if algorithm == "fixed-prediction" else "value"
    told = [p for p in v.messages if p in latent]
    steps += each(told, "told = pull", at=at, carries={name: {"sent": 1.0}})
    steps += () if told else each([v], "told = zero")
    slots = ["sent", *(["held"] if name in latent else []), *(["multiplier"] if "dual" in arguments else [])]
    handed_on = each([v], *(f"kept_{slot} = {slot}" for slot in slots))
    return Program(pc, f"{algorithm} of {name}", steps, handed_on, arguments=arguments, state="told")


def learned(pc: PCGraph) -> Program:
    """The gradients where hidden values are `offset` off the forward pass and every vertex sends `message`."""
    infer: tuple[Do, ...] = each(pc.latent, "value = prediction + offset")
    infer += each(pc.vertices, "error = zero + message")
    arguments: dict[str, Argument] = {
        "offset": {str(v.name): 0.0 for v in pc.latent},
        "message": {str(v.name): 0.0 for v in pc.vertices},
    }
    learning = tuple(learn(pc, at="value")) if learners(pc) else ()
    return Program(pc, "learned", infer, learning, arguments=arguments, state="value")
