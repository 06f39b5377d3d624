"""The backward pass of a program for a loss that uses some of its outputs only: those without a loss send nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pccompile.backends.torch import SWEEP, emit_partial
from pccompile.frontends.process import capturing
from pccompile.passes.stop_unsent import unsent
from pccompile.pipeline import fed_back, schedule, to_vertices
from pccompile.runtime.loaded_program import Runtime, load

MANY = 32
"""How many sets of outputs keep functions of their own; the oldest is compiled anew where it comes back."""

Sweep = Callable[..., Any]
"""Takes parameters, context and the errors of the outputs that have one; returns gradients by key."""


def partial_sweep(runtime: Runtime, used: frozenset[int]) -> Sweep | None:
    """What takes the place of `infer_and_learn` where only the clamped outputs `used` have an error.

    It is compiled when it is asked for first. None where all of them are used, where predictions move, so that an
    output without an error is one that is what it should be, and where the program does not hand on what it takes.
    """
    if runtime.source.moving or runtime.compiled is None or len(used) in (0, len(runtime.source.errors)):
        return None
    if used in runtime.partial:
        return runtime.partial[used]
    with capturing():
        sweep = _compiled(runtime, used)
        if len(runtime.partial) >= MANY:
            del runtime.partial[next(iter(runtime.partial))]
        runtime.partial[used] = sweep
    return sweep


def _compiled(runtime: Runtime, used: frozenset[int]) -> Sweep | None:
    whole = runtime.compiled
    assert whole is not None
    values = tuple(o.value for i, o in enumerate(whole.pc.outputs) if i in used)
    graph = replace(whole.graph, outputs=values, further=0)
    pc = to_vertices(replace(whole.imported, graph=graph), runtime.options.vertices)[1]
    if unsent(pc):
        return lambda *_: {}
    pc = fed_back(pc, whole.imported.typer, runtime.options)
    text = emit_partial(whole.program, schedule(pc, runtime.options))
    if text is None:
        return None
    found: Sweep = load(text, f"{runtime.name} for outputs {sorted(used)}")[SWEEP]
    return found
