r"""Let every vertex of a chain be predicted by the one behind it, too: bidirectional predictive coding.

For a layer v̂_i = φ_i(W_i v_{i−1} + b_i) a mirrored layer, with weights of its own, predicts the layer's input:

    g_{i−1}(v_i) = φ_{i−1}(W'_i v_i + b'_i)        a further energy ½ α ‖v_{i−1} − g_{i−1}(v_i)‖²

φ₀ is the identity, so that the input is predicted, too (Oliviers et al. 2025, arXiv:2505.23415, equation 4). A mirrored
convolution is a transposed one. Each such energy is that of a vertex which predicts g − v, and is observed to be 0:
what it sends both its parents is −∂E/∂v of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pccompile.diagnostics import CompileError, RuleError
from pccompile.ir import Energy, Feedback, Graph, Node, PCGraph, Ref, TensorType, Vertex, map_refs
from pccompile.ir.names import Namer
from pccompile.ops import Builder, Typer, definition
from pccompile.ops.energies import energy
from pccompile.ops.equations import short
from pccompile.passes.derive_rules import derive_rules
from pccompile.passes.insert_vertices import insert_vertices

LINEAR, CONVOLUTION = "aten.linear.default", "aten.convolution.default"
RESHAPING = ("aten.reshape.default", "aten.unsqueeze.default")
HINT = "bidirectional takes chains of linear layers and convolutions, each with an elementwise activation behind it"
MIRROR = "mirror"
"""The path under which the mirrored weights have the paths of their weights, unless the model has something there."""


def mirrored(pc: PCGraph, typer: Typer, weights: tuple[float, float], home: str) -> PCGraph:
    """`pc` with a mirror of every layer, and with the rules of all vertices.

    weights: of the energies of the layers' own predictions and of the mirrored ones. home: where new parameters are.
    Raises CompileError, naming the vertex, where the graph is no chain of such layers.
    """
    layers = _chain(pc)
    graph, leaves, generated = _Mirroring(pc, typer, home).graph(layers)
    marked = {v.name for v in pc.vertices if v.prediction} | set(generated)
    vertices = insert_vertices(replace(graph, outputs=(*graph.outputs, *generated)), marked=marked)
    vertices = derive_rules(vertices, typer)
    forwards, backwards = weights
    costs = {v.name: weighted(forwards) for v in pc.vertices if v.prediction and forwards != 1}
    costs |= dict.fromkeys(generated, weighted(backwards).observed())
    return replace(
        vertices,
        graph=graph,
        vertices=tuple(replace(v, energy=costs.get(v.name)) for v in vertices.vertices),
        outputs=tuple(o for o in vertices.outputs if o.value not in generated),
        observed=dict.fromkeys(generated, ""),
        feedback=leaves,
    )


def weighted(weight: float) -> Energy:
    """½ α ε²."""
    factor = "" if weight == 1 else f"{weight!r} * "
    density, send = f"{factor}error ** 2 / 2", f"{factor}error"
    own = (("weight", weight),)
    return replace(energy("gaussian"), name="half square", density=density, send=send, hold=send, parameters=own)


@dataclass(frozen=True)
class _Layer:
    """A vertex of the chain: what is in front of it, the product in it, and its activation."""

    vertex: Vertex
    before: str
    product: Node
    activation: tuple[Node, ...]


def _chain(pc: PCGraph) -> tuple[_Layer, ...]:
    """The layers from the input to the output. Raises CompileError where there is another graph."""
    graph = pc.graph
    if len(pc.outputs) != 1:
        raise CompileError(f"bidirectional: the model has {len(pc.outputs)} outputs that carry an error", hint=HINT)
    layers, before, weights = list[_Layer](), "", set[str]()
    for v in pc.vertices:
        values = [p for p in v.parents if p in pc.names or p in graph.inputs]
        if not before and len(values) == 1 and values[0] in graph.inputs:
            before = str(values[0])
        if values != [before] or not v.prediction:
            read = ", ".join(values) or "no value"
            raise _refusal(v, f"it reads {read}" + (f", and not {before} alone" if before else ""))
        layers.append(_layer(pc, v, before))
        weight = str(layers[-1].product["weight"])
        if weight in weights:
            raise _refusal(v, f"its weight {graph.origin[weight]} is that of another layer, too")
        weights.add(weight)
        before = str(v.name)
    if pc.context:
        raise CompileError("bidirectional: the model computes what no vertex predicts", pc.context[0].where, HINT)
    return tuple(layers)


def _layer(pc: PCGraph, v: Vertex, before: str) -> _Layer:
    """What a vertex is made of. Raises CompileError where that is no product with an activation behind it."""
    at, product, activation = before, None, list[Node]()
    for n in v.prediction:
        read = [str(i) for i in n.inputs if i not in pc.graph.params and i not in pc.graph.buffers]
        if read != [at]:
            raise _refusal(v, f"{short(n.op)} in it reads more than the value before it")
        at = n.name
        if product is None and n.op in RESHAPING:
            continue
        if product is None and n.op in (LINEAR, CONVOLUTION) and not n.args.get("transposed"):
            product = n
        elif product is not None and definition(n.op).family == "elementwise" and len(n.inputs) == 1:
            activation.append(n)
        else:
            raise _refusal(v, f"{short(n.op)} has no mirror there")
    if product is None or product["weight"] not in pc.graph.params:
        raise _refusal(v, "it multiplies by no parameter of a linear layer or convolution")
    return _Layer(v, before, product, tuple(activation))


def _refusal(v: Vertex, why: str, kind: type[CompileError] = CompileError) -> CompileError:
    return kind(f"bidirectional: vertex {v.name} cannot be mirrored: {why}", v.where, HINT)


class _Mirroring:
    def __init__(self, pc: PCGraph, typer: Typer, home: str) -> None:
        self.pc, self.old, self.typer, self.home = pc, pc.graph, typer, home
        self.namer = Namer((*self.old.leaves, *(n.name for n in self.old.nodes), *pc.names, *self.old.dims))
        self.leaves: dict[str, Feedback] = {}
        self.types: dict[str, TensorType] = {}
        self.origin: dict[str, str] = {}

    def graph(self, layers: Sequence[_Layer]) -> tuple[Graph, dict[str, Feedback], tuple[str, ...]]:
        """The graph with mirrors, their parameters, and the values that say how far each is off."""
        nodes, generated, activation = list[Node](), list[str](), tuple[Node, ...]()
        for layer in layers:
            own = self.mirror(layer, activation)
            nodes += own
            generated.append(own[-1].name)
            activation = layer.activation
        graph = replace(
            self.old,
            params={**self.old.params, **self.types},
            nodes=(*self.old.nodes, *nodes),
            origin={**self.old.origin, **self.origin},
            wanted=self.old.wanted.union(self.types),
        )
        return graph, self.leaves, tuple(generated)

    def mirror(self, layer: _Layer, activation: Sequence[Node]) -> list[Node]:
        """What predicts the value in front of a layer, less that value. activation: how that value was made."""
        product, before, value = layer.product, Ref(layer.before), Ref(layer.vertex.name)
        weight, bias = self.parameters(layer)
        b = Builder({**self.old.types, **self.types}, self.typer, f"{layer.before}_mirror_", layer.vertex.where)
        b.reserved = self.namer.used
        if product.op == LINEAR:
            prediction = b(LINEAR, value, weight, bias)
        else:
            how = [product[k] for k in ("stride", "padding", "dilation")]
            prediction = b(CONVOLUTION, value, weight, bias, *how, True, self.padding(layer), product["groups"])
        prediction = b.view(prediction, self.old.types[layer.before].shape)  # type: ignore[union-attr]
        for n in activation:
            last = prediction
            prediction = b(n.op, *(map_refs(a, lambda _, last=last: last) for a in n.args.values()))  # type: ignore[misc]
        b("aten.sub.Tensor", prediction, before)
        b.rename(len(b.nodes) - 1, self.namer(f"{layer.before}_generated"))
        self.namer.used |= {n.name for n in b.nodes}
        return b.nodes

    def parameters(self, layer: _Layer) -> tuple[Ref, Ref | None]:
        """New leaves for the mirror of a layer: a weight, and a bias that begins as 0 where the layer has one."""
        product, old = layer.product, self.old
        own, path = old.params[str(product["weight"])], old.origin[str(product["weight"])]
        shape = tuple(reversed(own.shape)) if product.op == LINEAR else own.shape
        weight = self.leaf(path, replace(own, shape=shape), Feedback(str(product["weight"]), True, mirror=True))
        if product.args.get("bias") is None:
            return weight, None
        groups = 1 if product.op == LINEAR else product["groups"]
        count = own.shape[1] * groups
        place = f"{path.rpartition('.')[0]}.bias" if "." in path else "bias"
        return weight, self.leaf(place, replace(own, shape=(count,)), Feedback("", False, mirror=True))

    def leaf(self, path: str, type_: TensorType, feedback: Feedback) -> Ref:
        name = self.namer(f"{MIRROR}_{path}")
        self.types[name], self.leaves[name], self.origin[name] = type_, feedback, f"{self.home}.{path}"
        return Ref(name)

    def padding(self, layer: _Layer) -> tuple[int, ...]:
        """What a transposed convolution adds at one side to have the lengths that the layer's input has."""
        product, old = layer.product, self.old
        weight = old.params[str(product["weight"])].shape
        outer, inner = old.types[product["input"]].shape, old.types[Ref(product.name)].shape  # type: ignore[union-attr]
        widths = []
        for i, (stride, pad, dilation) in enumerate(
            zip(product["stride"], product["padding"], product["dilation"], strict=True), 2
        ):
            if not isinstance(outer[i], int) or not isinstance(inner[i], int):
                why = f"its input {old.types[product['input']]} has free lengths"
                raise _refusal(layer.vertex, why, RuleError)
            widths.append(outer[i] - ((inner[i] - 1) * stride - 2 * pad + dilation * (weight[i] - 1) + 1))
        return tuple(widths)
