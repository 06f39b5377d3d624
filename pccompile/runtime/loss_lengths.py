"""For which lengths of outputs and targets a loss was compiled: it may branch on them, or count by them."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pccompile.diagnostics import CompileError
from pccompile.frontends.imported import Imported
from pccompile.frontends.signature import Varied
from pccompile.ir import Dim, TensorType
from pccompile.runtime.loaded_program import Interface
from pccompile.runtime.program_cache import CallKey, Captured, ProgramKey

MANY = 8
"""After so many programs of one loss for other lengths there is a warning."""
ANY = 2
"""Stands for a length that data decide, on which no loss that was compiled rests."""


def varying(captured: Captured, outputs: Sequence[Tensor], targets: Sequence[Any]) -> Varied:
    """The dimensions of a loss's arguments that can have other lengths in other calls: free ones, and as long ones."""
    shapes = [type_.shape for type_ in _outputs(captured)]
    free = {(i, a) for i, shape in enumerate(shapes) for a, n in enumerate(shape) if not isinstance(n, int)}
    lengths = {outputs[i].shape[a] for i, a in free}
    tensors = [(i, t) for i, t in enumerate(targets, len(outputs)) if isinstance(t, Tensor)]
    return frozenset(free | {(i, a) for i, t in tensors for a, n in enumerate(t.shape) if n in lengths})


def _outputs(captured: Captured) -> list[TensorType]:
    graph = captured.imported.graph
    types = graph.types
    return [t for t in (types[o] for o in graph.outputs) if isinstance(t, TensorType)]


def refuse_lengths_of_data(captured: Captured, loss: Imported) -> None:
    """Raise CompileError where a loss counts by, or branches on, a length of an output that data decide.

    It is not known which program a call would need before the model has run.
    """
    decided = loss.typer.decided_on()
    for i, (type_, name) in enumerate(zip(_outputs(captured), loss.inputs, strict=False)):
        own = loss.graph.inputs[name].shape if name is not None else ()
        for axis, (length, taken) in enumerate(zip(type_.shape, own, strict=False)):
            if not is_told(length, captured.interface) and (isinstance(taken, int) or decided & taken.free_symbols):
                what = (
                    f"the loss counts by dimension {axis} of output {i} or branches on it, and data decide its length"
                )
                raise CompileError(what, hint="take the loss of pc(x) outside, or a mean in the place of a count")


def _takes(taken: Interface, captured: Captured, inputs: Mapping[str, Tensor], target: Any) -> bool:
    """Whether a loss that takes what `taken` says can be that of a call."""
    leaves = pytree.tree_leaves(target)
    given = [(name, t) for name, t in zip(reversed(taken.inputs), reversed(leaves), strict=False) if name is not None]
    lengths = {d: n for name, t in given for d, n in zip(taken.types[name].shape, t.shape, strict=False)}
    outputs = []
    for type_, name in zip(_outputs(captured), taken.inputs, strict=False):
        shape = shape_of(type_, captured.interface, inputs)
        own = taken.types[name].shape if name is not None else shape
        told = [lengths.get(d, ANY) if n is None else n for n, d in zip(shape, own, strict=True)]
        outputs.append(torch.empty(told, dtype=type_.dtype, device="meta"))
    return taken.mismatch([*outputs, *leaves], taken.in_spec) is None


def program_key(captured: Captured, key: CallKey, args: Any, kwargs: Any, target: Any) -> ProgramKey:
    """Which program of a capture a call uses: with a loss the first that takes its lengths, or else a new one."""
    kind = ProgramKey(captured.wanted(key), *key[3:])
    if not key.target:
        return kind
    inputs, form = captured.interface.bind(args, kwargs), _similar(key.target)
    for i in itertools.count():
        kind = kind._replace(target=(form, i))
        runtime = captured.programs.get(kind)
        if runtime is None and i == MANY:
            what = f"the loss is compiled for {MANY + 1} lengths, by which it counts or on which it branches"
            warnings.warn(f"{what}; pad inputs and targets to a few lengths", stacklevel=2)
        if runtime is None or (runtime.taken and _takes(runtime.taken, captured, inputs, target)):
            return kind
    raise AssertionError


def target_form(target: Any, inputs: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """What of a call with a loss a program may rest on: its structure, types, lengths, and what is no tensor."""
    leaves, spec = pytree.tree_flatten(target)
    forms = ((t.dtype, t.shape) if isinstance(t, Tensor) else (type(t), repr(t)) for t in leaves)
    return spec, tuple(forms), tuple(t.shape for t in inputs.values())


def _similar(form: tuple[Any, ...]) -> tuple[Any, ...]:
    """What programs share that differ at most in the lengths that they are for: lengths of 1 are told apart."""
    spec, forms, _ = form
    return spec, *((t, tuple(n == 1 for n in n_s) if isinstance(n_s, torch.Size) else n_s) for t, n_s in forms)


def is_told(length: Dim, interface: Interface) -> bool:
    """Whether the inputs of a call say how long a dimension is; else data do, when the program runs."""
    if isinstance(length, int):
        return True
    read = {d for t in interface.types.values() for d in t.shape if isinstance(d, sympy.Symbol)}
    return all(s in read for s in length.free_symbols)


def shape_of(type_: TensorType, interface: Interface, inputs: Mapping[str, Tensor]) -> tuple[int | None, ...]:
    """The shape that a value of this type has in a call; None for lengths that data decide."""
    return tuple(int(interface.length(n, inputs)) if is_told(n, interface) else None for n in type_.shape)
