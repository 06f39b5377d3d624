"""Partial sums: units with more synapses than a core has room for are fed by units that each add up some of them."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from pccompile.backends.netlist.format import Plasticity, Population, Projection, Tensor, ports_of
from pccompile.backends.netlist.netlist import Netlist
from pccompile.backends.netlist.operations import RULES, Synapses, operation
from pccompile.backends.netlist.synapses import fan_in, synapses
from pccompile.backends.netlist.transforms import fresh, places, table
from pccompile.backends.netlist.transforms.expand import expand
from pccompile.backends.netlist.transforms.flatten import without_unused
from pccompile.diagnostics import Collector, CompileError

replace = msgspec.structs.replace


def split_fan_in(net: Netlist, limit: int) -> Netlist:
    """`net` in which no unit has more than `limit` synapses, a bias not counted.

    A port that has too many is fed by a population of partial sums, in as many stages as it takes. Its projections
    become single synapses of the same parameters; a rule that changes those reads a copy of the error where the partial
    sums are. States and learning are equal up to the rounding of sums. Raises CompileError where a select population
    compares more candidates than that.
    """
    if limit < 2:
        raise CompileError(f"a limit of {limit} leaves nothing to add up")
    splitting = _Splitting(_with_products(net, limit))
    splitting.refuse_selections(limit)
    waiting = list(splitting.populations)
    while waiting:
        if splitting.split(waiting[-1], limit):
            continue
        waiting.pop()
    return splitting.result()


def _with_products(net: Netlist, limit: int) -> Netlist:
    """`net` whose units multiply no states themselves where they have more than `limit` synapses."""
    wide = set()
    for name, into in net.spec.into().items():
        counts = [fan_in(p, net.spec, net.tensors) for p in into]
        if sum(counts, np.zeros(1, np.int64)).max(initial=0) > limit:
            wide.add(name)
    return expand(net, wide)


@dataclass(frozen=True)
class _Parts:
    """A population of partial sums; owners[q] is the unit that its unit q adds up for."""

    name: str
    owners: np.ndarray


class _Splitting:
    """The pass at work."""

    def __init__(self, net: Netlist) -> None:
        self.net, self.spec = net, net.spec
        self.populations = dict(net.spec.populations)
        self.projections = {p.name: p for p in net.spec.projections}
        self.plasticity = list(net.spec.plasticity)
        self.tensors = dict(net.tensors)
        self.copies: dict[tuple[str, str], str] = {}

    def into(self, name: str) -> list[Projection]:
        """The projections that reach a population now."""
        return [p for p in self.projections.values() if p.target == name]

    def described(self) -> dict[str, Tensor]:
        """What is said of each tensor now."""
        return {name: self.spec.tensors.get(name) or Tensor.of(a) for name, a in self.tensors.items()}

    def result(self) -> Netlist:
        """The netlist as it is now."""
        netlist = replace(
            self.spec,
            populations=self.populations,
            projections=tuple(self.projections.values()),
            plasticity=tuple(self.plasticity),
            tensors=self.described(),
        )
        return without_unused(Netlist(netlist, self.tensors, self.net.drawn))

    def fan_in(self, p: Projection) -> np.ndarray:
        """The number of its synapses on each unit that it reaches."""
        return fan_in(p, replace(self.spec, populations=self.populations), self.tensors)

    def synapses(self, p: Projection) -> Synapses:
        """Its synapses."""
        return synapses(p, replace(self.spec, populations=self.populations), self.tensors)

    def refuse_selections(self, limit: int) -> None:
        """Raise CompileError with every population that compares more than `limit` candidates."""
        problems = Collector()
        for name, p in self.populations.items():
            if p.unit == "select":
                count = max((int(self.fan_in(q).max(initial=0)) for q in self.into(name)), default=0)
                if count > limit:
                    problems.add(f"population {name} compares {count} candidates; comparisons are not split to {limit}")
        problems.raise_if_any()

    def split(self, name: str, limit: int) -> bool:
        """Give partial sums to the ports of a population that has more than `limit` synapses on a unit; whether so."""
        into = self.into(name)
        counts = {p.name: self.fan_in(p) for p in into}
        if not into or sum(counts.values(), np.zeros(1, np.int64)).max(initial=0) <= limit:
            return False
        ports = ports_of(self.populations[name].unit)
        for port in ports:
            mine = [p for p in into if p.port == port]
            if mine and np.sum([counts[p.name] for p in mine], axis=0).max() > limit // len(ports):
                self._part(name, port, mine, limit)
        return True

    def _part(self, name: str, port: str, into: list[Projection], limit: int) -> None:
        """A population of partial sums of at most `limit` synapses, between `into` and a port."""
        p = self.populations[name]
        owners = [self.synapses(q).post for q in into]
        parts, owner_of = _shares(np.concatenate(owners), p.size, limit)
        part = fresh(f"{name.removesuffix('.v')}.{port}.part", self.populations)
        bits = p.bits if p.port_bits is None else p.port_bits[ports_of(p.unit).index(port)]
        self.populations[part] = Population(shape=owner_of.shape, unit="sum", role=p.role, vertex=p.vertex, bits=bits)
        ends = np.cumsum([len(o) for o in owners])
        for q, mine in zip(into, np.split(parts, ends[:-1]), strict=True):
            self.projections[q.name] = self._moved(q, part, mine, owner_of)
            self._follow(q, _Parts(part, owner_of))
        self._gather(part, f"{name}:{port}", owner_of, np.arange(owner_of.size), p.size)

    def _moved(self, p: Projection, part: str, parts: np.ndarray, owner_of: np.ndarray) -> Projection:
        """A projection to the partial sums instead; synapse s is on unit parts[s]."""
        post = f"{part}:in"
        tables = operation(p, self.populations, self.tensors).divided(parts, owner_of)
        if tables is not None:
            return replace(p, post=post, **{field: self._tensor(table) for field, table in tables.items()})
        found = self.synapses(p)
        projection = Projection(name=p.name, pre=p.pre, post=post, op="gather", gain=p.gain, delay=p.delay)
        if found.other is None:
            return replace(projection, index=self._tensor(table(parts, found.pre, owner_of.size)))
        index = np.stack([found.pre, parts] if p.transpose else [parts, found.pre])
        return replace(projection, op="sparse", param=p.param, transpose=p.transpose, index=self._tensor(index),
                       elements=self._tensor(found.other))  # fmt: skip

    def _follow(self, p: Projection, parts: _Parts) -> None:
        """Let the rules in the geometry of projection `p`, as it was, act where its synapses are now."""
        for i, rule in enumerate(self.plasticity):
            side = "pre" if p.transpose else "post"
            if rule.via == p.name or self._is_its_own(rule, p):
                copy = self._copied(str(getattr(rule, side)), parts)
                self.plasticity[i] = replace(rule, rule="sparse", via=p.name, **{side: copy})

    def _is_its_own(self, rule: Plasticity, p: Projection) -> bool:
        """Whether a rule without `via` has the geometry of a projection."""
        kind = RULES[rule.rule]
        if kind.takes_via or kind.operation != p.op or rule.param != p.param:
            return False
        same, other = (rule.post, rule.pre) if p.transpose else (rule.pre, rule.post)
        return same == p.pre and self.populations[str(other)].size == self.populations[p.target].size

    def _copied(self, name: str, parts: _Parts) -> str:
        """The population that has the states of population `name` where the partial sums are."""
        key = (name, parts.name)
        if key not in self.copies:
            p = self.populations[name]
            copy = fresh(f"{name}@{parts.name}", self.populations)
            self.populations[copy] = Population(
                shape=parts.owners.shape, unit="sum", role=p.role, vertex=p.vertex, bits=p.bits
            )
            size = parts.owners.size
            self._gather(name, f"{copy}:in", np.arange(size), parts.owners, size)
            self.copies[key] = copy
        return self.copies[key]

    def _gather(self, pre: str, post: str, rows: np.ndarray, units: np.ndarray, size: int) -> None:
        name = fresh(f"{pre}->{post.removesuffix(':in')}", self.projections)
        index = self._tensor(table(rows, units, size))
        self.projections[name] = Projection(name=name, pre=pre, post=post, op="gather", index=index)

    def _tensor(self, array: np.ndarray) -> str:
        name = fresh(f"#split.{len(self.tensors)}", self.tensors)
        self.tensors[name] = np.ascontiguousarray(array, dtype=np.int64)
        return name


def _shares(owners: np.ndarray, size: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """The partial sum that each synapse goes to, at most `limit` each, and the unit that each is a part of."""
    place, counts = places(owners, size)
    shares = -(-counts // limit)
    return (np.cumsum(shares) - shares)[owners] + place // limit, np.repeat(np.arange(size), shares)
