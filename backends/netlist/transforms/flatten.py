"""Scalar units and synapses: what a chip without matrices and kernels is given."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from pccompile.backends.netlist.format import Plasticity, Population, Port, Projection, Tensor
from pccompile.backends.netlist.netlist import Netlist
from pccompile.backends.netlist.operations import RULES, Shape, bias_entries, operation
from pccompile.backends.netlist.operations.sparse import Paired
from pccompile.backends.netlist.synapses import synapses
from pccompile.backends.netlist.transforms import fresh
from pccompile.backends.netlist.transforms.expand import expand
from pccompile.diagnostics import CompileError

replace = msgspec.structs.replace


def flatten(net: Netlist) -> Netlist:
    """`net` with populations of one axis and synapses one by one, each naming the entry of the parameter that it has.

    Products of two populations get a unit each first. Every projection becomes `sparse` then but the `gather` of a
    select population and a `route`, whose tables list single synapses already. Parameters keep their shapes and names,
    and what shares one goes on sharing it: states and learning are equal. Raises CompileError where the synapses are
    too many to be listed.
    """
    return _Flattening(expand(net)).run()


@dataclass
class _Flattening:
    """The pass at work. bias: the projection that brings a bias shared along an axis, by parameter, shape and axis."""

    net: Netlist
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    projections: list[Projection] = field(default_factory=list)
    bias: dict[tuple[str, Shape, int], str] = field(default_factory=dict)
    stored: dict[Any, str] = field(default_factory=dict)
    one: str = ""

    def run(self) -> Netlist:
        spec = self.net.spec
        self.tensors.update(self.net.tensors)
        self.one = fresh("one", spec.populations)
        populations = {name: self.population(name, p) for name, p in spec.populations.items()}
        self.projections[:0] = [self.projection(p) for p in spec.projections]
        plasticity = tuple(map(self.rule, spec.plasticity))
        if self.bias:
            populations[self.one] = Population(
                shape=(1,), unit="sum", role="context", vertex="", bias=self.tensor(np.ones(1))
            )
        described = {name: self.described(a) for name, a in self.tensors.items() if name not in spec.tensors}
        netlist = replace(
            spec,
            populations=populations,
            projections=tuple(self.projections),
            plasticity=plasticity,
            tensors={**spec.tensors, **described},
            **{kind: self.ports(getattr(spec, kind)) for kind in ("inputs", "targets", "clamps", "outputs", "draws")},
        )
        return without_unused(Netlist(netlist, self.tensors, self.net.drawn))

    def tensor(self, array: np.ndarray) -> str:
        """The name of a structural tensor; an equal one is stored once."""
        key = (array.shape, array.dtype.str, array.tobytes())
        if key not in self.stored:
            self.stored[key] = fresh(f"#flat.{len(self.stored)}", self.tensors)
            self.tensors[self.stored[key]] = array
        return self.stored[key]

    def described(self, array: np.ndarray) -> Tensor:
        """What is said of a structural tensor. In fixed point a weight of 1 needs no more than two bits."""
        described = Tensor.of(array)
        return replace(described, bits=(2, 0)) if self.net.quantised and array.dtype.kind == "f" else described

    def population(self, name: str, p: Population) -> Population:
        """A population with one axis; a bias that several of its units share becomes a projection from a unit at 1."""
        if p.bias is None or p.bias_axis is None:
            return replace(p, shape=(p.size,))
        bias_projection = Projection(
            name=fresh(f"{name}.bias", {q.name: q for q in (*self.net.spec.projections, *self.projections)}),
            pre=self.one,
            post=f"{name}:in",
            op="sparse",
            param=p.bias,
            index=self.tensor(np.stack([np.arange(p.size), np.zeros(p.size, np.int64)])),
            elements=self.tensor(bias_entries(p.shape, p.bias_axis)),
        )
        self.projections.append(bias_projection)
        self.bias.setdefault((p.bias, p.shape, p.bias_axis), bias_projection.name)
        return replace(p, shape=(p.size,), bias=None, bias_axis=None)

    def projection(self, p: Projection) -> Projection:
        """A projection in the form of single synapses."""
        chosen = self.net.spec.populations[p.target].unit == "select"
        if chosen or operation(p, self.net.spec.populations, self.net.tensors).is_single_synapses():
            return p
        listed = synapses(p, self.net.spec, self.net.tensors)
        param = p.param if listed.other is not None else self.tensor(np.ones(1))
        elements = listed.other if listed.other is not None else np.zeros(len(listed.post), np.int64)
        index = np.stack([listed.pre, listed.post] if p.transpose else [listed.post, listed.pre])
        return Projection(
            name=p.name, pre=p.pre, post=p.post, op="sparse", param=param, transpose=p.transpose, gain=p.gain,
            delay=p.delay, index=self.tensor(index), elements=self.tensor(elements),
        )  # fmt: skip

    def rule(self, rule: Plasticity) -> Plasticity:
        """A rule in the form of single synapses, in the geometry of a projection that has the parameter."""
        spec = self.net.spec
        post = spec.populations[rule.post].shape
        kind = RULES[rule.rule]
        if kind.operation is None:
            if rule.axis is None:
                return rule
            via = self.bias.get((rule.param, post, rule.axis))
            if via is None:
                raise CompileError(f"the rule of {rule.param} copies {rule.post}, and is the bias of none like it")
            return replace(rule, rule="sparse", pre=self.one, via=via, axis=None)
        if rule.rule == Paired.name:
            return rule
        pre = spec.populations[str(rule.pre)].shape
        named = spec.named()
        likely = [named[rule.via]] if rule.via is not None else spec.projections
        for p in (*likely, *spec.projections):
            fits = p.op == kind.operation and (p.param == rule.param or p.name == rule.via)
            ends = operation(p, spec.populations, self.net.tensors).ends
            if fits and tuple(map(math.prod, ends)) == (math.prod(post), math.prod(pre)):
                return replace(rule, rule="sparse", via=p.name)
        raise CompileError(f"no projection has {rule.param} between populations like {rule.pre} and {rule.post}")

    def ports(self, ports: dict[str, Port]) -> dict[str, Port]:
        """Ports that know the axes which their populations had."""
        populations = self.net.spec.populations
        return {
            name: replace(p, states=p.states or populations[p.population].shape) if p.encode else p
            for name, p in ports.items()
        }


def without_unused(net: Netlist) -> Netlist:
    """`net` without structural tensors that nothing names any more; parameters of the model stay."""
    spec = net.spec
    used = {p.bias for p in spec.populations.values()} | {p.ranks for p in spec.populations.values()}
    used |= {t for p in spec.projections for t in (p.param, p.index, p.elements)}
    used |= {r.param for r in spec.plasticity} | {p.example for p in spec.draws.values()}
    tensors = {k: t for k, t in spec.tensors.items() if k in used or t.path is not None}
    return Netlist(replace(spec, tensors=tensors), {k: net.tensors[k] for k in tensors}, net.drawn)
