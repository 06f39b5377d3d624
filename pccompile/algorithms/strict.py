r"""Strict inference: predictions follow the values (Whittington & Bogacz 2017, doi:10.1162/NECO_a_00949).

    v_i ← v_i − η (ε_i − Σ_c J_ci(v)ᵀ ε_c),   ε_i = v_i − f_i(v_P(i))

This descends F = Σ ½‖ε_i‖² + L over all values. Its equilibrium is not backpropagation's, by design. The loss is
evaluated anew at every step, so it is part of the program.
"""

from __future__ import annotations

from pccompile.algorithms.common import clamped, learn, refuse_draws
from pccompile.diagnostics import CompileError
from pccompile.ir import Do, PCGraph, Program, Repeat


def schedule(pc: PCGraph, steps: int = 20, rate: float = 0.1) -> Program:
    """`steps` steps of gradient descent on the free energy over all values together.

    All forces are computed before any value moves: a message reads the values of a child's other parents.
    Raises CompileError for a rate that is not positive, and for samples that change with their parameters.
    """
    if not rate > 0:
        raise CompileError(f"rate {rate} is not positive", hint="a step size above 0, such as 0.1")
    if steps < 0:
        raise CompileError(f"steps is {steps}", hint="a number of inference steps, 0 or more")
    refuse_draws(pc)
    start = (Do(v.name, "value", "prediction") for v in pc.latent)
    look = (
        *(Do(v.name, "prediction", "predict", at="value") for v in pc.vertices),
        *clamped(pc),
        *(Do(v.name, "error", "value - prediction") for v in pc.latent),
    )
    force = (Do(v.name, "force", "pull - error", at="value") for v in pc.latent)
    relax = (*force, *(Do(v.name, "value", "value + rate * force") for v in pc.latent))
    return Program(
        pc,
        "strict",
        (*start, Repeat("steps", (*look, *relax)), *look),
        tuple(learn(pc, at="value")),
        arguments={"steps": steps, "rate": rate},
        state="value",
    )
