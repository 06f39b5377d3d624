"""Give inputs, vertices and their elements roles: inferred, given, or without a target.

A free input becomes a vertex without energy that begins at the argument. A vertex whose value is given is an end, as an
output is, with its own energy in the place of a loss; what reads it reads the given value. Where elements are given,
what reads the vertex reads them and the others of it, and the energy of the two kinds stands at two vertices. So
algorithms see vertices that move and ends that do not, as ever.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from pccompile.diagnostics import CompileError, listing, printable
from pccompile.ir import FLAT, Energy, Graph, Node, Output, PCGraph, Ref, Role, TensorType, Vertex, live, map_refs
from pccompile.ir.names import Namer
from pccompile.ops import bind
from pccompile.ops.energies import energy
from pccompile.passes.energies import is_in
from pccompile.passes.insert_vertices import insert_vertices

Free = Sequence[str] | Mapping[str, Energy | None]
"""Inputs that inference infers, or a table of them with the energy of each as its prior, None for none."""
WHERE, SAME = "aten.where.self", "aten.expand.default"
ALL = -1
"""The position that stands for all outputs."""


@dataclass(frozen=True)
class Roles:
    """What a program infers and what it is given, by names that a user wrote.

    free: inputs, with the energy that is their prior. given: vertices whose value is given. masked: names of which only
    some elements are given. silent: the outputs without a target, by their positions among those with an error, or ALL.
    shown: whether inference hands on what it ends in, predictions of outputs among them.
    """

    free: tuple[tuple[str, Energy | None], ...] = ()
    given: frozenset[str] = frozenset()
    masked: frozenset[str] = frozenset()
    silent: frozenset[int] = frozenset()
    shown: bool = False

    def __bool__(self) -> bool:
        return bool(self.free or self.given or self.masked or self.silent or self.shown)

    @property
    def inputs(self) -> dict[str, Energy | None]:
        """The names that are to be free, those of masks among them, with their priors."""
        return dict.fromkeys(sorted(self.masked - self.given)) | dict(self.free)


NO_ROLES = Roles()


Derive = Callable[[PCGraph], PCGraph]
"""Gives vertices their rules."""


def with_roles(pc: PCGraph, roles: Roles, derive: Derive) -> PCGraph:
    """`pc` with these roles, and its rules as `derive` gives them.

    Raises CompileError for names that the model does not have, for inputs that carry no gradient, and for a role that
    something has already.
    """
    return _Rewriting(pc, roles).result(derive)


class _Rewriting:
    def __init__(self, pc: PCGraph, roles: Roles) -> None:
        self.pc, self.graph, self.roles = pc, pc.graph, roles
        self.vertices = {v.name: v for v in pc.vertices}
        self.outputs = {o.vertex: o.value for o in pc.outputs}
        self.namer = Namer((*self.graph.leaves, *(n.name for n in self.graph.nodes), *pc.names, *self.graph.dims))
        self.marked = {v.name for v in pc.vertices if v.prediction}
        self.leaves: dict[str, TensorType] = {}
        self.behind: dict[str, list[Node]] = {}
        self.readers: dict[str, str] = {}
        self.moved: dict[str, str] = {}
        self.ends = {v.name: (pc.observed[v.name], v.energy) for v in pc.vertices if v.name in pc.observed and v.energy}
        self.energies = {v.name: v.energy for v in pc.vertices if v.energy}
        self.halves: dict[str, str] = {}
        """For each output of which some elements are given, the vertex that stands for these."""
        self.silent = {o.value for i, o in enumerate(pc.outputs) if not {i, ALL}.isdisjoint(roles.silent)}
        self.found: list[Role] = []

    def result(self, derive: Derive) -> PCGraph:
        for name, prior in self.roles.inputs.items():
            self.free(name, prior)
        for name in sorted(self.roles.given):
            self.given(name)
        graph = self.rewritten()
        pc = derive(self.parted(insert_vertices(graph, marked=self.marked)))
        values = [self.moved.get(o.value, o.value) for o in self.pc.outputs]
        by = {o.value: o.vertex for o in pc.outputs}
        silent = {by[v]: ("", FLAT) for o, v in zip(self.pc.outputs, values, strict=True) if o.value in self.silent}
        ends = {by[name]: end for name, end in self.ends.items()} | silent
        leaves = {*self.leaves, *self.roles.inputs}
        whole = replace(pc.graph, outputs=self.renamed_outputs(), wanted=pc.graph.wanted - leaves)
        return replace(
            pc,
            graph=whole,
            lasting=self.pc.lasting,
            feedback=self.pc.feedback,
            vertices=tuple(self.finished(v, ends, leaves, set(silent)) for v in pc.vertices),
            outputs=tuple(Output(v, by[v]) for v in values if v in by and by[v] not in ends),
            reached=pc.reached - leaves,
            observed={name: leaf for name, (leaf, _) in ends.items()},
            roles=tuple(self.found),
        )

    def parted(self, pc: PCGraph) -> PCGraph:
        """`pc` where the given elements of an output predict for themselves, and the output has no reader any more."""
        vertices = {v.name: v for v in pc.vertices}
        relays = {o.vertex: o.value for o in pc.outputs if o.value in self.halves}
        for value, seen in self.halves.items():
            whole, half = vertices[value], vertices[seen]
            parents = dict.fromkeys((*whole.parents, *(p for p in half.parents if p != value)))
            prediction = (*whole.prediction, *half.prediction)
            vertices[seen] = replace(half, parents=tuple(parents), prediction=prediction)
        return replace(
            pc,
            vertices=tuple(v for name, v in vertices.items() if name not in relays),
            outputs=tuple(replace(o, vertex=relays.get(o.vertex, o.vertex)) for o in pc.outputs),
        )

    def finished(self, v: Vertex, ends: Mapping[str, Any], leaves: set[str], silent: set[str]) -> Vertex:
        """A vertex with its energy, and without messages that nobody waits for."""
        messages = {p: m for p, m in v.messages.items() if p not in leaves and v.name not in silent}
        needed = {n.name for n in live((*v.prediction, *v.rules), messages.values())}
        energy = ends[v.name][1] if v.name in ends else self.energies.get(v.name)
        return replace(v, messages=messages, rules=tuple(n for n in v.rules if n.name in needed), energy=energy)

    def rewritten(self) -> Graph:
        """The operations, with what stands behind inputs and vertices that have a role."""
        nodes = [n for name in self.graph.inputs for n in self.behind.get(name, ())]
        for n in self.graph.nodes:
            read = {k: map_refs(a, lambda r: Ref(self.readers.get(r, r))) for k, a in n.args.items()}
            nodes += [replace(n, args=read), *self.behind.get(n.name, ())]
        ends = [name for name in self.ends if name not in self.renamed_outputs()]
        differentiable = {
            n for n, t in self.leaves.items() if t.differentiable
        }  # so that all behind them keeps carrying errors
        return replace(
            self.graph,
            inputs={**self.graph.inputs, **self.leaves},
            nodes=tuple(nodes),
            outputs=(*self.renamed_outputs(), *ends),
            wanted=self.graph.wanted | self.roles.inputs.keys() | differentiable,
        )

    def renamed_outputs(self) -> tuple[str, ...]:
        return tuple(self.moved.get(o, o) for o in self.graph.outputs)

    def node(self, behind: str, text: str, op: str, args: tuple[Any, ...], type_: TensorType, vertex: bool) -> str:
        """A new operation behind the value `behind`."""
        where = next((n.where for n in self.graph.nodes if n.name == behind), None)
        node = Node(self.namer(text), op, bind(op, args, {}), type_, **({"where": where} if where else {}))
        self.behind.setdefault(behind, []).append(node)
        self.marked |= {node.name} if vertex else set()
        return node.name

    def leaf(self, text: str, type_: TensorType) -> str:
        name = self.namer(text)
        self.leaves[name] = type_
        return name

    def mask(self, name: str, type_: TensorType) -> str:
        """The leaf that says which elements are given, "" where all are."""
        return self.leaf(f"{name}_mask", replace(type_, dtype=torch.bool)) if name in self.roles.masked else ""

    # what a name becomes

    def free(self, name: str, prior: Energy | None) -> None:
        """An input that inference infers, but for the elements that a mask says are given."""
        if name not in self.graph.inputs:
            raise self.no_input(name)
        type_ = self.graph.inputs[name]
        if not type_.differentiable:
            raise CompileError(f"input {name} cannot be free: it is {type_}, and only floating-point values move")
        if not any(name in n.inputs for n in self.graph.nodes):
            raise CompileError(f"input {name} cannot be free: the model does not read it")
        if prior is not None and not isinstance(prior, Energy):
            what = f"the prior of {name} is {printable(repr(prior), 60)}"
            raise CompileError(what, hint='give pccompile.energy("gaussian"), for example')
        mask = self.mask(name, type_)
        self.moved[name] = self.readers[name] = moves = self.node(
            name, f"{name}_inferred", SAME, (Ref(name), (-1,) * len(type_.shape)), type_, vertex=True
        )
        self.energies[moves] = FLAT
        if mask:
            self.readers[name] = self.node(
                name, f"{name}_read", WHERE, (Ref(mask), Ref(name), Ref(moves)), type_, vertex=False
            )
        if prior:
            args = (Ref(self.readers[name]), (-1,) * len(type_.shape))
            end = self.node(name, f"{name}_prior", SAME, args, type_, vertex=True)
            self.ends[end] = "", prior.as_prior()
        self.found.append(Role(name, moves, name if mask else "", mask))

    def given(self, name: str) -> None:
        """A vertex of which all elements are given, or those that a mask says."""
        vertex = self.vertex(name)
        value = self.outputs.get(vertex.name, vertex.name)
        if vertex.name != value:
            raise CompileError(f"the value of {name} is that of a vertex which others read", hint=f"name {value}")
        own, free = vertex.energy or energy("gaussian"), vertex.name not in self.outputs
        leaf, mask = self.leaf(f"{value}_given", vertex.type), self.mask(name, vertex.type)
        if mask and any(k.owner == vertex.name for k in self.pc.lasting):
            what = (
                f"a mask of {name} divides its elements between two vertices, and its precision is a tensor or learned"
            )
            raise CompileError(what, vertex.where, hint="give it a precision that is a number")
        if not mask:
            self.ends[value] = leaf, own.observed()
            self.readers[value], role = leaf, Role(name, value, leaf)
            self.moved |= {value: leaf} if free else {}
        else:
            role = self.partly(name, value, vertex, leaf, mask, free)
            seen = self.node(
                value, f"{value}_observed", WHERE, (Ref(mask), Ref(value), Ref(leaf)), vertex.type, vertex=True
            )
            self.ends[seen] = leaf, own.observed()
            if not free:
                self.silent.add(value)
                self.halves[value] = seen
        self.found.append(role)

    def partly(self, name: str, value: str, vertex: Vertex, leaf: str, mask: str, free: bool) -> Role:
        """A vertex of which some elements are given: the others move, and both are read."""
        if not free:
            return Role(name, value, leaf, mask)
        if vertex.energy and not vertex.energy.of_error:
            what = f"a mask of {name} needs an energy of v - vhat alone; its energy is {vertex.energy}"
            raise CompileError(what, vertex.where, hint="give all of its elements, or none")
        self.marked.discard(value)
        moves = self.node(value, f"{value}_filled", WHERE, (Ref(mask), Ref(leaf), Ref(value)), vertex.type, vertex=True)
        read = self.node(value, f"{value}_read", WHERE, (Ref(mask), Ref(leaf), Ref(moves)), vertex.type, vertex=False)
        self.readers[value], self.moved[value] = read, moves
        if vertex.energy:
            self.energies[moves] = vertex.energy
        return Role(name, moves, leaf, mask)

    # names

    def vertex(self, name: str) -> Vertex:
        """The vertex that a user means by its own name or by that of its module."""
        if name in self.vertices:
            return self.vertices[name]
        if name in self.graph.inputs:
            what = f"input {name} is given by its argument"
            raise CompileError(what, hint="free= lets inference infer it, mask= all but some elements")
        inside = [v for v in self.pc.vertices if v.prediction and is_in(v, name)]
        if len(inside) == 1:
            return inside[0]
        if inside:
            names = listing([v.name for v in inside], 8)
            raise CompileError(f"{printable(name)} has several vertices", hint=f"name one of them: {names}")
        raise self.unknown(name)

    def no_input(self, name: str) -> CompileError:
        """Why a name that is no input cannot be free."""
        if name in self.outputs:
            return CompileError(f"{name} is an output: leave its target out, and its prediction is what is inferred")
        if name in self.vertices or any(is_in(v, name) for v in self.pc.vertices):
            what = f"{printable(name)} is a hidden vertex, which inference moves anyway"
            return CompileError(what, hint="clamped= gives its value, or that of the elements of a mask")
        return self.unknown(name)

    def unknown(self, name: str) -> CompileError:
        inputs, names = list(self.graph.inputs), list(self.vertices)
        modules = list(dict.fromkeys(n.where.module for v in self.pc.vertices for n in v.prediction if n.where.module))
        near = difflib.get_close_matches(name, [*inputs, *names, *modules], 3)
        hint = f"near it: {listing(near)}; " if near else ""
        hint += f"inputs: {listing(inputs, 8)}; vertices: {listing(names, 8)}; modules: {listing(modules, 8)}"
        return CompileError(f"{printable(repr(name))} is no input, no vertex and no module", hint=hint)
