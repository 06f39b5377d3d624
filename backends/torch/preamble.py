"""The top of a generated file: what it is, what it imports, and the kernels and helpers that it brings along."""

from __future__ import annotations

from pccompile.backends.torch.reserved import MARK
from pccompile.backends.torch.reuse import writing_kernel
from pccompile.backends.torch.spell import Speller
from pccompile.diagnostics import listing, printable
from pccompile.ir import PCGraph, Program


def preamble(program: Program, squared_error: bool, speller: Speller) -> str:
    """The top of the file of `program`, once `speller` knows what its functions need.

    squared_error: inference evaluates a loss, and none was given.
    """
    facts = "".join(f"{fact}.\n" for fact in program.facts)
    if squared_error:
        facts += "Inference takes the squared error ½‖t − v̂‖², summed, as its loss.\n"
    facts += _energies(program.pc)
    title = (
        f'"""{program.algorithm} predictive coding with {len(program.pc.vertices)} vertices. {MARK}\n\n'
        f"{facts}v̂ is what its parents predict for a vertex, ε = v − v̂ its error, −∂L/∂v̂ at an output.\n"
        f'Gradients are those of the free energy, ∂F/∂θ: what a torch optimizer descends.\n{_states(program)}"""'
    )
    imports = ["import math\n"] * ("math" in speller.modules) + ["import torch"]
    imports += ["import torch.nn.functional as F"] * ("F" in speller.modules)
    named = sorted(speller.kernels.items(), key=lambda k: k[1])
    kernels = [f"{name} = torch.ops.{op}" for op, name in named if op not in speller.reusing]
    writing = [writing_kernel(name, op) for op, name in named if op in speller.reusing]
    helpers = "\n\n\n".join(h.strip() for h in (*writing, *dict.fromkeys(speller.helpers.values())))
    parts = (title, "\n".join(imports), "\n".join(kernels), f"\n{helpers}" if helpers else "")
    return "\n\n".join(filter(None, parts))


def _energies(pc: PCGraph) -> str:
    """What is said of energies that are not half the squared error."""
    owners: dict[str, list[str]] = {}
    for v in pc.vertices:
        if v.energy:
            owners.setdefault(str(v.energy), []).append(v.name)
    said = "".join(f"E is {printable(e, 200)} at {listing(names, 8)}.\n" for e, names in owners.items())
    return f"A vertex sends s = −∂E/∂v̂ and is held by h = ∂E/∂v, both ε where E is ½ε².\n{said}" if said else ""


def _states(program: Program) -> str:
    """What is said of states that the file keeps in `buffers`, and of further outputs."""
    graph = program.pc.graph
    said = ""
    if graph.states:
        names = ", ".join(printable(p, 60) for p in graph.states)
        said += f"`predict` puts the new states in the places of the old ones in `buffers`: {names}.\n"
    if program.moved:
        names = listing([lasting.path(program.pc.home) for lasting in program.moved.values()], 8)
        said += "`learn` returns, behind the gradients, what lasts between calls, and `step` puts it into `buffers`:\n"
        said += f"{names}.\n"
    if graph.further:
        said += f"The last {graph.further} of its outputs are not the model's results but what it writes elsewhere.\n"
    return said
