"""Products of two populations as units of their own: for what has no synapse that multiplies states."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

import msgspec
import numpy as np

from pccompile.backends.netlist.format import Population, Projection, Tensor
from pccompile.backends.netlist.netlist import Netlist
from pccompile.backends.netlist.operations import OPERATIONS, Synapses
from pccompile.backends.netlist.simulate.formats import STATE, WIDEST
from pccompile.backends.netlist.synapses import synapses
from pccompile.backends.netlist.transforms import fresh, table
from pccompile.diagnostics import CompileError

replace = msgspec.structs.replace


def expand(net: Netlist, targets: Container[str] | None = None) -> Netlist:
    """`net` in which a population of product units stands for each projection that multiplies states.

    targets: only for those that reach these populations. States and learning are equal, in fixed point to the last bit.
    Raises CompileError where the products are too many to be listed, or too wide for the format of a unit.
    """
    found = _Expansion(net)
    for p in net.spec.projections:
        multiplies = OPERATIONS[p.op].multiplies and (targets is None or p.target in targets)
        found.projections += found.expanded(p) if multiplies else [p]
    if not found.tensors:
        return net
    spec = replace(
        net.spec,
        populations={**net.spec.populations, **found.populations},
        projections=tuple(found.projections),
        tensors={**net.spec.tensors, **{name: Tensor.of(array) for name, array in found.tensors.items()}},
    )
    return Netlist(spec, {**net.tensors, **found.tensors}, net.drawn)


@dataclass
class _Expansion:
    """The pass at work: what has been added, and all projections as they are now."""

    net: Netlist
    populations: dict[str, Population] = field(default_factory=dict)
    projections: list[Projection] = field(default_factory=list)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)

    def expanded(self, p: Projection) -> list[Projection]:
        """What feeds the product units of a projection, and the projection from these, which keeps its name."""
        spec, listed = self.net.spec, synapses(p, self.net.spec, self.net.tensors)
        assert listed.other is not None
        assert p.with_ is not None
        name = fresh(f"{p.target.rpartition('.')[0] or p.target}.pairs", {**spec.populations, **self.populations})
        self.populations[name] = self.products(p, listed)
        names = {q.name: q for q in (*spec.projections, *self.projections)}
        feeding = []
        for port, population, units in (("x", p.pre, listed.pre), ("y", p.with_, listed.other)):
            label = fresh(f"{population}->{name}:{port}", names)
            index = self.tensor(units[:, None])
            feeding.append(
                Projection(name=label, pre=population, post=f"{name}:{port}", op="gather", index=index, delay=p.delay)
            )
        rows = table(listed.post, np.arange(len(listed.post)), spec.populations[p.target].size)
        summed = Projection(name=p.name, pre=name, post=p.post, op="gather", index=self.tensor(rows), gain=p.gain)
        return [*feeding, summed]

    def products(self, p: Projection, listed: Synapses) -> Population:
        """The product units of a projection; in fixed point they hold every product exactly."""
        of = self.net.spec.populations
        target, (x, y) = of[p.target], (of[n].bits or STATE for n in p.reads)
        bits = port_bits = None
        if self.net.quantised:
            bits, port_bits = (x[0] + y[0], x[1] + y[1]), (x, y)
            if bits[0] > WIDEST:
                raise CompileError(f"projection {p.name} multiplies states of {x[0]} and {y[0]} bits: a unit for each "
                                   f"product holds {WIDEST}", hint="quantise with fewer state_bits")  # fmt: skip
        role = "gate" if target.role in ("error", "gate") else target.role
        return Population(shape=listed.post.shape, unit="product", role=role, vertex=target.vertex, bits=bits,
                          port_bits=port_bits)  # fmt: skip

    def tensor(self, array: np.ndarray) -> str:
        """The name of a table that is added."""
        name = fresh(f"#pairs.{len(self.tensors)}", {**self.net.tensors, **self.tensors})
        self.tensors[name] = np.ascontiguousarray(array, dtype=np.int64)
        return name
