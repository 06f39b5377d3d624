"""Predicated rows: work on every place in place of those that a mask selects, and weigh results by the mask.

A program that takes the rows for which a mask holds (`nonzero`), works on them row by row and adds the results to where
they came from, has lengths that are known only when it runs. The same sum over all rows, each weighted by its mask, has
none. Gradients are equal: the mask has none, and a row of weight 0 gets none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch

from pccompile.diagnostics import CompileError
from pccompile.ir import DEVICE, Arg, Graph, Node, Ref, TensorType, map_refs
from pccompile.ops import Builder, Typer, definition

NONZERO = "aten.nonzero.default"


def predicate_rows(graph: Graph, typer: Typer) -> Graph:
    """`graph` without lengths that a mask decides. Raises CompileError where rows do more than be added up."""
    return _Rewriter(graph, typer).run() if any(n.op == NONZERO for n in graph.nodes) else graph


@dataclass(frozen=True)
class _Rows:
    """The mask of rows, flat, and how many places it has."""

    mask: Ref
    count: int


class _Rewriter:
    def __init__(self, graph: Graph, typer: Typer) -> None:
        self.graph, self.types, self.b = graph, graph.types, Builder(graph.leaves, typer, "")
        self.b.reserved = {n.name for n in graph.nodes}
        self.env: dict[str, Ref] = {name: Ref(name) for name in graph.leaves}
        self.rows: dict[sympy.Symbol, _Rows] = {}

    def run(self) -> Graph:
        for n in self.graph.nodes:
            self.b.where, self.b.prefix = n.where, f"{n.name}_"
            length = n.tensor.shape[0] if n.op == NONZERO else 0
            if isinstance(length, sympy.Symbol) and self._static(n["self"]):
                self.env[n.name] = self._places(n, length)
            else:
                self._kept(n)
        if chosen := [n for n in self.graph.nodes if n.name in self.graph.outputs and self._symbols(n.name)]:
            raise _refusal(chosen[0])
        return replace(self.graph, nodes=tuple(self.b.nodes))

    def _static(self, name: str) -> bool:
        return all(isinstance(d, int) for d in self.b.type(self.env[name]).shape)

    def _places(self, n: Node, length: sympy.Symbol) -> Ref:
        """The coordinates of all places of the mask of a `nonzero`, whose results are `length` rows."""
        mask = self.env[n["self"]]
        shape = tuple(int(d) for d in self.b.shape(mask))
        count = int(self.b.numel(shape))
        self.rows[length] = _Rows(self.b.view(mask, (count,)), count)
        places = self.b("aten.arange.default", count, dtype=torch.int64, device=DEVICE)
        columns, stride = [], count
        for size in shape:
            stride //= max(size, 1)
            column = self.b("aten.div.Tensor_mode", places, max(stride, 1), rounding_mode="floor")
            columns.append(self.b("aten.remainder.Scalar", column, size))
        return self.b("aten.stack.default", tuple(columns), 1)

    def _kept(self, n: Node) -> None:
        """The same operation on all rows."""
        masks: dict[str, set[Any]] = {i: self._symbols(i) for i in n.inputs}
        mixed = set().union(*masks.values()) if masks else set()
        args = {k: self._arg(a) for k, a in n.args.items()}
        if mixed and not self._symbols(n.name):
            args = self._weighted(n, args, masks)
        elif mixed and not self._row_by_row(n, masks):
            raise _refusal(n)
        type_ = self.b.typer.infer(n.op, args, self.b.types) if mixed else n.type
        self.b.add(replace(n, args=args, type=type_))
        self.env[n.name] = Ref(n.name)

    def _arg(self, arg: Arg) -> Arg:
        arg = map_refs(arg, lambda r: self.env[r])
        if isinstance(arg, tuple):
            return tuple(map(self._arg, arg))
        if isinstance(arg, sympy.Expr):
            length = arg.xreplace({s: sympy.Integer(r.count) for s, r in self.rows.items()})
            return int(length) if length.is_Integer else length
        return arg

    def _symbols(self, name: str) -> set[Any]:
        """The masks that decide lengths of a value in the graph as it was."""
        type_ = self.types[name]
        types = type_ if isinstance(type_, tuple) else (type_,)
        dims = [d for t in types if isinstance(t, TensorType) for d in t.shape if not isinstance(d, int)]
        return {s for d in dims for s in d.free_symbols if s in self.rows}

    def _weighted(self, n: Node, args: dict[str, Arg], masks: Mapping[str, set[Any]]) -> dict[str, Arg]:
        """The arguments of a sum over rows, each weighted by its mask."""
        source = n.args.get(definition(n.op).adds_up)
        if source is None or n["dim"] != 0 or not masks[source]:
            raise _refusal(n)
        (symbol,) = masks[source]
        rows, kind = self.rows[symbol], self.b.type(self.env[source])
        weights = self.b("aten._to_copy.default", rows.mask, dtype=kind.dtype)
        weights = self.b.view(weights, (rows.count, *(1,) * (len(kind.shape) - 1)))
        return {**args, definition(n.op).adds_up: self.b.mul(self.env[source], weights)}

    def _row_by_row(self, n: Node, masks: Mapping[str, set[Any]]) -> bool:
        """Whether each row of the result depends on the same row of what is read, rows being the first axis."""
        first = [self._leads(name) for name in (n.name, *(i for i in masks if masks[i]))]
        if not all(first) or len(set().union(*masks.values())) != 1:
            return False
        known = definition(n.op)
        if known.rows:
            alone = [i for i in n.inputs if masks[i]] == [n[known.rows]]
            return alone and (not known.along or self._spares_rows(n[known.rows], n[known.along], known.along == "dim"))
        if n.op == "aten.index.Tensor":
            return not masks[n["self"]] and None not in n["indices"]
        return n.op == "getitem" or known.formula is not None

    def _leads(self, name: str) -> bool:
        """Whether the length that a mask decides is the first of a value, and no other."""
        type_ = self.types[name]
        shapes = [t.shape for t in (type_ if isinstance(type_, tuple) else (type_,)) if isinstance(t, TensorType)]
        return all(s and s[0] in self.rows and all(isinstance(d, int) for d in s[1:]) for s in shapes)

    def _spares_rows(self, value: Ref, along: Any, axes: bool) -> bool:
        """Whether the first axis is none of those that an operation works along, given by number or, last, by shape."""
        rank = len(self.b.shape(self.env[value]))
        if not axes:
            return len(along) < rank
        dims = along if isinstance(along, tuple) else (along,)
        return bool(dims) and all(d is not None and int(d) % rank != 0 for d in dims)


def _refusal(n: Node) -> CompileError:
    hint = "work on all rows, and weight them by the mask"
    what = f"how many results {n.op} has or reads depends on values, and more is done with them than row by row"
    return CompileError(what, n.where, hint)
