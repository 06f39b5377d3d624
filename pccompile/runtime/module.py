"""A compiled model where an nn.Module is expected: `loss.backward()` runs predictive coding instead of backpropagation.

The parameters go through autograd as arguments of one function, and their gradients come back as its results. So
whatever listens to autograd (optimizers, DistributedDataParallel's hooks, clipping, accumulation) works unchanged.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch.utils import _pytree as pytree

from pccompile.algorithms import ALGORITHMS
from pccompile.diagnostics import CompileError, RuleError
from pccompile.frontends.autocast import without_autocast
from pccompile.frontends.capture import exported_elsewhere
from pccompile.frontends.imported import Locate
from pccompile.frontends.process import capturing
from pccompile.passes.carry_updates import carry_updates
from pccompile.passes.mirror import MIRROR
from pccompile.passes.roles import ALL, NO_ROLES, Roles
from pccompile.pipeline import Hook, Options, Stages
from pccompile.runtime.autograd_function import Keep, applied
from pccompile.runtime.automatic_rates import Rates, measures
from pccompile.runtime.data_parallel import Wrapped
from pccompile.runtime.derivative_guards import opaque
from pccompile.runtime.derivative_reads import compile_reading
from pccompile.runtime.feedback_weights import unused
from pccompile.runtime.forwarding import Forward
from pccompile.runtime.graph_call import traced_call
from pccompile.runtime.hook_calls import run_hooks
from pccompile.runtime.loaded_program import Runtime
from pccompile.runtime.loss_lengths import program_key
from pccompile.runtime.losses import (
    MEAN_LOSS,
    compile_loss,
    means_over_batch,
    refuse_losses,
    targets_of,
)
from pccompile.runtime.model_state import Tables
from pccompile.runtime.module_captures import Call
from pccompile.runtime.prepared_calls import PreparedModule
from pccompile.runtime.program_cache import CallKey, Captured, ProgramKey
from pccompile.runtime.reached_outputs import asking, reaching
from pccompile.runtime.self_check import ALONE, MIRRORED, check_loss, self_check
from pccompile.runtime.squared_error import refuse_other_targets
from pccompile.runtime.states import Writes, refuse_moving
from pccompile.runtime.uncompiled import Refusals
from pccompile.runtime.unread_states import set_apart

Criterion = Callable[..., Tensor]


class CompiledModule(PreparedModule):
    """`model` with predictive-coding gradients: the same Parameter objects, the same state_dict.

    A call in a new form (another shape where dimensions are fixed, another dtype, train instead of eval mode) compiles
    the model again; what is free does not: dimensions 0 and 1 of sequences of vectors, of indices and of masks, else 0,
    and what has varied between calls. `recaptures` says why the model was captured again.
    """

    def __init__(
        self,
        model: nn.Module,
        options: Options,
        loss: Criterion | None = None,
        dynamic_shapes: Any = None,
        locate: Locate | None = None,
        recapture: bool = True,
        hook: Hook | None = None,
        check: bool = True,
    ) -> None:
        super().__init__(dynamic_shapes, locate, recapture, hook)
        home = MIRROR if ALGORITHMS[options.algorithm].mirrors else options.home
        self.options = replace(options, home=unused(home, model), kept=unused(options.kept, model))
        self._share(model)
        self.__dict__["criterion"] = loss  # a loss that is a module is none of the model's, whose table this one shares
        self._check = check
        self._rates = Rates()
        self._refusals = Refusals()

    def _anew(self) -> dict[str, Any]:
        return {**super()._anew(), "_refusals": Refusals()}

    # compiling

    def prepare(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None = None,
        record: bool = False,
        loss: Criterion | None = None,
        target: Any = None,
        roles: Roles = NO_ROLES,
    ) -> Runtime:
        """The program for a call with these arguments, compiled if there is none yet. Raises CompileError."""
        named = dict(kwargs or {})
        return self._program(self._call(args, named), args, named, loss, target, record, roles)[0]

    def _program(
        self,
        call: Call,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        loss: Any = None,
        target: Any = None,
        record: bool = False,
        roles: Roles = NO_ROLES,
    ) -> tuple[Runtime, Tables, dict[str, Tensor]]:
        """The program for a call, with the model's tensors and those of the call."""
        captured, inputs = call
        tables = captured.state.tables(captured.imported)
        key = self._key(captured, tables, inputs, loss, target, record, roles)
        runtime = captured.used(key)
        if runtime is None:
            with capturing():
                captured, runtime = self._compiled(captured, CallKey(*key), args, kwargs, loss, target)
            tables = captured.state.tables(captured.imported)
            inputs = captured.interface.bind(args, kwargs)
        if measures(self.options) and not roles:
            runtime = self._rates.program(runtime, tables, inputs, loss, target, record)
        if not record:
            self._last = runtime
        return runtime, self._with_own(runtime, tables, inputs), inputs

    def _compiled(
        self, captured: Captured, key: CallKey, args: Any, kwargs: Any, loss: Any, target: Any
    ) -> tuple[Captured, Runtime]:
        """The program for these gradients, loss and record, and the capture that it is of."""
        kind = program_key(captured, key, args, kwargs, target)
        captured.program(kind)  # lets go of one that is outdated; what a new one reads may change while it is checked
        while kind not in captured.programs:
            try:
                captured.programs[kind] = self._compile(captured, kind, args, kwargs, loss, target)
            except RuleError:
                if not self._frees(captured):
                    raise
                captured = self._free_less(captured, args, kwargs)
        runtime = captured.take(kind, key)
        self._cache.keep_losses(self._losses)
        return captured, runtime

    def _compile(
        self,
        captured: Captured,
        kind: ProgramKey,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        loss: Any,
        target: Any,
    ) -> Runtime:
        record, roles = kind.record, kind.roles
        options = replace(self.options, roles=roles, jit=self.options.jit and not (record or roles))
        if record and any(f.name == "lowering" for f in fields(ALGORITHMS[options.algorithm].settings)):
            options = replace(options, settings={**options.settings, "lowering": "relax"})
        imported = replace(captured.imported, graph=carry_updates(replace(captured.imported.graph, wanted=kind.wanted)))
        imported, apart = set_apart(imported, ALGORITHMS[options.algorithm].needs_loss)
        compiled_loss, taken = None, None
        notes: tuple[str, ...] = ()
        if kind.loss is not None:
            plain, tables, inputs = self._program(self._call(args, kwargs), args, kwargs)
            outputs, _ = self.predict(plain, tables, inputs, probe=True)
            compiled_loss, taken = compile_loss(loss, kind.loss, captured, outputs, target, self._free)
            if plain.source.moving and means_over_batch(loss, captured.interface, outputs, target):
                notes = (MEAN_LOSS,)
        compiled, reads = compile_reading(imported, options, compiled_loss, record, self._hook)
        if loss or self.criterion or options.outside_loss != "refuse":
            refuse_losses(compiled, options.algorithm)
        own = captured.state.tables(captured.imported), captured.interface.named(pytree.tree_leaves((args, kwargs)))
        self._grow(compiled, *own)
        if self._check and not (record or roles) and compiled.plain is not None:
            notes += (ALONE if options.transposes else MIRRORED,)
        name = f"{type(self.__dict__['model']).__name__} {options.algorithm}"
        if compiled.source.moving:
            refuse_moving(imported, [imported.graph.outputs[i] for i in compiled.source.errors])
        parts = reaching(compiled), name, Writes.of(imported, apart), compiled
        runtime = Runtime(compiled.source, captured.interface, *parts, options=options, notes=notes)
        runtime.asking, runtime.reads, runtime.taken = asking(compiled), reads, taken
        if not self._check or record or roles:
            return runtime
        if loss is None:
            model: nn.Module = self.__dict__["model"]
            stage = Stages(self._hook)
            runtime.checked = stage("check", lambda: self_check(model, runtime, args, kwargs, self._run))
        else:
            runtime.checked = plain.checked
            check_loss(runtime, loss, outputs, target)
        return runtime

    # running

    def tables(self, runtime: Runtime) -> Tables:
        """The model's parameters and buffers as the generated functions take them."""
        assert runtime.compiled is not None
        return self._with_own(runtime, self._cache.look(self.__dict__["model"]).tables(runtime.compiled.imported))

    def predict(
        self, runtime: Runtime, tables: Tables, inputs: dict[str, Tensor], probe: bool = False
    ) -> tuple[tuple[Tensor, ...], list[Any]]:
        """The outputs and the context; the program itself makes the casts of autocast."""
        params, buffers = tables
        with without_autocast(next(iter((params or inputs).values())).device.type):
            if probe:  # an example forward pass leaves no trace: neither in the buffers nor in the random stream
                buffers = {k: b.clone() for k, b in buffers.items()}
            with torch.random.fork_rng() if probe else nullcontext():
                outputs, context = runtime.function("predict", plain=probe)(params, buffers, inputs)
        return outputs, context

    @Forward
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns, with predictive coding as its backward pass; for torch.export, the model itself."""
        if torch.compiler.is_dynamo_compiling():
            return traced_call(self, self.__dict__["_name"], args, kwargs)
        at_work = get_eval_frame_callback() is not None  # or else nothing has to be kept from Dynamo
        return self.called(*args, **kwargs) if at_work else self._called(args, kwargs)

    @opaque
    def called(self, *args: Any, **kwargs: Any) -> Any:
        """A call by eager torch."""
        return self._called(args, kwargs)

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_exporting() and not exported_elsewhere():
            return self.__dict__["model"](*args, **kwargs)
        try:
            runtime, tables, inputs = self._found(args, kwargs)
        except CompileError as e:
            if torch.is_grad_enabled():
                raise
            self._refusals.tell(self.__dict__["model"], e)
            return self.__dict__["model"](*args, **kwargs)  # without gradients the model is its own program
        return runtime.interface.assemble(self._step(runtime, tables, inputs), inputs)

    def _step(
        self, runtime: Runtime, tables: Tables, inputs: dict[str, Tensor], targets: list[Tensor] | None = None
    ) -> Sequence[Tensor]:
        """The outputs of a call, before them its loss; states and arguments are moved on, and hooks have run."""
        keep = self.keep if runtime.source.lasting else None
        if targets is None and not (runtime.plan.writes or runtime.interface.observations):
            return applied(runtime, tables, inputs, None, keep)
        return self.step_by(functools.partial(self._run, keep=keep), runtime, tables, inputs, targets)

    def step_by(
        self, run: Any, runtime: Runtime, tables: Tables, inputs: dict[str, Tensor], targets: list[Tensor] | None
    ) -> Sequence[Tensor]:
        """A call that `run` runs."""
        if targets is not None:
            refuse_other_targets(runtime, inputs, targets)
        writes = runtime.plan.writes
        own = runtime.writes.own(tables[1], inputs) if writes else inputs
        results: Sequence[Tensor] = run(runtime, own, targets, tables)
        if not (writes or runtime.interface.observations):
            return results
        lead = len(results) - len(runtime.source.outputs)
        outputs = results[lead:]
        if writes:
            outputs = runtime.writes.apply(self.__dict__["model"], tables[1], inputs, outputs)
        if runtime.interface.observations:
            run_hooks(runtime.interface.observations, runtime.interface.shown(outputs, inputs))
        return (*results[:lead], *outputs)

    def _run(
        self,
        runtime: Runtime,
        inputs: dict[str, Tensor],
        targets: list[Tensor] | None = None,
        tables: Tables | None = None,
        keep: Keep | None = None,
    ) -> Sequence[Tensor]:
        """The outputs of a call, before them its loss where there are targets, as autograd knows them.

        keep: what the backward pass does with what lasts between calls; without it, nothing.
        """
        return applied(runtime, tables or self.tables(runtime), inputs, targets, keep)

    @opaque
    def loss(self, *args: Any, target: Any, **kwargs: Any) -> Tensor:
        """The loss that the model was compiled with, as a scalar for `backward()`.

        The loss takes part in inference, which algorithms need whose predictions move (strict). Without a loss it is
        the squared error ½‖target − output‖², summed. Gradients scale with what flows into the scalar; inference itself
        does not, so a loss scaler leaves the result unchanged.
        """
        WRAPPED.refuse_around(self, "loss")
        return self.loss_by(self.criterion, args, kwargs, target)

    def loss_by(
        self, criterion: Criterion | None, args: tuple[Any, ...], kwargs: Mapping[str, Any], target: Any
    ) -> Tensor:
        """As `loss`, by another criterion: a program for that is compiled first."""
        runtime, tables, inputs = self._found(args, dict(kwargs), criterion, target, targets=1)
        return self.loss_of(runtime, tables, inputs, targets_of(target))

    def loss_of(self, runtime: Runtime, tables: Tables, inputs: dict[str, Tensor], targets: Sequence[Tensor]) -> Tensor:
        """As `loss`, by a program that has been found for the call."""
        return self._step(runtime, tables, inputs, list(targets))[0]

    def program_for(
        self, args: Any, kwargs: dict[str, Any], target: Any, roles: Roles = NO_ROLES, loss: Criterion | None = None
    ) -> tuple[Runtime, Tables, dict[str, Tensor]]:
        """The program with a loss, the compiled-in one as a rule, with the model's tensors and those of the call."""
        criterion = None if ALL in roles.silent else loss or self.criterion
        return self._program(self._call(args, kwargs), args, kwargs, criterion, target, roles=roles)


WRAPPED = Wrapped(CompiledModule)
