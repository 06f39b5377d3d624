"""Parts of an example: fewer samples, and shorter ones, where a program takes any number of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pccompile.ir import Graph, Node, TensorType, Type
from pccompile.ops.registry import definition
from pccompile.pipeline import Compiled
from pccompile.runtime.loaded_program import Interface

WORK = 2 * 10**9
"""How many multiplications a prediction on an example may take that is used whole."""
SAMPLES, LENGTH = 2, 32
"""The least that is left of a batch, and of any other free dimension (kernels and windows must fit)."""
MEETING = 8
"""So many numbers must be behind each that is computed of all samples: that of two has hardly a gradient."""


@dataclass(frozen=True)
class Example:
    """Arguments of a model. `part` says which part of the example they are; '' for all of it.

    large: a prediction on them takes more than WORK.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    part: str = ""
    large: bool = False


def examples(
    compiled: Compiled, interface: Interface, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[Example]:
    """The smallest part first that is worth computing, and the whole example last.

    A part has less of the free dimensions alone, at sizes that the conditions on them allow. A model on another device
    than the CPU gets the whole: an index that points beyond a part would end the process there.
    """
    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    graph, inputs = compiled.graph, interface.named(leaves)
    free = dict(_free(graph, inputs))
    cuttable = all(map(_cuttable, (*inputs.values(), *compiled.imported.tensors.values())))
    for sizes in reversed(list(_sizes(graph, free)) if cuttable else []):
        cut = [
            leaf if n is None else _cut(leaf, interface.types[n], sizes)
            for n, leaf in zip(interface.inputs, leaves, strict=True)
        ]
        if not interface.mismatch(cut, spec):
            own_args, own_kwargs = pytree.tree_unflatten(cut, spec)
            kept = ", ".join(f"{n} of {free[s]} entries of {s}" for s, n in sizes.items() if n < free[s])
            yield Example(own_args, own_kwargs, kept, multiplications(graph, sizes) > WORK)
    yield Example(args, kwargs, large=multiplications(graph, free) > WORK)


def _cuttable(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and tensor.device.type == "cpu"


def _cut(tensor: Tensor, type_: TensorType, sizes: Mapping[sympy.Symbol, int]) -> Tensor:
    """The first entries of `tensor` in each free dimension."""
    part = tensor.detach()
    for axis, dim in enumerate(type_.shape):
        if isinstance(dim, sympy.Expr) and dim.free_symbols <= set(sizes):
            part = part.narrow(axis, 0, max(0, min(int(dim.xreplace(sizes)), part.shape[axis])))
    with torch.inference_mode(False):
        return part.clone().requires_grad_(tensor.requires_grad)


def _free(graph: Graph, inputs: Mapping[str, Tensor]) -> list[tuple[sympy.Symbol, int]]:
    """The dimensions of inputs alone that are free, with their sizes; those of first axes come first."""
    fixed = {s for t in (*graph.params.values(), *graph.buffers.values()) for s in _symbols(t)}
    sources = sorted(graph.dims.items(), key=lambda d: d[1].axis)
    named = {str(s): s for t in graph.inputs.values() for s in _symbols(t)}
    return [
        (named[name], inputs[source.tensor].shape[source.axis])
        for name, source in sources
        if source.tensor in inputs and name in named and named[name] not in fixed
    ]


def _sizes(graph: Graph, free: Mapping[sympy.Symbol, int]) -> Iterator[dict[sympy.Symbol, int]]:
    """Smaller and smaller sizes of the free dimensions, until a prediction takes no more than WORK."""
    sizes = dict(free)
    batch = {t.shape[0] for t in graph.inputs.values() if t.shape}
    for symbol, size in free.items():
        work = multiplications(graph, sizes)
        if work <= WORK:
            return
        least = _samples(graph, sizes, symbol) if symbol in batch else LENGTH
        sizes[symbol] = min(size, max(least, math.floor(size * WORK / work)))
        if sizes[symbol] < size:
            yield dict(sizes)


def multiplications(graph: Graph, sizes: Mapping[sympy.Symbol, int]) -> float:
    """About how many multiplications the products of a graph take: exact for those of two matrices."""
    types = graph.types
    return sum(
        _product(n, types, sizes) for n in graph.nodes if definition(n.op).family in ("multilinear", "composite")
    )


def _product(node: Node, types: Mapping[str, Type], sizes: Mapping[sympy.Symbol, int]) -> float:
    """A product of m × k and k × n numbers has m × n results: the root of what these three multiply to."""
    operands = sorted((max(_numbers(types[i], sizes)) for i in node.inputs), reverse=True)[:2]
    return math.sqrt(math.prod((*operands, max(_numbers(node.type, sizes))))) if len(operands) == 2 else 0.0


def _numbers(type_: Type | None, sizes: Mapping[sympy.Symbol, int]) -> list[float]:
    """How many numbers the tensors of a type hold; 1 where that is known only at run time."""
    if not isinstance(type_, TensorType):
        return [n for t in type_ or () for n in _numbers(t, sizes)] or [1.0]
    known = [d.xreplace(sizes) if isinstance(d, sympy.Expr) else d for d in type_.shape]
    return [math.prod(float(d) for d in known if isinstance(d, int) or d.is_number)]


def _samples(graph: Graph, sizes: Mapping[sympy.Symbol, int], batch: sympy.Symbol) -> int:
    """How many samples are needed: more than two where a number is computed of few numbers of each, such as a mean."""
    types, two = graph.types, {**sizes, batch: SAMPLES}
    needed = [SAMPLES]
    for n in graph.nodes:
        read = [types[i] for i in n.inputs if batch in _symbols(types[i])]
        if read and definition(n.op).family not in ("context", "multilinear") and n.op != "getitem":
            for kind in n.type if isinstance(n.type, tuple) else (n.type,):
                if kind is not None and batch not in _symbols(kind):
                    meeting = max(m for t in read for m in _numbers(t, two)) / max(1.0, *_numbers(kind, two))
                    needed += [math.ceil(SAMPLES * MEETING / meeting)] if meeting >= SAMPLES else []
    return max(needed)


def _each(type_: Type | None) -> Sequence[set[Any]]:
    if isinstance(type_, TensorType):
        return [{s for d in type_.shape if isinstance(d, sympy.Expr) for s in d.free_symbols}]
    return [s for t in type_ or () if t is not None for s in _each(t)]


def _symbols(type_: Type | None) -> set[Any]:
    """The free dimensions in the shapes of a type."""
    return set[Any]().union(*_each(type_))
