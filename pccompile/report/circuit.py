"""Whether a circuit computes what its model computes, and learns what gradient descent learns."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pccompile.analysis.compare import Difference, agrees, difference
from pccompile.backends.netlist import Netlist, NetlistOptions, Result
from pccompile.diagnostics import EXIT_VERIFY
from pccompile.frontends.imported import Locate
from pccompile.ops import definition
from pccompile.ops.interpret import interpret
from pccompile.pipeline import Circuitry, lay_out
from pccompile.report.tables import Page, Report, Table, count, finite, number

TOLERANCE = 1e-9
ROWS = 20
LONGEST = 200_000
"""The most ticks until the error units must rest."""


@dataclass(frozen=True)
class CircuitReport(Report):
    """Outputs, error units and plasticity of a circuit against the model's outputs and autograd's gradients.

    ticks: until the error units rested. Differences are relative, in float64.
    """

    name: str
    ticks: int
    outputs: tuple[Difference, ...]
    errors: tuple[Difference, ...]
    plasticity: tuple[Difference, ...]
    tolerance: float = TOLERANCE
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether everything agrees."""
        return all(d.agrees for group in (self.outputs, self.errors, self.plasticity) for d in group)

    @property
    def exit_code(self) -> int:
        """What the command line returns."""
        return 0 if self.passed else EXIT_VERIFY

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON takes it."""
        plain: dict[str, Any] = {"name": self.name, "ticks": self.ticks, "passed": self.passed}
        plain["notes"] = list(self.notes)
        for group in ("outputs", "errors", "plasticity"):
            plain[group] = [asdict(d) for d in getattr(self, group)]
        return finite(plain)  # type: ignore[no-any-return]

    @property
    def page(self) -> Page:
        """The worst differences, and a line for each group."""
        every = [("output", d) for d in self.outputs] + [("error", d) for d in self.errors]
        every += [("plasticity", d) for d in self.plasticity]
        worst = sorted(every, key=lambda e: (bool(e[1].agrees), -e[1].error))[:ROWS]
        rows = tuple(
            (kind, d.name, number(d.relative_error), number(d.max_abs), number(d.norm), "ok" if d.agrees else "DIFFERS")
            for kind, d in worst
        )
        where = f"{count(len(self.errors), 'vertex', 'vertices')} at rest, after {count(self.ticks, 'tick')},"
        lines = [
            _line(f"{count(len(self.outputs), 'output')} against the model's", self.outputs),
            _line(f"error units of {where} against −∂L/∂v̂ of autograd", self.errors),
            _line(
                f"a learning tick of {count(len(self.plasticity), 'parameter')} against gradient descent",
                self.plasticity,
            ),
        ]
        more = len(every) - len(rows)
        tail = (f"… and {more} with smaller errors",) if more > 0 else ()
        table = Table(("", "name", ">relative error", ">largest", ">norm", ""), rows)
        return Page((table, *tail, "", *lines, *(f"note: {note}" for note in self.notes)))


def _line(what: str, group: tuple[Difference, ...]) -> str:
    verdict = "pass" if all(d.agrees for d in group) else "FAIL"
    return f"{verdict}  {what}: worst relative error {number(max((d.error for d in group), default=0.0))}"


def verify_circuit(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    options: NetlistOptions | None = None,
    *,
    locate: Locate | None = None,
    seed: int = 0,
    name: str = "",
    notes: tuple[str, ...] = (),
) -> CircuitReport:
    """Build the circuit of a float64 copy of `model`, settle and learn once, and compare with autograd.

    Targets are drawn with `seed`; `notes` are passed on to the reader. Raises CompileError for what has no circuit.
    """
    options = options or NetlistOptions()
    model = copy.deepcopy(model).double()
    args, kwargs = pytree.tree_map_only(Tensor, _double, (args, dict(kwargs or {})))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = lay_out(model, args, kwargs, options, locate, name=name)
        targets = random_targets(made.netlist, seed)
    values, errors, gradients = reference(made, options, targets)
    result, ticks = settled(made.netlist, made.examples, targets, options)
    outputs = [
        difference(name, torch.as_tensor(result.outputs[port]), values[name])
        for port, name in zip(made.netlist.spec.outputs, made.results, strict=True)
    ]
    units = _error_units(made.netlist, result)
    compared = [difference(v, units[v], errors[v]) for v in errors if v in units]
    learned = []
    for path, gradient in gradients.items():
        step = torch.as_tensor(made.netlist.tensors[path] - result.params[path]) / options.eta
        learned.append(difference(path, step, gradient))
    name = made.netlist.spec.name
    judged = _judged(outputs), _judged(compared), _judged(learned)
    return CircuitReport(name, ticks, *judged, notes=notes)


def _double(t: Tensor) -> Tensor:
    return t.detach().double() if t.is_floating_point() else t.detach()


def _judged(group: list[Difference]) -> tuple[Difference, ...]:
    largest = max((d.norm for d in group), default=0.0)
    return tuple(replace(d, agrees=agrees(d, TOLERANCE, largest, torch.float64)) for d in group)


def random_targets(net: Netlist, seed: int) -> dict[str, Tensor]:
    """A target or clamp for each output: normal numbers, or class labels."""
    draw = torch.Generator().manual_seed(seed)
    targets = {}
    for name, port in (*net.spec.targets.items(), *net.spec.clamps.items()):
        if port.encode:
            classes = net.spec.populations[port.population].shape[port.axis]
            targets[name] = torch.randint(classes, port.shape, generator=draw)
        else:
            targets[name] = torch.randn(port.shape, generator=draw, dtype=torch.float64)
    return targets


def reference(
    made: Circuitry, options: NetlistOptions, targets: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """What every operation of the graph yields, −∂L/∂v̂ of each, and ∂L/∂θ by path, all by autograd."""
    graph = made.graph
    env: dict[str, Any] = {**made.tensors, **made.examples}
    leaves = {p: made.tensors[p].detach().double().requires_grad_() for p in graph.params if p in graph.wanted}
    env.update(leaves)
    for n in graph.nodes:
        random = definition(n.op).random
        env[n.name] = torch.from_numpy(made.netlist.drawn[n.name]) if random else interpret(n, env)
    held = {n.name: env[n.name] for n in graph.nodes if isinstance(env[n.name], Tensor) and env[n.name].requires_grad}
    total = torch.zeros((), dtype=torch.float64)
    ports = iter(zip(made.netlist.spec.outputs, made.results, strict=True))
    for port, name in ports:
        if port in targets:
            total = total + _loss(options.loss, env[name], targets[port])
    wanted = {**held, **leaves}
    sent = (
        torch.autograd.grad(total, list(wanted.values()), allow_unused=True) if wanted and total.requires_grad else ()
    )
    gradient = {k: torch.zeros_like(wanted[k]) if g is None else g for k, g in zip(wanted, sent, strict=False)}
    errors = {k: -gradient[k] for k in held if k in gradient}
    gradients = {graph.origin.get(p, p): gradient[p] for p in leaves if p in gradient}
    values = {k: v.detach() for k, v in env.items() if isinstance(v, Tensor)}
    return values, errors, {k: g for k, g in gradients.items() if k in made.netlist.spec.plastic()}


def _loss(kind: str, output: Tensor, target: Tensor) -> Tensor:
    if kind == "cross-entropy":
        return F.cross_entropy(output, target, reduction="sum")
    return 0.5 * ((output - target) ** 2).sum() if kind == "squared-error" else -(output * target).sum()


def settled(
    net: Netlist, inputs: Mapping[str, Tensor], targets: Mapping[str, Tensor], options: NetlistOptions
) -> tuple[Result, int]:
    """The circuit after its error units have come to rest and one learning tick; and how many ticks they took."""
    given = {"clamps" if options.loss == "none" else "targets": targets}
    session = net.session()
    session.set(net.presentation(inputs, **given))
    simulator = session.simulator
    for tick in range(1, LONGEST):
        before = {name: simulator.states[name] for name in simulator.integrators}
        simulator.tick("settle")
        if tick > 1 and all(_rests(before[name], simulator.states[name]) for name in before):
            break
    session.run(0, learn=True)
    return Result(session.states, session.params, session.outputs, {}), tick


def _rests(before: Tensor, after: Tensor) -> bool:
    still = (after - before).abs() <= 1e-14 * after.abs().max()
    return bool((still | after.isnan() | (after == before)).all())


def _error_units(net: Netlist, result: Result) -> dict[str, Tensor]:
    """The states of the error units of each vertex that is an operation of the model."""
    units = {}
    for name, p in net.spec.populations.items():
        if p.role == "error" and name == f"{p.vertex}.e":
            units[p.vertex] = torch.as_tensor(result.states[name])
    return units
