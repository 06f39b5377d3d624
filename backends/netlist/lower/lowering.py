"""The value units of a circuit from a graph of simple operations, one operation after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pccompile.backends.netlist.circuit import Circuit, Ids
from pccompile.backends.netlist.format import Fixed, Port, UnitKind
from pccompile.backends.netlist.lower.registry import circuit
from pccompile.backends.netlist.lower.values import Choice, Complex, Const, Param, Signal, Tokens, Value, Values
from pccompile.backends.netlist.transforms import fresh
from pccompile.diagnostics import Collector, first_line
from pccompile.ir import Arg, Graph, Node, Ref, TensorType
from pccompile.ops import definition
from pccompile.ops.interpret import interpret
from pccompile.ops.typer import Typer


class Unsupported(Exception):
    """An operation, as it is used here, has no circuit; the text says why."""


class Lowering:
    """Builds the value units of `graph`.

    tensors: parameters and buffers by their names in the graph. examples: values of its inputs; those of integers
    and booleans become wiring where they are more than tokens. active: the names that carry an error. `ruled` holds
    populations whose messages are not the adjoint of what they read, with the node whose rule gives them.
    """

    def __init__(
        self,
        graph: Graph,
        tensors: Mapping[str, torch.Tensor],
        examples: Mapping[str, torch.Tensor],
        active: frozenset[str],
        typer: Typer,
    ) -> None:
        self.graph, self.tensors, self.examples, self.active, self.typer = graph, tensors, examples, active, typer
        self.types = graph.types
        self.c = Circuit(frozenset(graph.origin.get(name, name) for name in (*graph.params, *graph.buffers)))
        self.env: dict[str, Values] = {}
        self.inputs: dict[str, Port] = {}
        self.draws: dict[str, Port] = {}
        self.fixed: dict[str, Fixed] = {}
        self.drawn: dict[str, torch.Tensor] = {}
        self.held: dict[str, Ids] = {}
        self.ruled: dict[str, Node] = {}
        self.tables: dict[tuple[str, int], Ids] = {}
        self.node = Node("", "", {}, ())

    def run(self) -> dict[str, Values]:
        """Build everything; return what each name stands for. Raises CompileError with all that has no circuit."""
        self._leaves()
        problems = Collector()
        failed: set[str] = set()
        for n in self.graph.nodes:
            if any(i in failed for i in n.inputs):
                failed.add(n.name)
                continue
            self.node = n
            try:
                self.env[n.name] = self.lowered(n)
            except Unsupported as e:
                failed.add(n.name)
                problems.add(f"the netlist has no circuit for {n.op}: {e}", n.where)
        problems.raise_if_any()
        return self.env

    def _leaves(self) -> None:
        for name, type_ in self.graph.inputs.items():
            shape = tuple(self.examples[name].shape)
            if type_.dtype.is_floating_point:
                carries = name in self.active
                population = self.c.population(f"{name}.v", shape, "input", "value", name, carries)
                self.inputs[name] = Port(population=population, shape=shape)
                self.env[name] = Signal(self.c.ids(population))
            else:
                self.env[name] = Tokens(name, np.arange(self.examples[name].numel()).reshape(shape))
        for name in self.graph.params:
            self.env[name] = Param(name)
        for name in self.graph.buffers:
            self.env[name] = Const(self.tensors[name])

    def lowered(self, n: Node) -> Values:
        """What the results of a node stand for."""
        if n.op == "getitem":
            whole = self.env[n["of"]]
            assert isinstance(whole, tuple)
            return whole[n["index"]]
        if definition(n.op).random:
            return self._draw(n)
        own = circuit(n.op)
        for i in n.inputs:
            if own is None or i != n.args.get(own.tokens):
                self.freeze(i)
        if all(isinstance(self.env[i], Const) for i in n.inputs):
            return self._folded(n)
        if own is None:
            raise Unsupported("it is not among the operations that are built from units and projections")
        try:
            return own.build(self, n)
        except (ValueError, RuntimeError, IndexError) as e:
            raise Unsupported(f"for these shapes and arguments ({first_line(e)})") from e

    def _draw(self, n: Node) -> Values:
        """A population that is given random numbers at each presentation; the example is drawn now."""
        sample = self.evaluated(n, {i: self.example(i) for i in n.inputs})
        if not sample.is_floating_point():
            raise Unsupported("random integers would change the wiring at each presentation")
        population = self.c.population(f"{n.name}.v", sample.shape, "input", "context", n.name)
        self.draws[n.name] = Port(population=population, shape=tuple(sample.shape))
        self.drawn[n.name] = sample
        return Signal(self.c.ids(population))

    def example(self, name: str) -> torch.Tensor:
        """A tensor of the right shape for an operation that reads only the shape, or a constant itself."""
        value = self.env[name]
        if isinstance(value, Const):
            return value.tensor
        type_ = self.types[name]
        assert isinstance(type_, TensorType)
        return torch.zeros(tuple(map(int, type_.shape)), dtype=type_.dtype)

    def freeze(self, name: str) -> None:
        """Let tokens be a constant: from now on the circuit holds for this value of the input only."""
        value = self.env[name]
        if isinstance(value, Tokens):
            whole = self.examples[value.source]
            entries = whole.to(torch.int64).contiguous().numpy()
            digest = hashlib.sha256(entries.tobytes()).hexdigest()
            self.fixed[value.source] = Fixed(shape=tuple(whole.shape), digest=digest)
            self.env[name] = Const(whole.reshape(-1)[torch.from_numpy(value.places)])

    def _folded(self, n: Node) -> Values:
        result = self.evaluated(n, {i: self._constant(i) for i in n.inputs})
        return tuple(map(Const, result)) if isinstance(result, tuple | list) else Const(result)

    def _constant(self, name: str) -> torch.Tensor:
        value = self.env[name]
        assert isinstance(value, Const)
        return value.tensor

    def evaluated(self, n: Node, values: Mapping[str, torch.Tensor]) -> Any:
        """The result of a node on tensors."""
        try:
            return interpret(n, values)
        except (RuntimeError, ValueError, AttributeError) as e:
            raise Unsupported(first_line(e)) from e

    def value(self, name: Arg) -> Value:
        """What a single tensor stands for."""
        value = self.env[name]
        assert not isinstance(value, tuple)
        return value

    def constant(self, arg: Arg) -> torch.Tensor | None:
        """The tensor that an argument is, where no presentation changes it."""
        if isinstance(arg, Ref):
            value = self.value(arg)
            return value.tensor if isinstance(value, Const) else None
        return None if arg is None else torch.tensor(arg, dtype=torch.float64)

    def ids(self, arg: Arg) -> Ids:
        """The units that hold a tensor; made where a parameter or a constant has none yet."""
        if not isinstance(arg, Ref):
            return self.c.constant(np.asarray(arg, dtype=np.float64), self.node.name)
        match value := self.value(arg):
            case Complex():
                raise Unsupported("a complex number is read as a real one")
            case Signal():
                return value.ids
            case Const():
                if value.tensor.is_complex():
                    raise Unsupported("a complex constant")
                return self.c.constant(value.tensor.to(torch.float64).numpy(), self.node.name)
            case Param():
                ids = self._held(value.name)
                return ids.swapaxes(-1, -2) if value.transposed else ids
            case Choice():
                return self._positions(value)
        raise Unsupported(f"input {value.source} is used as a number")

    def parts(self, arg: Ref) -> Ids:
        """The units of a tensor as [..., 2], real and imaginary parts; a real one has no imaginary part."""
        value = self.value(arg)
        if isinstance(value, Complex):
            return value.ids
        if isinstance(value, Const) and value.tensor.is_complex():
            return self.c.constant(torch.view_as_real(value.tensor.to(torch.complex128)).numpy(), self.node.name)
        ids = self.ids(arg)
        return np.stack([ids, np.zeros_like(ids)], -1)

    def _positions(self, choice: Choice) -> Ids:
        """Units that hold, as a number, the position that was chosen."""
        if not choice.positions.size:
            raise Unsupported("the index of a pooling window is used as a number")
        numbers = self.c.constant(choice.positions[choice.units].astype(np.float64) + 1, self.node.name)
        (source,) = self.c.sources(numbers)
        name = self.population(
            "sum", choice.units.shape, [], "position", bias=self.c.tensor("const", np.full(choice.units.shape, -1.0))
        )
        table = numbers.reshape(choice.units.size, -1)
        index = self.c.tensor("index", np.where(table > 0, table - self.c.first[source], -1))
        elements = self.c.tensor("index", choice.units.reshape(-1))
        self.c.connect(source, name, "route", by=choice.by, index=index, elements=elements)
        return self.c.ids(name)

    def _held(self, name: str) -> Ids:
        """A population whose values are a parameter."""
        if name not in self.held:
            path = self.parameter(name)
            population = self.c.population(
                f"{name}.v", self.c.tensors[path].shape, "sum", "value", name, name in self.active, bias=path
            )
            self.held[name] = self.c.ids(population)
        return self.held[name]

    def parameter(self, name: str) -> str:
        """The path of a parameter, its entries stored."""
        path = self.graph.origin.get(name, name)
        return self.c.parameter(path, self.tensors[name].detach().to(torch.float64).contiguous().numpy())

    def shape(self, n: Node | None = None) -> tuple[int, ...]:
        """The shape of the node's result."""
        return tuple(map(int, (n or self.node).tensor.shape))

    def token_population(self, source: str, shape: tuple[int, ...], classes: int) -> str:
        """An input population that holds an integer input as one-hot units."""
        name = self.c.population(f"{source}.v", (*shape, classes), "input", "value", source)
        further = source in self.inputs
        key = f"{source}#{classes}" if further else source
        self.inputs[key] = Port(population=name, shape=shape, encode="one_hot", argument=source if further else None)
        return name

    def population(
        self,
        unit: UnitKind,
        shape: Sequence[int],
        reads: Sequence[Ids],
        label: str = "",
        passive: bool = False,
        **more: Any,
    ) -> str:
        """A new population for the current node; it carries an error where the node and something that it reads do."""
        name = self.node.name
        carries = not passive and name in self.active and any(map(self.c.carries, reads))
        base = fresh(f"{name}_{label.removeprefix('_')}", self.types) if label else name
        return self.c.population(f"{base}.v", shape, unit, "value", name, carries, **more)

    def summed(self, ids: Ids, gain: float = 1.0, label: str = "") -> Ids:
        """Units that add up the last axis of `ids`."""
        name = self.population("sum", ids.shape[:-1], [ids], label)
        size = self.c.populations[name].size
        self.c.collect(ids.reshape(size, ids.shape[-1]), name, gain=gain)
        return self.c.ids(name)

    def products(self, x: Ids, y: Ids, label: str = "") -> Ids:
        """Units that multiply `x` and `y`, of the same shape."""
        name = self.population("product", x.shape, [x, y], label)
        self.c.project(x, name, "x")
        self.c.project(y, name, "y")
        return self.c.ids(name)

    def relayed(self, ids: Ids, label: str = "in") -> str:
        """A population that is `ids` in order; made where there is none."""
        population = self.c.whole(ids)
        if population is not None and self.c.populations[population].shape == ids.shape:
            return population
        name = self.population("sum", ids.shape, [ids], label)
        self.c.project(ids, name)
        return name
