"""A model on the bench: autograd's gradients and predictive coding's, from the same numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pccompile.diagnostics import printable
from pccompile.frontends.places import change_attributes
from pccompile.pipeline import compile_imported
from pccompile.report.losses import Criterion, cast, clamp, cloned, random_target, squared_error
from pccompile.runtime.loaded_program import Runtime, parted
from pccompile.runtime.module import CompiledModule
from pccompile.runtime.pieces import ModuleInPieces
from pccompile.runtime.reached_outputs import reaching
from pccompile.runtime.trial_run import untouched

Gradients = dict[str, "Tensor | None"]


class Bench:
    """One call of one compiled model, to be repeated from equal states: the same draws, the same running statistics."""

    def __init__(
        self,
        pc: CompiledModule,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        loss: Criterion | None,
        target: Any,
        seed: int,
    ) -> None:
        self.pc, self.args, self.kwargs, self.seed = pc, args, dict(kwargs), seed
        self.own = loss is None or loss is pc.criterion
        self.loss: Criterion = loss or pc.criterion or squared_error
        self.given = target
        self.model: nn.Module = pc.__dict__["model"]
        floating = [t.dtype for t in (*self.model.parameters(), *self.model.buffers()) if t.is_floating_point()]
        self.dtype = floating[0] if floating else torch.get_default_dtype()
        self._target: Any = target

    @contextmanager
    def _still(self) -> Iterator[None]:
        """Seeded, and without a trace in the model's states or the random stream."""
        with untouched(self.model):
            torch.manual_seed(self.seed)
            yield

    def run(self, model: Callable[..., Any]) -> Any:
        """What `model` returns."""
        pieces = isinstance(model, ModuleInPieces)  # without gradients they run as they are
        with self._still(), torch.set_grad_enabled(pieces):
            return model(*self.args, **self.kwargs)

    @property
    def target(self) -> Any:
        """The target, drawn if none was given."""
        if self._target is None:
            self._target = random_target(self.loss, self.run(self.model), self.seed)
        return self._target

    def parameters(self) -> dict[str, nn.Parameter]:
        """Those that learn."""
        return {k: p for k, p in self.model.named_parameters() if p.requires_grad}

    def autograd(self) -> Gradients:
        """The gradients of the model itself, by backpropagation."""
        target = self.target
        with self._still():
            return self._gradients(self.loss(self.model(*self.args, **self.kwargs), target))

    def predictive_coding(self) -> Gradients:
        """The gradients of the compiled model; where predictions follow the values, the loss is in inference."""
        target = self.target
        with self._still(), self.pc.lasting_still():
            if not isinstance(self.pc, ModuleInPieces) and self.pc.prepare(self.args, self.kwargs).source.moving:
                criterion = self.pc.criterion if self.own else self.loss
                return self._gradients(self.pc.loss_by(criterion, self.args, self.kwargs, target))
            return self._gradients(self.loss(self.pc(*self.args, **self.kwargs), target))

    def _gradients(self, loss: Tensor) -> Gradients:
        parameters = self.parameters()
        if not loss.requires_grad or not parameters:
            return dict.fromkeys(parameters)
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        return dict(zip(parameters, found, strict=True))

    def other_program(self, **settings: Any) -> Runtime:
        """The same model compiled by the same algorithm with other settings."""
        runtime = self.pc.prepare(self.args, self.kwargs)
        assert runtime.compiled is not None
        options = replace(self.pc.options, settings=settings)
        compiled = compile_imported(runtime.compiled.imported, options)
        return replace(runtime, source=compiled.source, reaching=reaching(compiled), compiled=compiled, _scope={})

    def gradients_of(self, runtime: Runtime) -> Gradients:
        """The gradients of a program of this model, its outputs clamped by the loss."""
        params, buffers = self.pc.tables(runtime)
        inputs = {k: t.detach() for k, t in runtime.interface.bind(self.args, self.kwargs).items()}
        target = self.target
        with self._still():
            outputs, context = runtime.function("predict")(params, cloned(buffers), inputs)
        _, errors = clamp(runtime, outputs, self.loss, target)
        found, _ = parted(runtime.function("infer_and_learn")(params, context, errors))
        names = {id(p): k for k, p in self.parameters().items()}
        return {names[id(params[k])]: g for k, g in found.items() if k in params and id(params[k]) in names}


def double_bench(
    pc: CompiledModule, args: tuple[Any, ...], kwargs: Mapping[str, Any], loss: Criterion | None, target: Any, seed: int
) -> tuple[Bench, list[str]]:
    """A bench in float64 where the model runs in it, else in its own precision; and what to tell the reader."""
    own = Bench(pc, args, kwargs, loss, target, seed)
    if own.dtype is torch.float64:
        return own, ["gradients were compared in float64"]
    try:
        with untouched(pc.__dict__["model"]):  # states that have a history cannot be copied
            twin = copy.deepcopy(pc)
        model = twin.__dict__["model"].double()  # a model may have constants that PCModule.double would not reach
        change_attributes(model, lambda t: t.double() if t.is_floating_point() else t)
        wide = Bench(
            twin, cast(args, torch.float64), cast(dict(kwargs), torch.float64), loss, cast(target, torch.float64), seed
        )
        wide.own = own.own
        wide.run(model)
        if isinstance(twin, ModuleInPieces):
            wide.run(twin)
        else:
            twin.prepare(wide.args, wide.kwargs)
    except Exception as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0].removeprefix("error: ")
        name = str(own.dtype).removeprefix("torch.")
        return own, [f"gradients were compared in {name}: the model does not run in float64 ({printable(reason, 120)})"]
    return wide, ["gradients were compared in float64"]
