"""A recording of inference: values, errors and energy of each vertex at each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pccompile.algorithms import ALGORITHMS
from pccompile.diagnostics import CompileError, printable
from pccompile.ir import Argument
from pccompile.passes.roles import Free
from pccompile.report.figures import figure, save
from pccompile.report.losses import Criterion, clamp, cloned
from pccompile.report.tables import Page, Shown, Table, count, number
from pccompile.runtime.given_values import Given, completed
from pccompile.runtime.loaded_program import Runtime
from pccompile.runtime.module import CompiledModule

Slots = dict[str, Tensor]
"""By vertex."""
RISE = 1e-6
"""The part of itself by which rounding lets free energy rise."""
LINES = 12
"""So many vertices get a line of their own in a plot."""


@dataclass(frozen=True, repr=False)
class Trace(Shown):
    r"""Inference, step by step. Each tensor's first dimension is the step, 0 being the feedforward state.

    values, errors   by vertex, [steps + 1, ...]; v = v̂ + ε
    energy           by vertex, its E(v, v̂), ½ εᵀε unless it was given another, summed, [steps + 1]
    loss             [steps + 1], constant where predictions stay
    free_energy      [steps + 1]: the hidden vertices' energy and the loss where predictions follow the values, else the
                     energy of all vertices, the clamped outputs among them
    """

    algorithm: str
    arguments: Mapping[str, Argument]
    values: Mapping[str, Tensor]
    errors: Mapping[str, Tensor]
    loss: Tensor
    free_energy: Tensor
    energy: Mapping[str, Tensor] = field(default_factory=dict)
    moving: bool = False
    descends: bool = True

    @property
    def steps(self) -> int:
        """How many inference steps were taken."""
        return len(self.free_energy) - 1

    @property
    def settles(self) -> bool:
        """Whether free energy is finite throughout and ends no higher than it began, where inference `descends` it.

        Where predictions stay, it is the errors' energy and begins at that of the outputs: only finite is asked.
        """
        energy = self.free_energy
        if not bool(energy.isfinite().all()):
            return False
        descends = self.moving and self.descends
        return not descends or float(energy[-1]) <= float(energy[0]) + RISE * abs(float(energy[0]))

    def first_not_finite(self) -> tuple[str, int] | None:
        """The vertex, from the outputs, whose error is the first that is not finite, and the step; None if all are."""
        for step in range(self.steps + 1):
            for name in reversed(tuple(self.errors)):
                if not bool(self.errors[name][step].isfinite().all()):
                    return name, step
        return None

    def __repr__(self) -> str:
        first, last = float(self.free_energy[0]), float(self.free_energy[-1])
        numbers = {k: f"{v:g}" if isinstance(v, int | float) else "by vertex" for k, v in self.arguments.items()}
        settings = "".join(f", {k}={v}" for k, v in numbers.items())
        vertices = count(len(self.values), "vertex", "vertices")
        verdict = "" if self.settles else ", which does not settle: take a smaller rate"
        return f"Trace({self.algorithm}{settings}: {vertices}, free energy {first:.4g} → {last:.4g}{verdict})"

    @property
    def page(self) -> Page:
        """The energy of each vertex, before and after."""
        rows = tuple(
            (name, "×".join(map(str, v.shape[1:])) or "1", number(float(e[0])), number(float(e[-1])))
            for (name, v), e in zip(self.values.items(), self.energy.values(), strict=True)
        )
        return Page((repr(self), Table(("vertex", "shape", ">energy at 0", f">at step {self.steps}"), rows)))

    def plot(self, path: str | Path | None = None) -> Any:
        """The energies over the steps, as a matplotlib Figure; written to `path` where one is given, by whose end.

        Raises CompileError without matplotlib.
        """
        picture = figure(7, 4.5)
        axes = picture.subplots()
        steps = range(self.steps + 1)
        largest = sorted(self.energy, key=lambda name: -float(self.energy[name].max()))[:LINES]
        for name in self.energy:
            if name in largest:
                axes.plot(steps, self.energy[name].tolist(), linewidth=1, label=printable(name, 40).replace("$", r"\$"))
        axes.plot(steps, self.free_energy.tolist(), color="black", linewidth=2, label="free energy")
        axes.set_yscale("symlog", linthresh=max(float(self.free_energy.abs().max()) * 1e-6, 1e-30))
        axes.set(xlabel="inference step", ylabel="energy", title=self.algorithm)
        axes.legend(fontsize="x-small", ncols=2)
        return save(picture, path)


def infer(
    pc: CompiledModule,
    args: tuple[Any, ...] | Tensor,
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: Any = None,
    loss: Criterion | None = None,
    steps: int | None = None,
    rate: float | None = None,
    free: Free | str = (),
    clamped: Mapping[str, Tensor] | None = None,
    mask: Mapping[str, Tensor] | None = None,
) -> Trace:
    """What inference does for one batch; the model's buffers and the random stream stay as they are.

    loss: loss(output, target); by default the one that the model was compiled with, or squared error. It clamps the
    outputs at −∂L/∂v̂; where predictions follow the values it is compiled into inference.
    steps, rate: instead of what the model was compiled with. target, free, clamped, mask: as for `settle`, which says
    where inference ends and keeps no steps. Raises CompileError.
    """
    args = (args,) if isinstance(args, Tensor) else tuple(args)
    loss = loss or pc.criterion
    moving = pc.prepare(args, kwargs).source.moving
    given = Given.of(target, loss, free, clamped, mask)
    asked = loss if moving and target is not None else None
    runtime = pc.prepare(args, kwargs, record=True, loss=asked, target=target, roles=given.roles)
    assert runtime.compiled is not None
    known = runtime.compiled.program.arguments
    numbers = {k: v for k, v in (("steps", steps), ("rate", rate)) if v is not None}
    if unknown := sorted(set(numbers) - set(known)):
        raise CompileError(
            f"{pc.options.algorithm} takes no {' and no '.join(unknown)}", hint="its inference is one sweep"
        )
    if (steps is not None and steps < 0) or (rate is not None and not rate > 0):
        raise CompileError(
            f"inference cannot take {steps if steps is not None else known['steps']} steps of size {rate or 0}"
        )
    return _Recorder(pc, runtime, {**known, **numbers}, given).run(args, dict(kwargs or {}), loss, target)


def recorded(
    pc: CompiledModule,
    runtime: Runtime,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    target: Any,
    loss: Criterion | None,
) -> Trace:
    """As `infer`, by a program that has been compiled to be recorded."""
    assert runtime.compiled is not None
    given = Given.of(target, loss)
    return _Recorder(pc, runtime, dict(runtime.compiled.program.arguments), given).run(args, dict(kwargs), loss, target)


class _Recorder:
    def __init__(self, pc: CompiledModule, runtime: Runtime, arguments: dict[str, Any], given: Given) -> None:
        self.pc, self.runtime, self.arguments, self.given = pc, runtime, arguments, given
        assert runtime.compiled is not None
        self.graph = runtime.compiled.pc
        self.shown: list[dict[str, Slots]] = []

    def record(self, shown: dict[str, Slots]) -> None:
        self.shown.append({slot: {k: v.detach().clone() for k, v in values.items()} for slot, values in shown.items()})

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], loss: Criterion | None, target: Any) -> Trace:
        params, buffers = self.pc.tables(self.runtime)
        bound = self.given.leaves(self.runtime, self.runtime.interface.bind(args, kwargs))
        inputs = {k: t.detach() for k, t in bound.items()}
        with torch.random.fork_rng():
            outputs, context = self.runtime.function("predict")(params, cloned(buffers), inputs, record=self.record)
        first = self.shown.pop()["prediction"]
        infer = self.runtime.function("infer")
        if self.runtime.source.moving:
            targets = list(self.given.targets)
            return self.moving(lambda **how: infer(params, context, targets, **how), outputs, targets, inputs)
        value, errors = clamp(self.runtime, outputs, loss, target)
        how = {"record": self.record} if self.arguments else {}
        found = infer(params, context, errors, **self.arguments, **how)
        found = found[0] if isinstance(found, tuple) else found
        return self.fixed(first, dict(zip(self.graph.clamped, errors, strict=True)), found, value)

    def fixed(self, first: Slots, clamped: Slots, found: Slots, loss: Tensor) -> Trace:
        """Predictions stay: the errors start at 0, those of the outputs where the loss puts them."""
        shown = [s["error"] for s in self.shown] or ([found] if not self.arguments else [])
        start = {name: clamped.get(name, torch.zeros_like(p)) for name, p in first.items()}
        errors = {name: torch.stack([start[name], *(s[name] for s in shown)]) for name in first}
        values = {name: first[name] + errors[name] for name in first}
        energy = {name: _energy(e) for name, e in errors.items()}
        total = torch.stack(list(energy.values())).sum(0)
        return self.trace(values, errors, energy, loss.double().cpu().expand(len(total)), total)

    def moving(
        self, infer: Callable[..., Any], outputs: tuple[Tensor, ...], targets: list[Tensor], inputs: Slots
    ) -> Trace:
        """Predictions follow the values: what a step shows is the state that it starts from, hence one step more."""
        if "steps" not in self.arguments:
            raise CompileError(
                f"{self.runtime.options.algorithm} takes no loop of steps here: there is nothing to trace"
            )
        infer(**{**self.arguments, "steps": self.arguments["steps"] + 1}, record=self.record)
        if not self.shown:
            raise CompileError("the model has no hidden values, which inference could move: there is nothing to trace")
        errors = {n: torch.stack([s["error"][n] for s in self.shown]) for n in self.graph.names}
        predictions = {n: torch.stack([s["prediction"][n] for s in self.shown]) for n in self.graph.names}
        values = {n: predictions[n] + errors[n] for n in self.graph.names}
        energy = {n: self.energy(n, errors[n]) for n in errors}
        losses, unweighted = [], []
        weighted = [v.name for v in self.graph.vertices if v.name in self.graph.clamped and v.energy]
        for step in range(len(self.shown)):
            present = list(outputs)
            for position, name in zip(self.runtime.source.errors, self.graph.clamped, strict=True):
                present[position] = predictions[name][step]
            value, clamped = self.runtime.clamp(present, targets)
            losses.append(value.double().cpu())
            errors_of = dict(zip(self.graph.clamped, clamped, strict=True))
            unweighted.append(sum((_energy(errors_of[name][None])[0] for name in weighted), torch.zeros(())))
        loss = torch.stack(losses)
        priced = [energy[name] for name in (*(v.name for v in self.graph.latent), *self.graph.observed, *weighted)]
        total = torch.stack([*priced, loss]).sum(0) - torch.stack(unweighted)
        names = {r.vertex: r.name for r in self.graph.roles}
        for role in self.graph.roles:
            values[role.vertex] = completed(role, values[role.vertex], inputs)
        shown = [{names.get(n, n): t for n, t in slot.items()} for slot in (values, errors, energy)]
        return self.trace(shown[0], shown[1], shown[2], loss, total)

    def energy(self, vertex: str, errors: Tensor) -> Tensor:
        """What a vertex costs in each step."""
        shown = [s.get("energy", {}).get(vertex) for s in self.shown]
        given = [e.double().sum().cpu() for e in shown if e is not None]
        return torch.stack(given) if given else _energy(errors)

    def trace(self, values: Slots, errors: Slots, energy: Slots, loss: Tensor, total: Tensor) -> Trace:
        moving = self.runtime.source.moving
        options = self.runtime.options
        descends = ALGORITHMS[options.algorithm].descends and options.transposes
        return Trace(options.algorithm, self.arguments, values, errors, loss, total, energy, moving, descends)


def _energy(errors: Tensor) -> Tensor:
    return 0.5 * errors.abs().double().square().reshape(len(errors), -1).sum(1).cpu()
