r"""μPC: constants at a network's linear edges that keep its stream at one scale at any depth (arXiv:2505.13124).

Weights are drawn N(0, 1), and an edge with n inputs to each of its units is multiplied by

    ordinary                              g / √(n k)       k computed summands meet at its end
    the last of a branch into a stream    g / √(n k M)     M is the most such merges on a path through the network
    to an output                          1 / n
    the query of an attention             1 / √d more, so that scores have 1/d in place of 1/√d

with g = 1/√E[φ(z)²], z standard normal, of the activation φ in front of it. An average over q cells is an edge with
n = 1/q, whose constant is taken over by the edge behind it. Streams, norms, embeddings and biases have 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import sympy
import torch
from torch import Tensor

from pccompile.analysis.mupc_edges import (
    CAST,
    FILL,
    PRODUCT,
    QUOTIENT,
    SOFTMAX,
    SUM,
    Edge,
    EdgeReader,
    Factor,
)
from pccompile.ir import Arg, Graph, Node, Ref
from pccompile.ops import definition
from pccompile.ops.interpret import interpret

NODES = 80
"""Of the Gauss-Hermite rule by which E[φ(z)²] is taken."""


def factors(graph: Graph, attention: bool = True) -> dict[str, Factor]:
    """The factor of each parameter that has one, by its name in `graph`, which is in canonical form.

    attention: whether scores are to have 1/d. Raises CompileError with everything that cannot be told.
    """
    return _Reader(graph, attention).factors()


class _Reader(EdgeReader):
    def __init__(self, graph: Graph, attention: bool) -> None:
        super().__init__(graph)
        self.attention = attention
        self.merges = {n.name: found for n in graph.nodes if (found := self.merge(n)) is not None}

    def factors(self) -> dict[str, Factor]:
        """All factors. Raises CompileError."""
        most = self.most_merges()
        summands, branches, last = self.summands(), self.branches(), self.readouts()
        factors: dict[str, Factor] = {}
        for name, e in self.edges.items():
            merges = most if name in branches else 0
            f = self.factor(e, name in last, summands.get(name, 1), merges)
            if e.weight in factors and not math.isclose(factors[e.weight].scale, f.scale):
                self.refuse(e.node, f"{self.path(e.weight)} is used with other factors elsewhere", "untie it")
            factors[e.weight] = f
        if self.attention:
            self.scores(factors)
        self.problems.raise_if_any()
        return factors

    def factor(self, e: Edge, last: bool, k: int, merges: int) -> Factor:
        """The factor of an edge; merges: M where it is the last of a branch, else 0."""
        gain, pooled, activation = self.behind(e)
        if last:
            return Factor(pooled / e.n, f"to an output, n = {e.n}")
        said = [f"n = {e.n}", f"k = {k}" if k > 1 else "", f"M = {merges}" if merges else ""]
        said += [f"g = {gain:.4g} of {activation}" if activation else ""]
        return Factor(gain * pooled / math.sqrt(e.n * k * max(merges, 1)), ", ".join(filter(None, said)))

    # what is in front of an edge

    def behind(self, e: Edge) -> tuple[float, float, str]:
        """g of the activation that an edge reads, √q of averages on the way, and the activation's name."""
        name, cells = self.stripped(e.read), 1
        while name in self.nodes and (q := self.cells(self.nodes[name])):
            cells *= q
            name = self.stripped(self.nodes[name].inputs[0])
        n = self.nodes.get(name)
        if n is None or not definition(n.op).activation:
            return 1.0, math.sqrt(cells), ""
        return self.gain(n), math.sqrt(cells), n.op.split(".")[1]

    def cells(self, n: Node) -> int:
        """Over how many cells a node averages; 0 where it does not."""
        if not definition(n.op).averages:
            return 0
        if "kernel_size" not in n.args:
            shape = self.shape(n["self"])
            lengths = [shape[d] for d in (n.args.get("dim") or range(len(shape)))]
            if not all(isinstance(d, int) for d in lengths):
                self.refuse(n, "it averages over a length that is free", "compile it with fixed lengths")
                return 1
            return math.prod(lengths)
        return math.prod(n["kernel_size"])

    def gain(self, n: Node) -> float:
        """1/√E[φ(z)²] of an activation; 1 where it has further tensors, as a prelu has."""
        if len(set(n.inputs)) > 1:
            return 1.0
        points, weights = _normal_rule()
        values = interpret(n, {n.inputs[0]: points})
        return 1 / math.sqrt(float((weights * values.square()).sum()))

    # what is at its end

    def merge(self, n: Node) -> tuple[Ref, Ref] | None:
        """Of a sum of two values, the stream and the branch into it; None where there is no stream."""
        if n.op != SUM or not all(isinstance(a, Ref) and a in self.moved for a in (n["self"], n["other"])):
            return None
        for stream, branch in ((n["self"], n["other"]), (n["other"], n["self"])):
            if self.leads(self.stripped(stream), branch):
                return stream, branch
        return None

    def leads(self, start: Ref, end: Ref) -> bool:
        """Whether `end` is computed from `start`."""
        waiting, seen = [end], {end}
        while waiting:
            at = waiting.pop()
            if at == start:
                return True
            before = [i for i in (self.nodes[at].inputs if at in self.nodes else ()) if i in self.moved]
            waiting += (i for i in before if i not in seen)
            seen.update(before)
        return False

    def most_merges(self) -> int:
        """The most merges on a path."""
        count: dict[str, int] = {}
        for n in self.graph.nodes:
            before = max((count.get(i, 0) for i in n.inputs), default=0)
            count[n.name] = before + (n.name in self.merges)
        return max(count.values(), default=0)

    def summands(self) -> dict[str, int]:
        """How many computed summands meet where an edge ends."""
        counts: dict[str, int] = {}
        for n in self.graph.nodes:
            if n.op == SUM and n.name not in self.merges:
                both = [a for a in (n["self"], n["other"]) if isinstance(a, Ref) and a in self.moved]
                for a in both if len(both) == 2 else ():
                    for e in self.ends(a, n, strict=False):
                        counts[e] = counts.get(e, 1) + 1
        return counts

    def branches(self) -> set[str]:
        """The last edges of branches into streams."""
        return {e for name, (_, branch) in self.merges.items() for e in self.ends(branch, self.nodes[name])}

    def readouts(self) -> set[str]:
        """The edges to outputs, a softmax or an activation behind them or not."""
        readouts = set[str]()
        for o in self.graph.outputs:
            name = self.stripped(Ref(o))
            n = self.nodes.get(name)
            if n is not None and n.name not in self.edges and _closes(n):
                name = self.stripped(n.inputs[0])
            readouts |= {name} & self.edges.keys()
        return readouts

    def ends(self, name: Ref, sum_: Node, strict: bool = True) -> Iterator[str]:
        """The edges that a summand ends in, activations behind them or not."""
        name = self.stripped(name)
        n = self.nodes.get(name)
        if n is not None and n.name in self.edges:
            yield n.name
        elif n is not None and definition(n.op).activation:
            yield from self.ends(n.inputs[0], sum_, strict)
        elif n is not None and n.op == SUM and n.name not in self.merges:
            for a in (n["self"], n["other"]):
                if isinstance(a, Ref) and a in self.moved:
                    yield from self.ends(a, sum_, strict)
        elif strict:
            what = f"{n.op.split('.')[1].strip('_')} {n.name}" if n is not None else str(name)
            self.refuse(sum_, f"a branch ends in {what}, where no factor is seen", "end it with a linear layer")

    # attention

    def scores(self, factors: dict[str, Factor]) -> None:
        """Multiply queries by 1/√d more, where scores are divided by √d."""
        hint = 'attention="keep" leaves scores as they are'
        for n in self.graph.nodes:
            if n.op not in SOFTMAX:
                continue
            product = self.scored(n)
            if product is not None:
                self.score(product, self.number(n, product), factors)
            elif (hidden := self.product_behind(n)) is not None:
                self.refuse(hidden, "how its softmax is scaled cannot be told", hint)

    def product_behind(self, softmax: Node) -> Node | None:
        """A product of two values that a softmax reads without a linear layer between."""
        waiting, seen = list(softmax.inputs), set[str]()
        while waiting:
            n = self.nodes.get(waiting.pop())
            if n is None or n.name in seen or n.name in self.edges:
                continue
            seen.add(n.name)
            if definition(n.op).product and all(i in self.moved for i in n.inputs):
                return n
            waiting += [i for i in n.inputs if i in self.moved]
        return None

    def scored(self, softmax: Node) -> Node | None:
        """The product of two values whose softmax is taken, a mask on the way or not."""
        name: Ref | None = softmax.inputs[0]
        while name is not None and name in self.nodes:
            n = self.nodes[name]
            if definition(n.op).product and n.name not in self.edges:
                return n if all(i in self.moved for i in n.inputs) else None
            masked = n.op == FILL or (n.op == SUM and n["other"] not in self.moved)
            name = n.inputs[0] if masked else self.through(n)
        return None

    def number(self, softmax: Node, product: Node) -> float:
        """What scores are multiplied by, in front of the product and behind it."""
        scale, waiting = 1.0, [softmax.inputs[0], *product.inputs]
        for start in waiting:
            name = start
            while name in self.nodes and name != product.name:
                n = self.nodes[name]
                if n.op in (PRODUCT, QUOTIENT) and isinstance(n["other"], int | float):
                    scale *= n["other"] if n.op == PRODUCT else 1 / n["other"]
                before = n.inputs[0] if n.op in (FILL, SUM) and start == softmax.inputs[0] else self.through(n)
                if before is None:
                    break
                name = before
        return scale

    def score(self, product: Node, number: float, factors: dict[str, Factor]) -> None:
        """Take 1/√d more into the weight of a query."""
        query = product.inputs[0]
        d, name = self.shape(query)[-1], self.stripped(query)
        hint = 'attention="keep" leaves scores as they are'
        if not isinstance(d, int) or not math.isclose(number, d**-0.5, rel_tol=1e-4):
            self.refuse(product, f"scores are multiplied by {number:.4g}, not by 1/√{d}", hint)
        elif name not in self.edges or self.edges[name].node.op != "aten.linear.default":
            self.refuse(product, "its query is no linear layer's result", hint)
        else:
            edge = self.edges[name]
            rows = self.rows(edge, query)
            for parameter in (edge.weight, edge.node["bias"]):
                if isinstance(parameter, str):
                    before = factors.get(parameter, Factor(1.0, "bias"))
                    scale = tuple(before.scale * (d**-0.5 if r in rows else 1.0) for r in range(self.units(edge)))
                    factors[parameter] = Factor(before.scale, f"{before.why}, scores 1/{d}", scale)

    def units(self, e: Edge) -> int:
        """How many units an edge leads to."""
        return int(self.shape(Ref(e.weight))[0])

    def rows(self, e: Edge, query: Ref) -> set[int]:
        """The units of an edge that are the query: their numbers, taken through the wiring."""
        chain, name = list[Node](), query
        while name != e.node.name:
            chain.append(self.nodes[name])
            before = self.through(self.nodes[name])
            assert before is not None
            name = before
        shape = tuple(d if isinstance(d, int) else 2 for d in self.shape(name))
        values: dict[str, Tensor] = {name: torch.arange(shape[-1], dtype=torch.float64).expand(shape)}
        for n in reversed(chain):
            moved = self.through(n)
            assert moved is not None
            values[n.name] = values[moved] if n.op in (PRODUCT, QUOTIENT, CAST) else interpret(_numbered(n), values)
        return {int(r) for r in values[query].unique().tolist()}


def _numbered(n: Node) -> Node:
    """`n` with 2 for each length that is free."""

    def number(a: Arg) -> Arg:
        if isinstance(a, sympy.Expr):
            return int(a.subs(dict.fromkeys(a.free_symbols, 2)))
        return tuple(map(number, a)) if isinstance(a, tuple) else a

    return replace(n, args={k: number(a) for k, a in n.args.items()})


def _closes(n: Node) -> bool:
    """Whether an operation turns what an output reads into a probability or the like."""
    return definition(n.op).distribution or definition(n.op).activation


def _normal_rule() -> tuple[Tensor, Tensor]:
    """Points and weights by which the mean of a function of a standard normal number is taken."""
    diagonal = torch.arange(1, NODES, dtype=torch.float64).sqrt()
    points, vectors = torch.linalg.eigh(torch.diag(diagonal, 1) + torch.diag(diagonal, -1))
    return points, vectors[0].square()
