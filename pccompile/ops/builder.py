"""Writes operations: the only way in which rules, expansions and traces add nodes."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import replace
from typing import cast

from pccompile.diagnostics import NOWHERE, Location
from pccompile.ir import DEVICE, Arg, Dim, Node, Ref, TensorType, Type, map_refs
from pccompile.ops.signatures import SIGNATURES, bind
from pccompile.ops.typer import Typer


class Builder:
    """Appends nodes and infers their types. `b("aten.mul.Tensor", x, y)` is the name of the product.

    `wants` holds the names that carry an error: a rule need not write messages to others.
    """

    def __init__(self, types: Mapping[str, Type], typer: Typer, prefix: str, where: Location = NOWHERE) -> None:
        self.types: MutableMapping[str, Type] = ChainMap({}, cast(dict[str, Type], types))
        self.typer, self.prefix, self.where = typer, prefix, where
        self.nodes: list[Node] = []
        self.wants: set[str] = set()
        self.reserved: set[str] = set()
        self.updates: dict[str, Ref] = {}
        self._counts: dict[str, int] = {}
        self._known: dict[object, Ref] = {}
        self._made: dict[str, Node] = {}

    def __call__(self, op: str, *args: Arg, **kwargs: Arg) -> Ref:
        """Append `op(args)` unless the same call stands already; return the name of its result."""
        bound = bind(op, args, kwargs)
        key = (op, tuple((type(a), a) for a in bound.values()))
        random = op in SIGNATURES and SIGNATURES[op].random
        if key not in self._known or random:
            name = Ref(self._name(op))
            node = Node(name, op, bound, self.typer.infer(op, bound, self.types), self.where)
            self.add(node)
            self._known[key] = name
        return self._known[key]

    def add(self, node: Node) -> None:
        """Append `node` as it is."""
        self.nodes.append(node)
        self.types[node.name] = node.type
        self._made[node.name] = node

    def reuse(self, node: Node) -> None:
        """Take `node`, which stands already, where the same call is written again."""
        self._known.setdefault((node.op, tuple((type(a), a) for a in node.args.values())), Ref(node.name))

    def current(self, buffer: Arg) -> Arg:
        """The value that a buffer has by now."""
        return self.updates.get(buffer, buffer)

    def update(self, buffer: Arg, value: Ref) -> None:
        """Give a buffer a new value."""
        self.updates[buffer] = value

    def rename(self, index: int, name: str) -> None:
        """Give node number `index`, which must be read by later nodes only, another name."""
        old = self.nodes[index].name
        swap = {old: Ref(name)}
        for i in range(index, len(self.nodes)):
            n = self.nodes[i]
            args = {k: map_refs(a, lambda r: swap.get(r, r)) for k, a in n.args.items()}
            self.nodes[i] = replace(n, name=name if i == index else n.name, args=args)
            self._made[self.nodes[i].name] = self.nodes[i]
        self.types[name] = self.types.pop(old)
        self.updates = {k: swap.get(v, v) for k, v in self.updates.items()}
        self._known.clear()

    def _name(self, op: str) -> str:
        base = op.split(".")[1] if "." in op else op
        base = f"{self.prefix}{base.strip('_')}"
        count = self._counts.get(base, 1)
        name = base if count == 1 else f"{base}_{count}"
        while name in self.types or name in self.reserved:
            count += 1
            name = f"{base}_{count}"
        self._counts[base] = count
        return name

    def get(self, tuple_: Ref, index: int) -> Ref:
        """The result number `index` of a node that has several."""
        return self("getitem", tuple_, index)

    def type(self, name: Arg) -> TensorType:
        """The type of a tensor."""
        found = self.types[name]
        assert isinstance(found, TensorType)
        return found

    def shape(self, name: Arg) -> tuple[Dim, ...]:
        """The shape of a tensor."""
        return self.type(name).shape

    def mul(self, x: Arg, y: Arg) -> Ref:
        """x * y, broadcast."""
        return self("aten.mul.Tensor", x, y)

    def view(self, x: Ref, shape: Iterable[Dim]) -> Ref:
        """`x` in another shape; itself where that changes nothing."""
        shape, made = tuple(shape), self._made.get(x)
        if made is not None and made.op == "aten.reshape.default":
            x = made["self"]
        return x if self.shape(x) == shape else self("aten.reshape.default", x, shape)

    def sum(self, x: Ref, dims: Iterable[int], keepdim: bool = False) -> Ref:
        """The sum over `dims`; `x` itself where there are none."""
        dims = tuple(dims)
        return self("aten.sum.dim_IntList", x, dims, keepdim) if dims else x

    def reduce_to(self, x: Ref, type_: TensorType) -> Ref:
        """Undo broadcasting and promotion: sum `x` over what was repeated, then cast it to `type_`."""
        shape = self.shape(x)
        extra = len(shape) - len(type_.shape)
        if extra < 0:
            x = self.view(x, type_.shape)
        elif shape != type_.shape:
            kept = [extra + i for i, d in enumerate(type_.shape) if d == 1 and shape[extra + i] != 1]
            x = self.sum(self.sum(x, kept, keepdim=True), range(extra))
        if self.type(x).dtype != type_.dtype:
            x = self("aten._to_copy.default", x, dtype=type_.dtype)
        return x

    def expand_to(self, x: Ref, shape: Iterable[Dim]) -> Ref:
        """`x` repeated to `shape`."""
        shape = tuple(shape)
        return x if self.shape(x) == shape else self("aten.expand.default", x, shape)

    def zeros(self, type_: TensorType) -> Ref:
        """Zeros of type `type_`."""
        return self("aten.zeros.default", type_.shape, dtype=type_.dtype, device=DEVICE)

    @staticmethod
    def numel(shape: Iterable[Dim]) -> Dim:
        """The number of entries of a tensor of that shape."""
        return math.prod(shape)
