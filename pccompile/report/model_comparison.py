"""Two compiled models, or two circuits, held against each other: what one has and the other has not, or differently."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from pccompile.backends.netlist import Netlist
from pccompile.diagnostics import CompileError, listing
from pccompile.report.explain import facts_of
from pccompile.report.tables import Page, Report, Table, count
from pccompile.runtime.module import CompiledModule
from pccompile.runtime.pieces import ModuleInPieces

Facts = Mapping[str, tuple[str, ...]]
"""What is known of a part, by title."""
Parts = Mapping[tuple[str, str], Facts]
"""The parts of a model by kind and name."""
SHOWN, LINES = 30, 60
"""The most parts that are written out for a reader, and the most lines of a text."""
MANY = {"vertex": "vertices", "plasticity": "plasticities"}


@dataclass(frozen=True)
class Change:
    """A part that differs, and what of it does; `first` or `second` is None where that one has no such part."""

    kind: str
    name: str
    first: Facts | None
    second: Facts | None


@dataclass(frozen=True)
class ModelComparison(Report):
    """What differs between two models.

    names: what they are called. sizes: numbers of both by what they count. changes: parts in the order of the first,
    then those of the second alone. same: how many parts of each kind are equal. texts: by what they are, the lines in
    which schedule and generated code differ, as a unified diff.
    """

    names: tuple[str, str]
    sizes: Mapping[str, tuple[int, int]]
    changes: tuple[Change, ...]
    same: Mapping[str, int]
    texts: Mapping[str, tuple[str, ...]]

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.changes and not any(self.texts.values())

    def as_dict(self) -> dict[str, Any]:
        """All differences."""
        return {**super().as_dict(), "equal": self.equal}

    @property
    def page(self) -> Page:
        """Sizes, then each part that differs, then the texts, long ones cut."""
        rows = tuple((what, f"{a:,}", f"{b:,}") for what, (a, b) in self.sizes.items())
        alone = [[c for c in self.changes if side(c) is None] for side in (_second, _first)]
        lines = [
            f"only in {name}: {listing((c.name for c in some), 10)}"
            for name, some in zip(self.names, alone, strict=True)
            if some
        ]
        changed = [c for c in self.changes if c.first is not None and c.second is not None]
        for c in changed[:SHOWN]:
            lines += [f"{c.kind} {c.name}", *_sides(c)]
        if len(changed) > SHOWN:
            lines.append(f"… and {len(changed) - SHOWN} more that differ")
        equal = ", ".join(count(n, kind, MANY.get(kind, "")) for kind, n in self.same.items() if n)
        lines.append(f"equal: {equal or 'nothing'}")
        for what, text in self.texts.items():
            lines += ["", f"{what}: {'equal' if not text else ''}".rstrip(), *text[:LINES]]
            if len(text) > LINES:
                lines.append(f"… and {count(len(text) - LINES, 'more line')}: --json has all")
        return Page((Table(("", *(f">{n}" for n in self.names)), rows), "", *lines))


def _first(change: Change) -> Facts | None:
    return change.first


def _second(change: Change) -> Facts | None:
    return change.second


def _sides(change: Change) -> Iterator[str]:
    for title in dict.fromkeys((*(change.first or ()), *(change.second or ()))):
        for sign, side in (("-", change.first), ("+", change.second)):
            for i, text in enumerate((side or {}).get(title, ())):
                yield f"  {sign} {title if not i else '':<11} {text}"


def compare_models(
    first: CompiledModule | Netlist, second: CompiledModule | Netlist, names: tuple[str, str] = ("first", "second")
) -> ModelComparison:
    """What differs between two compiled models, or between two circuits, part by part; parts are the same by name.

    Of models: vertices with their equations and rules, the schedule and the generated code. Of circuits: populations,
    projections, plasticities, tensors with their numbers, and ports. Raises CompileError for a model and a circuit, and
    for models in pieces.
    """
    if isinstance(first, Netlist) and isinstance(second, Netlist):
        return _compared(names, (_circuit_parts(first), _circuit_parts(second)), (_units(first), _units(second)), {})
    if isinstance(first, Netlist) or isinstance(second, Netlist):
        raise CompileError("a circuit and a compiled model have no parts in common", hint="compare two of a kind")
    for pc in (first, second):
        if isinstance(pc, ModuleInPieces):
            raise CompileError("a model in pieces is not compared", hint='capture="path", or compare pc.pieces')
    pairs = {
        "schedule": (str(first.compiled.program), str(second.compiled.program)),
        "generated code": (first.compiled.source.text, second.compiled.source.text),
    }
    texts = {what: _unified(*pair, names) for what, pair in pairs.items()}
    return _compared(names, (_parts(first), _parts(second)), (_sizes(first), _sizes(second)), texts)


def _compared(
    names: tuple[str, str],
    parts: tuple[Parts, Parts],
    sizes: tuple[Mapping[str, int], Mapping[str, int]],
    texts: Mapping[str, tuple[str, ...]],
) -> ModelComparison:
    changes, same = list[Change](), dict.fromkeys((kind for table in parts for kind, _ in table), 0)
    for key in dict.fromkeys((*parts[0], *parts[1])):
        a, b = (table.get(key) for table in parts)
        if a == b:
            same[key[0]] += 1
        elif a is None or b is None:
            changes.append(Change(*key, a, b))
        else:
            titles = [k for k in dict.fromkeys((*a, *b)) if a.get(k) != b.get(k)]
            changes.append(Change(*key, *({k: side[k] for k in titles if k in side} for side in (a, b))))
    both = {k: (sizes[0].get(k, 0), sizes[1].get(k, 0)) for k in dict.fromkeys((*sizes[0], *sizes[1]))}
    return ModelComparison(names, both, tuple(changes), same, texts)


def _unified(first: str, second: str, names: tuple[str, str]) -> tuple[str, ...]:
    return tuple(difflib.unified_diff(first.splitlines(), second.splitlines(), *names, lineterm="", n=1))


def _parts(pc: CompiledModule) -> Parts:
    """Vertices, and the parameters with their numbers."""
    model: nn.Module = pc.__dict__["model"]
    compiled = pc.compiled
    found = {("vertex", v.name): facts_of(compiled, model, v) for v in compiled.pc.vertices}
    for p in compiled.graph.params:
        found["parameter", compiled.graph.origin[p]] = _numbers(compiled.imported.tensors[p].detach().cpu())
    return found


def _numbers(tensor: Tensor) -> dict[str, tuple[str, ...]]:
    """Type and shape of a tensor, its norm, and a digest of its bytes: the numbers are equal where that is."""
    data = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    norm = f"norm {float(tensor.double().norm()):.6g}, " if not tensor.is_complex() else ""
    form = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
    return {"type": (form,), "numbers": (f"{norm}sha256 {hashlib.sha256(data).hexdigest()[:12]}",)}


def _sizes(pc: CompiledModule) -> dict[str, int]:
    compiled = pc.compiled
    tensors = [compiled.imported.tensors[p] for p in compiled.graph.params]
    return {
        "vertices": len(compiled.pc.vertices),
        "rules": sum(len(v.how) for v in compiled.pc.vertices),
        "parameters": len(tensors),
        "entries of parameters": sum(t.numel() for t in tensors),
        "lines of schedule": len(str(compiled.program).splitlines()),
        "lines of code": len(compiled.source.text.splitlines()),
    }


KINDS = {
    "phases": "phase", "populations": "population", "projections": "projection", "plasticity": "plasticity",
    "inputs": "input", "targets": "target", "clamps": "clamp", "outputs": "output", "fixed": "fixed input",
}  # fmt: skip
"""The parts of a circuit by the table of the format that lists them."""


def _circuit_parts(net: Netlist) -> Parts:
    found: dict[tuple[str, str], Facts] = {}
    for table, kind in KINDS.items():
        entries = getattr(net.spec, table)
        name = "param" if kind == "plasticity" else "name"
        named = entries.items() if isinstance(entries, Mapping) else [(getattr(e, name), e) for e in entries]
        for key, entry in named:
            mark = (kind, str(key))
            while mark in found:  # several rules may change one parameter
                mark = (kind, f"{mark[1]}'")
            found[mark] = {k: (str(v),) for k, v in msgspec.structs.asdict(entry).items() if k != name}
    for key, array in net.tensors.items():
        found["tensor", key] = _numbers(torch.from_numpy(np.ascontiguousarray(array)))
    return found


def _units(net: Netlist) -> dict[str, int]:
    costs = net.resources()
    return {
        "populations": len(net.spec.populations),
        "projections": len(net.spec.projections),
        "units": costs.units,
        "synapses": costs.synapses,
        "parameters": costs.parameters,
        "products a learning tick": costs.updates,
    }
