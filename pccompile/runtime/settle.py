"""Inference of one batch to its end: inputs, hidden values and their elements inferred from what is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.ir import FLAT, flat
from pccompile.ir.equations import names, parse
from pccompile.ir.liveness import handed
from pccompile.passes.roles import Free
from pccompile.runtime.given_values import Given, completed
from pccompile.runtime.loaded_program import Runtime, parted
from pccompile.runtime.module import CompiledModule


@dataclass(frozen=True)
class Settled:
    """Where inference has ended.

    values: by vertex, and by input where that is free; of an output what it predicts. errors: by vertex, −∂L/∂v̂ at an
    output. gradients: ∂F/∂θ by the path of the parameter. outputs: the model's result at these values.
    """

    values: Mapping[str, Tensor]
    errors: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    outputs: Any

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]


def settle(
    pc: CompiledModule,
    args: tuple[Any, ...] | Tensor,
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: Any = None,
    free: Free | str = (),
    clamped: Mapping[str, Tensor] | None = None,
    mask: Mapping[str, Tensor] | None = None,
    loss: Any = None,
    steps: int | None = None,
    rate: float | None = None,
) -> Settled:
    """The values at which inference of a batch ends, and the gradients there; nothing of the model changes.

    target: of the outputs; without one they are silent, their error 0, and with several a None silences one. The loss
    is the one that the model was compiled with, or `loss`, else half the squared error.
    free: inputs that are inferred, from the argument on; or a table of them with a `pccompile.energy(...)` as prior,
    E(x, 0), such as energy("gaussian") for a standard normal one.
    clamped: the values of hidden vertices, by name: they do not move, and send their errors. Of an output it is a
    target with half the squared error.
    mask: booleans by name, True for elements that are given: of an input by its argument, of a vertex by `clamped`. The
    others are inferred. Names are those of the model's inputs and of vertices, or of a module with a single vertex.
    steps, rate: instead of what the model was compiled with.
    Raises CompileError for an unknown name, and where the algorithm moves no values.
    """
    args = (args,) if isinstance(args, Tensor) else tuple(args)
    named, loss = dict(kwargs or {}), loss or pc.criterion
    given = Given.of(target, loss, free, clamped, mask, shown=True)
    runtime, tables, inputs = pc.program_for(args, named, target, given.roles, loss)
    numbers = changed(runtime, steps, rate)
    assert runtime.compiled is not None
    with torch.no_grad():
        inputs = {k: t.detach() for k, t in given.leaves(runtime, inputs).items()}
        outputs, context = pc.predict(runtime, tables, inputs, probe=True)
        kind = next(iter((*tables[0].values(), *inputs.values()))).device.type
        with torch.autocast(kind, enabled=False), torch.random.fork_rng():
            result = runtime.function("infer", plain=True)(tables[0], context, list(given.targets), **numbers)
            found: dict[str, dict[str, Tensor]] = dict(zip(handed(runtime.compiled.program), result, strict=True))
            gradients, _ = learned(runtime, tables[0], context, result, numbers)
    present = outputs_of(runtime, found, inputs, outputs)
    known, values = runtime.compiled.pc, values_of(runtime, found, inputs)
    called = {r.vertex: r.name for r in known.roles}
    priced = [v.name for v in known.vertices if v.name in known.observed or v.energy != FLAT]
    errors = {called.get(n, n): found["error"][n] for n in priced}
    return Settled(values, errors, gradients, runtime.interface.assemble(present, inputs))


def changed(runtime: Runtime, steps: int | None, rate: float | None) -> dict[str, Any]:
    """The numbers that a call gives of its own. Raises CompileError for what the algorithm does not have."""
    assert runtime.compiled is not None
    known = runtime.compiled.program.arguments
    given: dict[str, Any] = {k: v for k, v in (("steps", steps), ("rate", rate)) if v is not None}
    if not runtime.source.moving:
        raise CompileError(f"{runtime.options.algorithm} moves no values: its predictions stay", hint="use strict")
    if unknown := sorted(set(given) - set(known)):
        raise CompileError(f"{runtime.options.algorithm} takes no {' and no '.join(unknown)}")
    if (steps is not None and steps < 0) or (rate is not None and not rate > 0):
        raise CompileError(f"inference cannot take {steps} steps of size {rate}", hint="steps from 0, a rate above 0")
    if rate is not None and isinstance(known["rate"], Mapping):
        given["rate"] = dict.fromkeys(known["rate"], rate)
    return given


def learned(
    runtime: Runtime, params: Any, context: Any, settled: tuple[Any, ...], numbers: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The gradients at the settled values, and what lasts between calls."""
    assert runtime.compiled is not None
    read = {n for d in flat(runtime.compiled.program.learn) for n in names(parse(d.equation))}
    arguments = {k: numbers.get(k, v) for k, v in runtime.compiled.program.arguments.items() if k in read}
    return parted(runtime.function("learn", plain=True)(params, context, *settled, **arguments))


def values_of(
    runtime: Runtime, found: Mapping[str, Mapping[str, Tensor]], inputs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What vertices and free inputs are, under the names that a user knows."""
    assert runtime.compiled is not None
    pc, values, roles = runtime.compiled.pc, dict[str, Tensor](), {r.vertex: r for r in runtime.compiled.pc.roles}
    moved, predicted = found[runtime.compiled.program.state], found["prediction"]
    for v in pc.vertices:
        role = roles.get(v.name)
        if role:
            values[role.name] = completed(role, moved.get(v.name, predicted[v.name]), inputs)
        elif v.name in moved or v.result in pc.graph.outputs:
            values[v.name] = moved.get(v.name, predicted[v.name])
    return values


def outputs_of(
    runtime: Runtime,
    found: Mapping[str, Mapping[str, Tensor]],
    inputs: Mapping[str, Tensor],
    forward: tuple[Tensor, ...],
) -> list[Tensor]:
    """The outputs of the graph at the settled values; those that carry no error are those of the forward pass."""
    assert runtime.compiled is not None
    pc = runtime.compiled.pc
    ends = {str(v.result): found["prediction"][v.name] for v in pc.vertices if v.name in pc.ends}
    known = {**inputs, **found[runtime.compiled.program.state], **ends}
    return [known.get(o, tensor) for o, tensor in zip(pc.graph.outputs, forward, strict=True)]
