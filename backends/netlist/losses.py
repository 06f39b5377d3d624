"""The error units of a circuit's outputs: what they compare the outputs with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from pccompile.backends.netlist.circuit import Ids
from pccompile.backends.netlist.format import Port
from pccompile.backends.netlist.lower import Lowering, Unsupported
from pccompile.diagnostics import CompileError
from pccompile.ir import Graph, Ref, TensorType
from pccompile.ir.names import Namer
from pccompile.ops import Builder, Typer
from pccompile.ops.functions import STOP

Loss = Literal["squared-error", "cross-entropy", "none"]
LOSSES: tuple[Loss, ...] = ("squared-error", "cross-entropy", "none")


def class_axis(shape: tuple[object, ...]) -> int:
    """The axis along which torch's cross-entropy has its classes."""
    return 1 if len(shape) > 1 else 0


def with_probabilities(graph: Graph, typer: Typer, outputs: tuple[str, ...]) -> tuple[Graph, dict[str, str]]:
    """`graph` with the softmax of each of `outputs` as a further output that carries no error, and their names."""
    b = Builder(graph.types, typer, "probability_")
    names: dict[str, str] = {}
    for o in outputs:
        type_ = graph.types[o]
        assert isinstance(type_, TensorType)
        names[o] = b("aten._softmax.default", b(STOP, Ref(o)), class_axis(type_.shape), False)
    return replace(graph, nodes=(*graph.nodes, *b.nodes), outputs=(*graph.outputs, *names.values())), names


class Outputs:
    """Gives each output of a circuit its port and its error population.

        squared-error  ε = t − y           L = ½ Σ (t − y)²
        cross-entropy  ε = t − softmax(y)  L = −Σ t log softmax(y), t one-hot or probabilities that add up to 1
        none           ε is set from outside, to −∂L/∂y

    Losses are sums, over samples too: fixed prediction has no other place for a mean than the rate of plasticity.
    """

    def __init__(self, lo: Lowering, loss: Loss, probabilities: dict[str, str]) -> None:
        self.lo, self.c, self.loss, self.probabilities = lo, lo.c, loss, probabilities
        self.namer = Namer((*lo.graph.leaves, *(n.name for n in lo.graph.nodes)))
        self.ports: dict[str, Port] = {}
        self.targets: dict[str, Port] = {}
        self.clamps: dict[str, Port] = {}
        self.errors: dict[str, str] = {}

    def add(self, names: Sequence[str]) -> None:
        """Add the outputs, each as often as it is named."""
        ids: list[Ids] = []
        vertices: dict[str, str] = {}
        for name in names:
            vertices[name] = vertices.get(name) or self.namer(f"{name}_output")
            self.lo.node = replace(self.lo.node, name=vertices[name])
            try:
                ids.append(self.lo.ids(Ref(name)))
            except Unsupported as e:
                raise CompileError(f"output {name} has no circuit: {e}") from e
        read = Counter(name for p in self.c.projections for name in p.reads)
        read.update(source for array in ids for source in self.c.sources(array))
        for i, (name, array) in enumerate(zip(names, ids, strict=True)):
            label = name if name not in names[:i] else f"{name}.{names[:i].count(name) + 1}"
            if name in self.lo.active:
                self._compared(label, name, vertices[name], array, read)
            else:
                self.lo.node = replace(self.lo.node, name=vertices[name])
                self.ports[label] = Port(population=self.lo.relayed(array, ""), shape=array.shape)

    def _compared(self, label: str, name: str, vertex: str, ids: Ids, read: Mapping[str, int]) -> None:
        """An output that carries an error: a population that nothing else reads."""
        found = self.c.whole(ids)
        if (
            found is None
            or read[found] > 1
            or found not in self.c.active
            or self.c.populations[found].shape != ids.shape
        ):
            found = self.c.population(f"{vertex}.v", ids.shape, "sum", "value", vertex, active=True)
            self.c.project(ids, found)
        self.ports[label] = Port(population=found, shape=ids.shape)
        self.errors[found] = self._error(label, name, found, ids.shape)

    def _error(self, label: str, name: str, output: str, shape: tuple[int, ...]) -> str:
        vertex, base = self.c.populations[output].vertex, output.removesuffix(".v")
        if self.loss == "none":
            error = self.c.population(f"{base}.e", shape, "input", "error", vertex)
            self.clamps[label] = Port(population=error, shape=shape)
            return error
        target = self.c.population(f"{base}.t", shape, "input", "target", vertex)
        error = self.c.population(f"{base}.e", shape, "sum", "error", vertex)
        self.c.project(self.c.ids(target), error)
        if self.loss == "squared-error":
            self.c.project(self.c.ids(output), error, gain=-1.0)
            self.targets[label] = Port(population=target, shape=shape)
        else:
            self.c.project(self.lo.ids(Ref(self.probabilities[name])), error, gain=-1.0)
            axis = class_axis(shape)
            without = tuple(s for i, s in enumerate(shape) if i != axis)
            self.targets[label] = Port(population=target, shape=without, encode="one_hot", axis=axis)
        return error


def encoded(port: Port, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The states that a presented tensor stands for, replicas in front: integers one-hot, numbers as they are.

    shape: of the population. Raises ValueError where the value does not fit.
    """
    if port.encode == "one_hot" and value.dtype.kind in "iub":
        width = shape[port.axis]
        if value.size and (value.min() < 0 or value.max() >= width):
            raise ValueError(f"labels and tokens go from 0 to {width - 1}, not from {value.min()} to {value.max()}")
        axis = port.axis if port.axis < 0 else port.axis - len(shape)
        hot = np.zeros((*value.shape, width))
        np.put_along_axis(hot, value.astype(np.int64)[..., None], 1, -1)
        return np.moveaxis(hot, -1, axis).reshape(-1, *shape)
    if value.size % max(int(np.prod(shape)), 1):
        raise ValueError(f"shape {list(value.shape)} does not fit {list(shape)}")
    return np.asarray(value, dtype=np.float64).reshape(-1, *shape)
