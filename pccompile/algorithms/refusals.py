"""What an algorithm has no use for, said with the names of those that have: energies, and roles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pccompile.algorithms import ALGORITHMS, Algorithm
from pccompile.diagnostics import CompileError
from pccompile.ir import PCGraph


def refuse_energies(algorithm: Algorithm, settings: Mapping[str, Any], pc: PCGraph | None = None) -> None:
    """Raise CompileError where the algorithm has no use for energies, or not for those that `pc` has."""
    if algorithm.energies == "none":
        able = ", ".join(a.name for a in ALGORITHMS.values() if a.energies == "any")
        what = f"{algorithm.name} knows no energy but half the squared error, and no precision"
        raise CompileError(what, hint=f"algorithms that do: {able}")
    if algorithm.measures(settings):
        what = (
            f"{algorithm.name}: what is automatic is measured for half the squared error, without energies or precision"
        )
        raise CompileError(what, hint="give rate and steps as numbers")
    if pc and not algorithm.estimates and (learned := [k for k in pc.lasting if k.learned]):
        able = ", ".join(a.name for a in ALGORITHMS.values() if a.energies != "none" and a.estimates)
        what = f"{algorithm.name}: the precision of {learned[0].owner} cannot learn by errors that tend to 0"
        raise CompileError(what, hint=f"algorithms whose errors are those where free energy is least: {able}")
    for v in pc.latent if pc and algorithm.energies == "of the error" else ():
        if v.energy and not v.energy.of_error:
            what = f"{algorithm.name} takes energies of v - vhat alone; the energy of {v.name} is {v.energy}"
            raise CompileError(what, v.where, hint="use strict")


def refuse_roles(algorithm: Algorithm, settings: Mapping[str, Any]) -> None:
    """Raise CompileError where the algorithm cannot infer inputs, or be given hidden values."""
    if not algorithm.roles:
        able = ", ".join(a.name for a in ALGORITHMS.values() if a.roles)
        what = f"{algorithm.name} infers no inputs and takes no hidden values: its predictions stay"
        raise CompileError(what, hint=f"algorithms that do: {able}")
    if algorithm.measures(settings):
        what = f"{algorithm.name}: what is automatic is measured with inputs that are given"
        raise CompileError(what, hint="give rate and steps as numbers")
