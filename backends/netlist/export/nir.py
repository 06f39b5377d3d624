"""NIR: what of a netlist the Neuromorphic Intermediate Representation 1.0 can say, and the rest by name.

Pedersen et al. (2024), Neuromorphic intermediate representation, doi:10.1038/s41467-024-52259-9. NIR has linear maps,
leaky integrators, thresholds and delays; it has no elementwise functions, products or selections, no plasticity and so
no tying of what learns, and one port a node.

A population is the node of its name, a projection the node of its name between two; messages add up where edges meet. A
tick lasts `DT` seconds: forward Euler at this step is the netlist's own dynamics.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pccompile.backends.netlist.export import library, refuse, unsaid_operations, write
from pccompile.backends.netlist.format import Population, Projection
from pccompile.backends.netlist.netlist import Netlist
from pccompile.backends.netlist.operations import OPERATIONS
from pccompile.backends.netlist.synapses import count, matrix
from pccompile.ir.names import identifier

DT = 0.001
LARGEST = 2**24
"""The most entries of a matrix that stands for a projection."""

Shape = tuple[int, ...]


class NIR:
    """Writes `<name>.nir`."""

    name = "nir"

    def supports(self, net: Netlist) -> tuple[str, ...]:
        """What NIR cannot say, a sentence for each element."""
        return tuple(unsaid(net).values())

    def emit(self, net: Netlist, folder: Path, *, name: str = "", strict: bool = True) -> tuple[Path, ...]:
        """Write the graph; without `strict` what NIR cannot say is left out, and listed in the metadata."""
        data = io.BytesIO()
        graph = to_nir(net, strict)
        library("nir", "pccompile[nir]").write(data, graph)
        return write(folder, {f"{identifier(name or net.spec.name)}.nir": data.getvalue()})


def unsaid(net: Netlist) -> dict[str, str]:
    """Why NIR cannot say it, for each population, projection and parameter that it cannot say."""
    found: dict[str, str] = {}
    shapes, into, inexpressible = Shapes(net), net.spec.into(), unsaid_operations(net, NIR.name)
    for name, p in net.spec.populations.items():
        if p.unit in ("product", "select"):
            found[name] = f"population {name}: {p.unit} units"
        elif p.unit == "map" and not threshold(p):
            found[name] = f"population {name}: the elementwise function {str(p.function)[:60]}"
        elif p.bias is not None and not into[name]:
            found[name] = f"population {name}: constants"
        elif p.bias is not None and p.size**2 > LARGEST and all(OPERATIONS[q.op].unitwise for q in into[name]):
            found[name] = f"population {name}: a bias of {p.size:,} units without weights"
    for q in net.spec.projections:
        if q.name in inexpressible:
            found[q.name] = inexpressible[q.name]
        elif q.target not in found and (entries := _entries(net, shapes, q)) > LARGEST:
            number = count(q, net.spec, net.tensors)
            found[q.name] = f"projection {q.name}: {number:,} synapses as a matrix of {entries:,} entries"
    uses: dict[str, int] = {}
    for q in net.spec.projections:
        uses[str(q.param)] = uses.get(str(q.param), 0) + 1
    for param in sorted(net.spec.plastic()):
        tied = f", tied over {uses[param]} projections" if uses.get(param, 0) > 1 else ""
        found[param] = f"parameter {param}: plasticity{tied}"
    return found


def threshold(p: Population) -> bool:
    """Whether a map population is NIR's threshold at 0."""
    return p.function is not None and p.function.replace(" ", "") == "step(x)"


def _entries(net: Netlist, shapes: Shapes, p: Projection) -> int:
    """The entries of the matrix that a projection needs, 0 for none."""
    if OPERATIONS[p.op].unitwise or shapes.convolution(p) or shapes.pooled(p):
        return 0
    return net.spec.populations[p.pre].size * net.spec.populations[p.target].size


class Shapes:
    """Which populations keep channels and places: those that convolutions and pools reach and nothing else.

    NIR cannot give a flat signal a shape, so all others are flat.
    """

    def __init__(self, net: Netlist) -> None:
        self.spec, self.tensors = net.spec, net.tensors
        into = self.spec.into()
        near = {n for p in self.spec.projections if OPERATIONS[p.op].kernel for n in (p.pre, p.target)}
        self.pools = {p.name: found for p in self.spec.projections if (found := self.pool(p)) is not None}
        near |= {p.target for p in self.spec.projections if p.name in self.pools}
        self.spatial = {n for n in near if self.planes(n)}
        while bad := {n for n in self.spatial if not self.stays(n, into[n])}:
            self.spatial -= bad

    def planes(self, name: str) -> bool:
        """Whether a population is one sample of channels of two dimensions."""
        shape = self.spec.populations[name].shape
        return len(shape) == 4 and shape[0] == 1

    def stays(self, name: str, into: tuple[Projection, ...]) -> bool:
        """Whether all that reaches a population has channels and places, and its bias, if any, is a convolution's."""
        bias = self.spec.populations[name]
        biased = bias.bias is None or (bias.bias_axis == 1 and any(map(self.plain, into)))
        return biased and all(self.keeps(p) for p in into)

    def keeps(self, p: Projection) -> bool:
        """Whether what a projection brings has channels and places."""
        same = self.spec.populations[p.pre].shape == self.spec.populations[p.target].shape
        fits = (OPERATIONS[p.op].unitwise and same) or p.name in self.pools or self.plain(p)
        return p.pre in self.spatial and fits

    def plain(self, p: Projection) -> bool:
        """Whether a projection is NIR's convolution, or the adjoint of one with stride 1, which is one as well."""
        if not OPERATIONS[p.op].kernel or len(p.stride) != 2 or p.groups != 1:
            return False
        kernel = self.tensors[str(p.param)].shape[2:]
        reach = [d * (k - 1) for d, k in zip(p.dilation, kernel, strict=True)]
        if p.transpose and (set(p.stride) != {1} or any(q > r for q, r in zip(p.padding, reach, strict=True))):
            return False
        return len(set(kernel)) == 1  # NIR derives shapes from the first side of a kernel

    def pool(self, p: Projection) -> tuple[Shape, Shape] | None:
        """Kernel and stride of a sum over windows."""
        if not OPERATIONS[p.op].gathers or p.transpose or not self.planes(p.pre) or not self.planes(p.target):
            return None
        (_, c, h, w), (_, channels, *to) = self.spec.populations[p.pre].shape, self.spec.populations[p.target].shape
        index, units = self.tensors[str(p.index)], np.arange(c * h * w).reshape(c, h, w)
        if c != channels or (index < 0).any():
            return None
        first = index.reshape(c, *to, -1)[0]
        kernel = tuple(len(np.unique(f)) for f in (first[0, 0] // w, first[0, 0] % w))
        stride = (
            int(first[1, 0].min() - first[0, 0].min()) // w if to[0] > 1 else kernel[0],
            int(first[0, 1].min() - first[0, 0].min()) if to[1] > 1 else kernel[1],
        )
        if kernel[0] != kernel[1] or min(stride) < 1 or any(k > n for k, n in zip(kernel, (h, w), strict=True)):
            return None
        seen = np.lib.stride_tricks.sliding_window_view(units, kernel, (1, 2))[:, :: stride[0], :: stride[1]]
        same = seen.shape[1:3] == tuple(to) and np.array_equal(np.sort(seen.reshape(index.shape)), np.sort(index))
        return (kernel, stride) if same else None

    def convolution(self, p: Projection) -> bool:
        """Whether a projection is written as a convolution."""
        return self.plain(p) and p.pre in self.spatial

    def pooled(self, p: Projection) -> bool:
        """Whether a projection is written as a pool."""
        return p.name in self.pools and p.pre in self.spatial

    def __call__(self, name: str) -> Shape:
        """The shape of a population's node."""
        p = self.spec.populations[name]
        return p.shape[1:] if name in self.spatial else (p.size,)


class NIRGraph:
    """The nodes and edges of a netlist."""

    def __init__(self, net: Netlist) -> None:
        self.nir, self.net, self.spec = library("nir", "pccompile[nir]"), net, net.spec
        self.dropped, self.shapes = unsaid(net), Shapes(net)
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.keys: dict[str, str] = {}
        into = self.spec.into()
        read = {p.pre for ps in into.values() for p in ps if p.target not in self.dropped}
        for name, p in self.spec.populations.items():
            if name not in self.dropped:
                self.population(name, p)
            elif name in read:
                self.node(name, self.nir.Input(input_type=np.array(self.shapes(name))))
        for name, ps in into.items():
            if name not in self.dropped:
                said = [q for q in ps if q.name not in self.dropped]
                carrier = self.carrier(name, said)
                for q in said:
                    self.projection(q, self.bias(name) if q is carrier else None)
        for name in self.results():
            self.edge(name, self.node(f"{name}.output", self.nir.Output(output_type=np.array(self.shapes(name)))))

    def results(self) -> Iterator[str]:
        """The populations to be read: the model's outputs and all errors."""
        outputs = {port.population for port in self.spec.outputs.values()}
        for name, p in self.spec.populations.items():
            if name not in self.dropped and (name in outputs or (p.role == "error" and p.unit != "input")):
                yield name

    def node(self, name: str, node: Any) -> str:
        """Add a node; return its name in the graph, which is no path in the file."""
        base = key = name.replace("/", "_")
        while key in self.nodes:
            key = f"{base}_{len(self.nodes)}"
        self.nodes[key] = node
        self.keys.setdefault(name, key)
        return key

    def edge(self, pre: str, post: str) -> None:
        """Add an edge between two nodes, or populations."""
        self.edges.append((self.keys.get(pre, pre), self.keys.get(post, post)))

    def population(self, name: str, p: Population) -> None:
        """The node of a population."""
        nir, shape = self.nir, self.shapes(name)
        ones = np.ones(shape)
        match p.unit:
            case "input":
                node = nir.Input(input_type=np.array(shape))
            case "sum":
                node = nir.Scale(scale=ones)
            case "map":
                node = nir.Threshold(threshold=0 * ones)
            case _ if p.leak:
                node = nir.LI(tau=ones * DT / (p.rate * p.leak), r=ones / p.leak, v_leak=0 * ones)
            case _:
                node = nir.I(r=ones * p.rate / DT)
        self.node(name, node)

    def carrier(self, name: str, into: list[Projection]) -> Projection | None:
        """The projection that takes on the bias of a population."""
        if self.spec.populations[name].bias is None:
            return None
        axis = self.spec.populations[name].bias_axis
        ranked = sorted(into, key=lambda p: self.shapes.pooled(p) + OPERATIONS[p.op].unitwise
                        + 2 * (self.shapes.convolution(p) and axis != 1))  # fmt: skip
        if not ranked:
            self.dropped[f"{name}: bias"] = f"population {name}: a bias that no projection takes on"
        return ranked[0] if ranked else None

    def bias(self, name: str) -> np.ndarray:
        """The bias of a population, in its shape."""
        p = self.spec.populations[name]
        value = self.net.tensors[str(p.bias)]
        if p.bias_axis is not None:
            value = value.reshape([-1 if i == p.bias_axis else 1 for i in range(len(p.shape))])
        return np.broadcast_to(value if p.bias_axis is not None else value.reshape(p.shape), p.shape)

    def projection(self, p: Projection, bias: np.ndarray | None) -> None:
        """The nodes of a projection; `bias` is that of its target, if it takes it on."""
        nir, shape, source = self.nir, self.shapes(p.pre), p.pre
        if p.delay:
            source = self.then(source, f"{p.name}: delay", nir.Delay(delay=np.full(shape, p.delay * DT)))
        channelwise = bias is None or self.spec.populations[p.target].bias_axis == 1
        if self.shapes.convolution(p) and channelwise:
            source = self.then(source, p.name, self.convolution(p, bias))
            shape = self.spec.populations[p.target].shape[1:]
        elif self.shapes.pooled(p) and bias is None:
            kernel, stride = self.shapes.pools[p.name]
            pool = nir.SumPool2d(kernel_size=np.array(kernel), stride=np.array(stride), padding=np.zeros(2, dtype=int))
            source, shape = self.then(source, p.name, pool), self.spec.populations[p.target].shape[1:]
            if p.gain != 1:
                source = self.then(source, f"{p.name}: gain", nir.Scale(scale=np.full(shape, p.gain)))
        elif not OPERATIONS[p.op].unitwise or bias is not None:
            source, _ = self.flattened(source, p, shape)
            weight = matrix(p, self.spec, self.net.tensors)
            node = nir.Linear(weight=weight) if bias is None else nir.Affine(weight=weight, bias=bias.ravel())
            source, shape = self.then(source, p.name, node), (len(weight),)
        elif p.gain != 1:
            source = self.then(source, p.name, nir.Scale(scale=np.full(shape, p.gain)))
        if shape != self.shapes(p.target):
            source, shape = self.flattened(source, p, shape)
        if (self.keys.get(source, source), self.keys[p.target]) in self.edges:
            source = self.then(source, p.name, nir.Scale(scale=np.ones(shape)))
        self.edge(source, p.target)

    def then(self, source: str, name: str, node: Any) -> str:
        """A node fed by another."""
        made = self.node(name, node)
        self.edge(source, made)
        return made

    def flattened(self, source: str, p: Projection, shape: Shape) -> tuple[str, Shape]:
        """A signal without channels and places."""
        if len(shape) == 1:
            return source, shape
        node = self.nir.Flatten({"input": np.array(shape)}, start_dim=0)
        return self.then(source, f"{p.name}: flat", node), (math.prod(shape),)

    def convolution(self, p: Projection, bias: np.ndarray | None) -> Any:
        """A convolution, or the adjoint of one: its kernel turned round."""
        kernel, padding = self.net.tensors[str(p.param)] * p.gain, p.padding
        if p.transpose:
            kernel = np.swapaxes(kernel, 0, 1)[..., ::-1, ::-1].copy()
            padding = tuple(d * (k - 1) - q for d, k, q in zip(p.dilation, kernel.shape[2:], padding, strict=True))
        bias = np.zeros(kernel.shape[0]) if bias is None else bias[0, :, 0, 0].copy()
        return self.nir.Conv2d(input_shape=self.shapes(p.pre)[1:], weight=kernel, stride=p.stride, padding=padding,
                               dilation=p.dilation, groups=1, bias=bias)  # fmt: skip


def to_nir(net: Netlist, strict: bool = True) -> Any:
    """The `nir.NIRGraph` of a netlist; its inputs are input populations, its outputs the model's, and all errors.

    strict: raise CompileError for all that NIR cannot say. Otherwise it is left out and listed in the metadata under
    "dropped"; a population that is left out and read becomes an input.
    """
    nir = library("nir", "pccompile[nir]")
    if strict:
        refuse("NIR", tuple(unsaid(net).values()))
    graph = NIRGraph(net)
    metadata = {"generator": "pccompile", "name": net.spec.name, "dt": DT}
    if graph.dropped:
        metadata["dropped"] = "\n".join(graph.dropped.values())
    return nir.NIRGraph(graph.nodes, graph.edges, metadata=metadata)


EXPORTER = NIR()
