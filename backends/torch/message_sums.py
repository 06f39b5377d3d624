"""Sums of messages, with what they have in common taken out.

Messages are linear in the errors, so J₁ᵀε₁ + J₂ᵀε₂ with a shared last step Aᵀ is Aᵀ(…). That puts the pieces of a split
value side by side with one `cat` instead of adding padded copies, applies a shared view once, and turns the products of
a weight that is used at many time steps into one.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch

from pccompile.backends.torch.statements import Label, Role
from pccompile.backends.torch.writer import Writer
from pccompile.ir import DEVICE, ERROR, Arg, Dim, Node, Ref, Step, TensorType, Type, Vertex, flat, map_refs
from pccompile.ops import definition

PULL = Label("pull", Role.SUM)
MANY = 4
"""From this many products on, one product of concatenated factors is faster than as many accumulations."""
DEEPEST = 64
"""So many steps, one behind another, are taken out of a sum; what is before them is written for each term."""


@dataclass(frozen=True)
class Term:
    """A message `to` a value, or a step on its way: the value `result` of a vertex's rules, `err` being its error.

    `written` holds what messages of the vertex to other values have written of these rules.
    """

    vertex: Vertex
    result: Ref
    err: Ref
    read: dict[str, Ref]
    nodes: dict[str, Node]
    w: Writer
    gain: float = 1.0
    to: str = ""
    written: dict[Ref, Ref] = field(default_factory=dict)

    @property
    def node(self) -> Node | None:
        """The operation that makes the value; None where it is read as it is."""
        return self.nodes.get(self.result)

    def at(self, result: Ref) -> Term:
        """An earlier step of the same message."""
        return replace(self, result=result)

    def type_of(self, name: Ref) -> object:
        """The type of the error or of a value that the rules make; None for what they read."""
        return None if name in self.read else self.made_type(name)

    def write(self, ref: Ref | None = None) -> Ref:
        """The statements of this term, and the value that they end in."""
        name = self.result if ref is None else ref
        waiting = [name]
        while waiting:
            node = None if self._is_there(waiting[-1]) else self.nodes[waiting[-1]]
            before = [i for i in node.inputs if not self._is_there(i)] if node else []
            if before:
                waiting += reversed(before)
                continue
            waiting.pop()
            if node is not None:
                sent = node.op == "getitem" and ref is None and node.name == name
                label = Label(f"pull_{self.to}" if sent else node.name)
                even = all(self.made_type(i) == node.type for i in node.inputs)
                args = {k: map_refs(a, self._value) for k, a in node.args.items()}
                self.written[Ref(node.name)] = self.w.call(node.op, args, label, even)
        if name != ERROR:
            self.read.setdefault(name, self._value(name))
        return self._value(name)

    def _is_there(self, name: Ref) -> bool:
        return name == ERROR or name in self.read or name in self.written

    def _value(self, name: Ref) -> Ref:
        if name == ERROR:
            return self.err
        return self.read[name] if name in self.read else self.written[name]

    def made_type(self, name: Ref) -> Type | None:
        """The type of a value where this vertex makes it."""
        if name == ERROR:
            return self.vertex.type
        return self.nodes[name].type if name in self.nodes else None


def sent_apart(steps: Sequence[Step], vertices: Mapping[str, Vertex]) -> frozenset[tuple[str, str]]:
    """Pairs of a vertex and a child whose slots are sent one by one, and weighed where they arrive.

    Messages are linear, so a sum can be sent or the sum of what was sent be taken: whichever makes for fewer messages,
    or else for sums of smaller tensors.
    """
    slots: dict[tuple[str, str], set[str]] = {}
    sums: Counter[tuple[str, str]] = Counter()
    for d in flat(steps):
        if not isinstance(d.carries, str):
            for child, weights in d.carries.items():
                slots.setdefault((d.vertex, child), set()).update(weights)
                sums[d.vertex, child] += 1
    fewer = {pair for pair, count in sums.items() if len(slots[pair]) < count}
    as_many = [(v, c) for (v, c), count in sums.items() if len(slots[v, c]) == count > 1 and v in vertices]
    return frozenset(fewer.union((v, c) for v, c in as_many if larger(vertices[c].type, vertices[v].type)))


def larger(a: Type, b: Type) -> bool:
    """Whether a tensor of one type has more elements than one of another, whatever the lengths that are open."""
    if not (isinstance(a, TensorType) and isinstance(b, TensorType)):
        return False
    ratio = sympy.cancel(sympy.prod(a.shape) / sympy.prod(b.shape)) if 0 not in b.shape else sympy.Integer(0)
    return bool(ratio.is_number and ratio > 1)


def early(w: Writer, err: Ref, gain: float, child: Vertex, to: Vertex | None) -> tuple[Ref, float]:
    """An error with a factor for its message, the factor taken in where the message is the larger of the two."""
    if to is None or not larger(to.type, child.type):
        return err, gain
    return times(w, err, gain, f"weighted_{child.name}"), 1.0


def weighed(w: Writer, parts: Mapping[str, Ref], weights: Mapping[str, float]) -> tuple[Ref, float]:
    """The sum of a vertex's slots with weights, and a factor that is left for later.

    It is taken as a weighted mean, one kernel a part, the sum of the weights being the factor; where a weight is below
    0, in units of the largest one.
    """
    if min(weights.values()) < 0:
        (first, gain), *rest = sorted(weights.items(), key=lambda part: -abs(part[1]))
        value = parts[first]
        for slot, weight in rest:
            value = w("aten.add.Tensor", value, parts[slot], alpha=weight / gain, label=Label(f"sum_{slot}"))
        return value, gain
    (first, gain), *rest = weights.items()
    value = parts[first]
    for slot, weight in rest:
        gain += weight
        value = w("aten.lerp.Scalar", value, parts[slot], weight / gain, label=Label(f"mean_{slot}"))
        w.made[value].over = True
    return value, gain


def total(w: Writer, terms: Sequence[Term]) -> Ref:
    """The sum of `terms`, each times its gain."""
    gains = {t.gain for t in terms}
    if len(gains) > 1:
        return _sum(w, sorted(terms, key=lambda t: t.gain != 1))
    (gain,) = gains
    part = _sum(w, [replace(t, gain=1.0) for t in terms])
    return times(w, part, gain)


def _summands(term: Term) -> list[Term]:
    """The terms of a message that is itself a sum, as where a vertex reads several pieces of one value."""
    parts, waiting = [], [term]
    while waiting:
        term = waiting.pop()
        n = term.node
        if n is None or n.name in term.read or n.op != "aten.add.Tensor" or n["alpha"] != 1:
            parts.append(term)
            continue
        both = [n["self"], n["other"]]
        if all(isinstance(p, Ref) and term.type_of(p) == n.type for p in both):
            waiting += [term.at(p) for p in reversed(both)]
        else:
            parts.append(term)
    return parts


def _sum(w: Writer, terms: Sequence[Term], depth: int = 0) -> Ref:
    """The sum of `terms`. depth: how many steps that they shared have been taken out."""
    terms = [part for t in terms for part in _summands(t)]
    if len(terms) == 1:
        return plus(w, [], terms[0])[0]
    groups: dict[object, list[Term]] = {}
    for i, t in enumerate(terms):
        groups.setdefault((_tail(t) if depth < DEEPEST else None) or i, []).append(t)
    values: list[Ref] = []
    for key, group in groups.items():
        kind = key[0] if isinstance(key, tuple) and len(group) > 1 else ""
        if kind == "product" and len(group) >= MANY:
            values.append(_products(w, group))
        elif kind == "piece":
            values.append(_pieces(w, group, depth + 1))
        elif kind == "shared":
            values.append(_shared(w, group, depth + 1))
        else:
            for t in group:
                values = plus(w, values, t)
        values = [added(w, values)]
    return values[0]


def plus(w: Writer, values: Sequence[Ref], term: Term) -> list[Ref]:
    """The sum of values and a term, as one value."""
    value = term.write()
    if not values:
        return [times(w, value, term.gain)]
    return [w("aten.add.Tensor", added(w, values), value, alpha=alpha(term.gain), label=PULL)]


def times(w: Writer, value: Ref, factor: float, name: str = "weighted") -> Ref:
    """A value with a factor, in the memory of the value if it has its own."""
    if factor == 1:
        return value
    product = w("aten.mul.Tensor", value, factor, label=Label(name))
    w.made[product].over = True
    return product


def alpha(gain: float) -> float:
    """A factor as torch.add takes it where it is not given."""
    return 1 if gain == 1 else gain


def added(w: Writer, values: Sequence[Ref]) -> Ref:
    """The sum of values."""
    return functools.reduce(lambda x, y: w("aten.add.Tensor", x, y, label=PULL), values)


def end_alike(terms: Sequence[Term]) -> bool:
    """Whether two of some messages have a last step that can be taken together."""
    tails = [_tail(part) for t in terms for part in {p.result: p for p in _summands(t)}.values()]
    found = Counter(tail for tail in tails if tail)
    return any(count > 1 for count in found.values())


def _operand(node: Node) -> str:
    """The argument that the error comes in by."""
    return "grad_output" if "grad_output" in node.args else "self"


def _fixed_args(node: Node, leave: Sequence[str]) -> tuple[Arg, ...]:
    return tuple((k, type(a), a) for k, a in node.args.items() if k not in leave)


def _tail(t: Term) -> object:
    """What a term must share with another for their last step to be taken together; None if it cannot be."""
    n = t.node
    if n is None or n.name in t.read:
        return None
    if n.op == "aten.slice_backward.default" and n["step"] == 1:
        return ("piece", n.op, n["input_sizes"], n["dim"], n.tensor.dtype)
    if n.op == "aten.select_backward.default":
        return ("piece", n.op, n["input_sizes"], n["dim"], n.tensor.dtype)
    if definition(n.op).distributes:
        return ("shared", n.op, _fixed_args(n, (_operand(n),)), _shape_of(t, n))
    if n.op == "aten.mm.default":
        left = t.nodes.get(n["self"])
        if left is not None and left.op == "aten.t.default" and left.name not in t.read:
            return ("product", n.op, t.gain)
    return None


def _shape_of(t: Term, n: Node) -> object:
    operand = n[_operand(n)]
    inner = t.nodes.get(operand)
    if inner is not None:
        return inner.type
    return t.vertex.type if operand == ERROR else operand


def _shared(w: Writer, group: Sequence[Term], depth: int) -> Ref:
    first = group[0].node
    assert first is not None
    name = _operand(first)
    inner = _sum(w, [t.at(t.node[name]) for t in group if t.node], depth)
    return w.call(first.op, {**first.args, name: inner}, Label(first.name))


def _pieces(w: Writer, group: Sequence[Term], depth: int) -> Ref:
    """Pieces of one value along one dimension: side by side where they tile it, else the sum of padded pieces."""
    nodes = [t.node for t in group if t.node]
    selects = nodes[0].op == "aten.select_backward.default"
    dim, sizes = nodes[0]["dim"], nodes[0]["input_sizes"]
    size = sizes[dim]
    spans: dict[tuple[Any, Any], list[Term]] = {}
    for t, n in zip(group, nodes, strict=True):
        start = _place(n["index"] if selects else n["start"], size)
        end = None if selects else _place(n["end"], size)
        spans.setdefault((start, end), []).append(t)
    order = sorted(spans, key=lambda s: s[0] if isinstance(s[0], int) else 2**62)
    if len(spans) == 1:
        return _shared_piece(w, group, depth)
    if not _apart(order, size, selects):
        return added(w, [_shared_piece(w, spans[span], depth) for span in order])
    parts: list[Ref] = []
    edge: Any = 0
    for start, end in order:
        parts += _gap(w, sizes, dim, edge, start, selects, nodes[0].tensor.dtype)
        parts.append(_sum(w, [t.at(t.node["grad_output"]) for t in spans[start, end] if t.node], depth))
        edge = start + 1 if selects else end
    parts += _gap(w, sizes, dim, edge, size, selects, nodes[0].tensor.dtype)
    return w("aten.stack.default" if selects else "aten.cat.default", tuple(parts), dim, label=Label("pieces"))


def _place(at: Any, size: Dim) -> Any:
    """A place counted from the front, where that is known."""
    if isinstance(at, int) and at > 2**62:
        return size
    if isinstance(at, int) and isinstance(size, int):
        return max(at + size, 0) if at < 0 else min(at, size)
    return at


def _apart(order: Sequence[tuple[Any, Any]], size: object, selects: bool) -> bool:
    """Whether pieces lie side by side or apart, in places that are known."""
    if selects:
        return isinstance(size, int)
    if all(isinstance(e, int) for span in order for e in span) and isinstance(size, int):
        return all(a[1] <= b[0] for a, b in itertools.pairwise(order))
    edges = [0, *(span[1] for span in order)]
    return all(span[0] == e for span, e in zip(order, edges, strict=False)) and edges[-1] == size


def _gap(
    w: Writer, sizes: Sequence[Dim], dim: int, start: int, end: int, selects: bool, dtype: torch.dtype
) -> list[Ref]:
    """Zeros for the places from `start` to `end`, which no piece covers."""
    if start == end:
        return []
    dim %= len(sizes)
    if selects:
        shape = (*sizes[:dim], *sizes[dim + 1 :])
        return [_zeros(w, shape, dtype)] * (end - start)
    return [_zeros(w, (*sizes[:dim], end - start, *sizes[dim + 1 :]), dtype)]


def _zeros(w: Writer, shape: tuple[Dim, ...], dtype: torch.dtype) -> Ref:
    return w("aten.zeros.default", shape, dtype=dtype, device=DEVICE, label=Label("zeros"))


def _shared_piece(w: Writer, group: Sequence[Term], depth: int) -> Ref:
    return plus(w, [], group[0])[0] if len(group) == 1 else _shared(w, group, depth)


def _products(w: Writer, group: Sequence[Term]) -> Ref:
    """Σ aᵢᵀ bᵢ as one product."""
    lefts, rights = [], []
    for t in group:
        n = t.node
        assert n is not None
        lefts.append(t.write(t.nodes[n["self"]]["self"]))
        rights.append(t.write(n["mat2"]))
    left = w("aten.cat.default", tuple(lefts), 0, label=Label("errors"))
    right = w("aten.cat.default", tuple(rights), 0, label=Label("presynaptic"))
    return times(w, w("aten.mm.default", w("aten.t.default", left), right, label=PULL), group[0].gain)
