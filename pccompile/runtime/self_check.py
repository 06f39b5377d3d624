"""A program right after compiling against the model itself: outputs and gradients, by eager autograd on the example.

The outputs' errors are random numbers, so that every output takes part whatever the loss will be. Where an algorithm
differs from backpropagation by design, the exact program over the same vertices is compared: the rules are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pccompile.analysis.compare import Checked, difference
from pccompile.backends.torch import emit
from pccompile.diagnostics import CompileError, first_line, listing
from pccompile.frontends.model_tensors import tensor_at
from pccompile.ir import TensorType
from pccompile.ops import definition
from pccompile.ops.paths import OTHER_PATH
from pccompile.passes.choices import RANDOM
from pccompile.passes.feedback import with_feedback
from pccompile.pipeline import Compiled, Options, schedule
from pccompile.runtime.comparison import NOTHING, REPORT, TOLERANCE, Comparison, NotRun, error, refusal, tensors_of
from pccompile.runtime.fault_location import Fault, first_fault, reference_values
from pccompile.runtime.loaded_program import Runtime
from pccompile.runtime.losses import targets_of
from pccompile.runtime.smaller_example import Example, examples
from pccompile.runtime.trial_run import Change, Results, backward, has_hooks, streams

Run = Callable[[Runtime, dict[str, Tensor]], Sequence[Tensor]]
"""Runs a program on tensors by name, as a part of autograd."""
ALONE = "gradients were compared without the mirrors of the layers, which the model does not have"
MIRRORED = "gradients were compared with each weight as its own feedback and with all derivatives, not as they are"


def self_check(
    model: nn.Module, runtime: Runtime, args: tuple[Any, ...], kwargs: Mapping[str, Any], run: Run
) -> Checked:
    """`runtime` compared with `model` on the example arguments; neither they nor the model are touched.

    A part of the example will do, unless the model does not run on it or some gradient is 0 there. Raises CompileError,
    which names what differs and the first vertex whose value or error does.
    """
    check, checked = _Check(model, runtime, Example(args, kwargs), run), None
    reason = check.reason_to_skip()
    for example in () if reason else examples(check.compiled, runtime.interface, args, kwargs):
        try:
            checked = check.run(example)
        except NotRun as e:
            reason = str(e)
            continue
        if not checked.zero:
            break
    return checked or Checked(notes=(f"not compared with eager torch: {reason}",))


def check_loss(runtime: Runtime, criterion: Callable[..., Tensor], outputs: Sequence[Tensor], target: Any) -> None:
    """Raise CompileError where the loss of a program, or an error that it gives an output, is not that of autograd."""
    free = [o.detach() for o in outputs]
    clamped = [free[i].requires_grad_() for i in runtime.source.errors]
    sent: Sequence[Tensor | None] = [None] * len(clamped)
    with torch.inference_mode(False), torch.enable_grad(), streams(free):
        value = criterion(runtime.interface.assemble(free), target)
        if value.requires_grad:
            sent = torch.autograd.grad(value, clamped, allow_unused=True)
    with streams(free):
        loss, errors = runtime.clamp([o.detach() for o in outputs], targets_of(target))
    wanted = [torch.zeros_like(o) if g is None else -g for g, o in zip(sent, clamped, strict=True)]
    pairs = zip(errors, wanted, strict=True)
    compared = [difference("the loss", loss.reshape(()), value.detach().reshape(()))]
    compared += [difference(f"the error of output {i}", e, w) for i, (e, w) in enumerate(pairs)]
    limit = max(TOLERANCE.get(o.dtype, 0.0) for o in outputs)
    if differing := [d for d in compared if not (d.relative_error <= limit or error(d) <= limit * NOTHING)]:
        raise refusal(differing, None)


class _Check(Comparison):
    """One program against its model."""

    def __init__(self, model: nn.Module, runtime: Runtime, example: Example, execute: Run) -> None:
        whole = runtime.compiled
        assert whole is not None
        self.compiled = replace(whole, pc=whole.plain or whole.pc)
        defined = [definition(n.op) for n in self.compiled.graph.nodes]
        misjudged = next((op.misjudged for op in defined if op.misjudged), "")
        super().__init__(model, example, coarsest(self.compiled), any(op.random for op in defined), misjudged)
        self.execute, self.runtime, self.has_hooks = execute, exact(runtime), has_hooks(model)

    def reference(self, change: Change | None = None) -> Results:
        """What autograd gives: of the model itself, or of its operations where its hooks would run. Raises NotRun."""
        return self.captured(change) if self.has_hooks else self.eager(change)

    def note_on_reference(self) -> tuple[str, ...]:
        """That the model itself has not run."""
        text = "compared with its captured operations: the model itself would have run its hooks once more"
        return (text,) if self.has_hooks else ()

    def learning(self) -> dict[str, Tensor]:
        """The parameters that the program has gradients for, or that learn without it, by key."""
        paths = {g.key: g.entry for g in self.runtime.source.gradients if g.table == "params"}
        named = {k: p for k, path in paths.items() if isinstance(p := tensor_at(self.model, path), Tensor)}
        known = {id(p) for p in named.values()}
        return named | {k: p for k, p in self.model.named_parameters() if p.requires_grad and id(p) not in known}

    def leaves(self, leaves: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """The inputs whose gradient is wanted, by key."""
        keys = {g.entry: g.key for g in self.runtime.source.gradients if g.table == "inputs"}
        names = self.runtime.interface.inputs
        return {keys.get(n, f"input {n}"): leaf for i, leaf in leaves.items() if (n := names[i]) is not None}

    def captured(self, change: Change | None = None) -> Results:
        """What autograd gives on the captured operations: running the model would run its hooks. Raises NotRun."""
        graph = self.compiled.imported.graph
        with self.trial(change) as (learning, args, kwargs):
            inputs = self.runtime.interface.bind(args, kwargs)
            try:
                values, outputs = reference_values(graph, *self.tables(), inputs)
                named = {g.key: values[g.name] for g in self.runtime.source.gradients}
                results = backward(tensors_of(self.runtime.interface.assemble(outputs, inputs)), named)
            except Exception as e:
                raise NotRun(f"it has hooks, and its operations do not run one by one ({first_line(e)})") from e
            return replace(results, gradients={k: results.gradients.get(k) for k in learning})

    def tables(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The model's parameters and buffers by path, as it has them now."""
        graph, own = self.compiled.imported.graph, self.compiled.imported.tensors
        params, buffers = (
            {path: own[n] if (t := tensor_at(self.model, path)) is None else t for n, path in origins}
            for origins in ([(n, graph.origin[n]) for n in names] for names in (graph.params, graph.buffers))
        )
        return params, buffers

    def program(self, change: Change | None = None) -> Results:
        """What the program gives. Raises CompileError where it fails."""
        with self.trial(change) as (learning, args, kwargs):
            inputs = self.runtime.interface.bind(args, kwargs)
            try:
                outputs = self.execute(self.runtime, inputs)
                return backward(tensors_of(self.runtime.interface.assemble(outputs, inputs)), learning)
            except CompileError:
                raise
            except Exception as e:
                if type(e).__name__ == OTHER_PATH:
                    raise NotRun("Python takes another path there") from e
                if empty := self.empty():
                    what = f"forward gives its first entries to {listing(empty)}"
                    raise CompileError(what, hint="run the model once before it is compiled") from e
                what = f"the compiled program fails where the model runs: {type(e).__name__}: {first_line(e)}"
                raise CompileError(what, hint=REPORT) from e

    def empty(self) -> list[str]:
        """The buffers without entries that the program writes: quantisation gives them their sizes at the first run."""
        graph = self.compiled.graph
        return [graph.origin[b] for b in graph.updates if 0 in graph.buffers[b].shape]

    def decided(self) -> set[str]:
        """The gradients that are none where their branch is not taken; torch.cond has zeros there."""
        pc = self.compiled.pc
        return {pc.graph.origin[name] if name in pc.graph.params else f"input {name}" for name in pc.decided}

    def fault(self) -> tuple[Fault | None, str]:
        """The first fault, in float64; or why it could not be looked for."""
        try:
            with self.trial(None) as (_, args, kwargs):
                inputs = self.runtime.interface.bind(args, kwargs)
                return first_fault(self.compiled, *self.tables(), inputs), ""
        except Exception as e:
            return None, first_line(e)


def coarsest(compiled: Compiled) -> torch.dtype:
    """The floating type with the fewest digits among a program's values."""
    types = [t for n in compiled.graph.nodes for t in (n.type if isinstance(n.type, tuple) else (n.type,))]
    types += compiled.graph.leaves.values()
    real = {t.dtype.to_real() for t in types if isinstance(t, TensorType) and t.differentiable}
    return max((d for d in real if d in TOLERANCE), key=lambda d: TOLERANCE[d], default=torch.float32)


def exact(runtime: Runtime) -> Runtime:
    """The exact program over the vertices of `runtime`; itself where it is that.

    Where messages read other weights, that program reads the model's in their place, and no derivative is left out.
    """
    compiled = runtime.compiled
    assert compiled is not None
    swapped = compiled.plain is not None and not runtime.options.transposes
    if compiled.plain is not None and not swapped:
        compiled = replace(compiled, pc=compiled.plain)
    elif compiled.plain is not None:
        mirror = with_feedback(compiled.plain, compiled.imported.typer, RANDOM, home=runtime.options.home)
        compiled = replace(compiled, pc=mirror)
    elif compiled.program.algorithm == "exact":
        return runtime
    program = schedule(compiled.pc, Options("exact"))
    options = replace(
        runtime.options,
        algorithm="exact",
        granularity=runtime.options.vertices,
        settings={},
        on_divergence="ignore",
        feedback="transpose",
        derivatives="exact",
        jit=False,
    )
    rules = replace(runtime, source=emit(program), name=f"{runtime.name} rules", options=options, _scope={})
    return replace(rules, compiled=replace(compiled, program=program, source=rules.source), mirrored=swapped)
