"""Give vertices other energies than half the squared error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pccompile.diagnostics import CompileError, listing, printable
from pccompile.ir import FLAT, Do, Energy, Lasting, PCGraph, Vertex
from pccompile.ir.equations import substituted
from pccompile.ops.energies import ENERGIES
from pccompile.passes.precisions import Precision, weighted

Energies = Energy | Mapping[str, Energy] | None
"""One energy for all hidden vertices, or a table by vertex or module path."""


def with_energies(pc: PCGraph, energies: Energies, precision: Precision) -> PCGraph:
    """`pc` with energies at its hidden vertices; those that are not named keep half the squared error.

    A precision Π makes the energy of a vertex ½ Π ε² − ½ log Π; that of an output, where it is named, weighs its
    squared error. Raises CompileError for names that are neither a vertex nor a module, for energies of outputs, which
    are the loss, for an energy that falls for ever along a value, for a precision that is not above 0 or does not fit,
    for one that learns without a prior where a value is free, and for one beside another energy.
    """
    chosen: dict[str, Energy] = dict(_by_vertex(pc, energies, "energies"))
    for name, one in chosen.items():
        if not isinstance(one, Energy):
            what = f"the energy of {name} is {printable(repr(one), 60)}"
            raise CompileError(what, hint='give pccompile.energy("huber", delta=1.0), for example')
        v = _vertex(pc, name)
        if not one.bounded:
            _refuse_unbounded(v, one)
        if one.of_rows and len(v.type.shape) < 2:
            what = f"the energy {one} is over the last dimension, and {name} has none beside the samples"
            raise CompileError(what, v.where, hint="bernoulli is elementwise")
    precisions = dict(_by_vertex(pc, precision, "precision", outputs=True))
    lasting, outputs = list[Lasting](), pc.clamped
    for name, weight in precisions.items():
        if name in chosen and isinstance(precision, Mapping):
            what = f"{name} has both an energy and a precision"
            raise CompileError(what, hint=f"a precision belongs to squared errors; {chosen[name]} has its own scale")
        if name not in chosen:
            chosen[name], slot = weighted(_vertex(pc, name), weight, free=name not in outputs)
            lasting += [slot] if slot else []
    return replace(
        pc, lasting=tuple(lasting), vertices=tuple(replace(v, energy=chosen.get(v.name, v.energy)) for v in pc.vertices)
    )


def _refuse_unbounded(v: Vertex, one: Energy) -> None:
    hint = "add a term that grows with v"
    if one.name in ENERGIES:
        hint = f'pccompile.energy("{one.name}", entropy=True) has a least value'
    what = f"{v.name} is free, and the energy {one} falls for ever along its value"
    raise CompileError(what, v.where, hint=hint)


def _by_vertex(pc: PCGraph, settings: object, what: str, outputs: bool = False) -> Iterator[tuple[str, Any]]:
    """For each hidden vertex that `settings` names, what they say of it. A vertex's own name goes before its module's.

    outputs: whether it may be about those, too, where it names them. Raises CompileError for names that there are not.
    """
    if settings is None:
        return
    hidden = [v.name for v in pc.latent]
    if not isinstance(settings, Mapping):
        yield from ((name, settings) for name in hidden)
        return
    modules = sorted((n for n in settings if n not in pc.names), key=len)
    by_vertex: dict[str, Any] = {}
    for name in (*modules, *(n for n in settings if n in pc.names)):
        meant = [name] if name in pc.names else [v.name for v in pc.vertices if is_in(v, name)]
        if not meant:
            paths = dict.fromkeys(n.where.module for v in pc.latent for n in v.prediction if n.where.module)
            hint = f"hidden vertices: {listing(hidden)}; modules: {listing(list(paths))}"
            raise CompileError(f"{what} names {printable(repr(name))}, which is no vertex and no module", hint=hint)
        may = hidden if set(meant) & set(hidden) else list(pc.clamped) if outputs else []
        if not may:
            raise CompileError(f"{what} names {name}, an output, whose energy is the loss", hint="give it as loss=")
        by_vertex |= {n: settings[name] for n in meant if n in may}
    yield from by_vertex.items()


def is_in(v: Vertex, module: str) -> bool:
    """Whether an operation of a vertex is in a module or in one of its parts."""
    return any(f"{n.where.module}.".startswith(f"{module}.") for n in v.prediction if n.where.module)


def _vertex(pc: PCGraph, name: str) -> Vertex:
    return next(v for v in pc.vertices if v.name == name)


def learned_updates(pc: PCGraph) -> Iterator[Do]:
    """How the slots of energies learn, where inference has ended; those of outputs that are silent stay."""
    energies = {v.name: v.energy for v in pc.vertices}
    for lasting in pc.lasting:
        if lasting.learned and energies.get(lasting.owner) != FLAT:
            # the error of a vertex that is given is what it sends, Π ε
            by = {"error": f"error / {lasting.slot}"} if lasting.owner in pc.observed else {}
            yield Do(lasting.owner, lasting.slot, substituted(lasting.learned, by))
