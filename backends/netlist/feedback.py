"""The error circuit of a netlist of value units: an integrator beside each, fed by the adjoint of every projection.

    dε/dt = −ε + Σ Jᵀ ε, summed over what reads the unit; J is a projection's own map, a map unit's slope, the other
    factor of a product, the choice of a select unit

This is fixed prediction (Millidge, Tschantz & Buckley, arXiv 2006.04182) as a circuit that needs no phases: value
units never move, and the error units form a directed acyclic graph of leaky integrators.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from pccompile.backends.netlist.circuit import Circuit
from pccompile.backends.netlist.expressions import X, derivative, text
from pccompile.backends.netlist.format import Plasticity, Projection
from pccompile.backends.netlist.operations import OPERATIONS, RULES, operation
from pccompile.diagnostics import CompileError


class ErrorCircuit:
    """Adds the error circuit to `circuit`.

    given: the error population of each output population, already there. rate: of the integrators. learning: the
    parameters that learn. eta: the rate of their plasticity, the step of gradient descent.
    """

    def __init__(
        self, circuit: Circuit, given: Mapping[str, str], rate: float, learning: frozenset[str], eta: float
    ) -> None:
        self.c, self.errors, self.rate, self.learning, self.eta = circuit, dict(given), rate, learning, eta
        self.forward = tuple(circuit.projections)

    def add(self) -> dict[str, str]:
        """Add error units, feedback and plasticity; return the error population of each value population."""
        values = [n for n in self.c.populations if n in self.c.active]
        for name in values:
            if name not in self.errors:
                of = self.c.populations[name]
                self.errors[name] = self.c.population(
                    f"{name.removesuffix('.v')}.e", of.shape, "integrator", "error", of.vertex, rate=self.rate
                )
        into: dict[str, list[Projection]] = {name: [] for name in values}
        for p in self.forward:
            if p.target in into:
                into[p.target].append(p)
        for name in values:
            self._adjoint(name, into[name])
        for name in values:
            self._plastic(name, into[name])
        return self.errors

    def _adjoint(self, name: str, into: list[Projection]) -> None:
        """What an active population sends back to the populations that it reads."""
        population = self.c.populations[name]
        views = [view for p in into for view in OPERATIONS[p.op].readings(p)]
        if name in self.c.unheard or not any(p.pre in self.c.active for p in views):
            return
        match population.unit:
            case "sum":
                for p in views:
                    self._back(p, self.errors[name])
            case "map":
                gate = self._slope_gate(name, into)
                for p in views if gate else ():
                    self._back(p, gate)
            case "product":
                for port, other in (("x", "y"), ("y", "x")):
                    mine = [p for p in views if p.port == port and p.pre in self.c.active]
                    if mine:
                        gate = self._gate(name, f"g{port}", self.errors[name])
                        for p in into:
                            if p.port == other:
                                self._again(p, gate, "y")
                        for p in mine:
                            self._back(p, gate)
            case "select":
                (source,) = into
                self.c.connect(
                    self.errors[name], self.errors[source.pre], "route", by=name, index=source.index,
                    transpose=True, gain=source.gain,
                )  # fmt: skip

    def _slope_gate(self, name: str, into: list[Projection]) -> str:
        """The population of error × slope of a map population; its error itself where the slope is one number."""
        p, slope = self.c.populations[name], derivative(self.c.formulas[name])
        if slope == 0:
            return ""
        base = name.removesuffix(".v")
        if X not in slope.free_symbols:
            gate = self.c.population(f"{base}.g", p.shape, "sum", "gate", p.vertex)
            self.c.connect(self.errors[name], gate, "one_to_one", gain=float(slope))
            return gate
        try:
            written = text(slope)
        except ValueError as e:
            raise CompileError(f"the slope of {p.function} at vertex {p.vertex} cannot be written: {e}") from e
        d = self.c.population(f"{base}.d", p.shape, "map", "derivative", p.vertex, function=written)
        for projection in into:
            self._again(projection, d, "in")
        gate = self._gate(name, "g", self.errors[name])
        self.c.connect(d, gate, "one_to_one", "y")
        return gate

    def _gate(self, name: str, suffix: str, error: str) -> str:
        """A product population whose port x is fed by an error."""
        p = self.c.populations[name]
        gate = self.c.population(f"{name.removesuffix('.v')}.{suffix}", p.shape, "product", "gate", p.vertex)
        self.c.connect(error, gate, "one_to_one", "x")
        return gate

    def _again(self, p: Projection, post: str, port: str) -> None:
        """The same projection to another population."""
        made = self.c.connect(p.pre, post, p.op, port)
        self.c.projections[-1] = msgspec.structs.replace(p, name=made.name, post=made.post)

    def _back(self, p: Projection, sender: str) -> None:
        """The adjoint of a projection, from `sender` to the error of what it reads."""
        if p.pre not in self.c.active:
            return
        made = self.c.connect(sender, self.errors[p.pre], p.op)
        adjoint = operation(p, self.c.populations, self.c.tensors).adjoint
        self.c.projections[-1] = adjoint(made.pre, made.post, made.name)

    def _plastic(self, name: str, into: list[Projection]) -> None:
        """The rules of the parameters that act on a population."""
        population = self.c.populations[name]
        if population.bias in self.learning:
            rule = Plasticity(
                param=str(population.bias),
                rule="copy",
                post=self.errors[name],
                axis=population.bias_axis,
                rate=self.eta,
            )
            self.c.plasticity.append(rule)
        for p in into:
            if p.param in self.learning:
                self.c.plasticity.append(self._rule(p, self.errors[name]))

    def _rule(self, p: Projection, error: str) -> Plasticity:
        pre, post = (error, p.pre) if p.transpose else (p.pre, error)
        rule = OPERATIONS[p.op].rule
        assert rule is not None, f"{p.op} has a parameter, and no rule for it"
        via = p.name if RULES[rule].takes_via else None
        return Plasticity(param=str(p.param), rule=rule, pre=pre, post=post, rate=self.eta, gain=p.gain, via=via)
