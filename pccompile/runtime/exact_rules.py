"""The rules of a compiled program under backpropagation's own schedule: what can be compared with autograd."""

from __future__ import annotations

from dataclasses import replace

from pccompile.backends.torch import emit
from pccompile.passes.choices import RANDOM
from pccompile.passes.feedback import with_feedback
from pccompile.pipeline import Options, schedule
from pccompile.runtime.loaded_program import Runtime

ALONE = "gradients were compared without the mirrors of the layers, which the model does not have"
MIRRORED = "gradients were compared with each weight as its own feedback and with all derivatives, not as they are"


def exact(runtime: Runtime) -> Runtime:
    """The exact program over the vertices of `runtime`; itself where it is that.

    Where messages read other weights, that program reads the model's in their place, and no derivative is left out.
    """
    compiled = runtime.compiled
    assert compiled is not None
    swapped = compiled.plain is not None and not runtime.options.transposes
    if compiled.plain is not None and not swapped:
        compiled = replace(compiled, pc=compiled.plain)
    elif compiled.plain is not None:
        mirror = with_feedback(compiled.plain, compiled.imported.typer, RANDOM, home=runtime.options.home)
        compiled = replace(compiled, pc=mirror)
    elif compiled.program.algorithm == "exact":
        return runtime
    program = schedule(compiled.pc, Options("exact"))
    options = replace(
        runtime.options,
        algorithm="exact",
        granularity=runtime.options.vertices,
        settings={},
        on_divergence="ignore",
        feedback="transpose",
        derivatives="exact",
        jit=False,
    )
    rules = replace(runtime, source=emit(program), name=f"{runtime.name} rules", options=options, _scope={})
    return replace(rules, compiled=replace(compiled, program=program, source=rules.source), mirrored=swapped)
