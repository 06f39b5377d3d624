"""`torch.compile(model, backend="pccompile")`: any Python program, cut by Dynamo into pieces that learn locally.

Each piece between two graph breaks becomes a program of its own, whose backward pass is predictive coding; autograd
hands the errors from piece to piece. Parameters come to a piece as arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from pccompile.diagnostics import CompileError
from pccompile.frontends.dynamo import Exportable, exportable
from pccompile.frontends.imported import Imported
from pccompile.frontends.signature import CaptureForm
from pccompile.passes.activity import active
from pccompile.passes.feedback import LEAVES
from pccompile.pipeline import Options, import_model
from pccompile.runtime.dynamo_notes import (
    guard_hooks,
    guard_methods,
    is_last_form,
    refuse_absent_gradients,
    takes_absent_gradients,
)
from pccompile.runtime.loaded_program import Runtime
from pccompile.runtime.module import CompiledModule
from pccompile.runtime.shared_memory import Sharing, memory, refuse_overlap, shared, sharing

OPTIONS = tuple(f.name for f in fields(Options) if f.name not in ("settings", "home", "choices"))
"""What of a compilation is chosen for each piece; what else is given are settings of its algorithm."""
torch._dynamo.config.allow_rnn = True  # else Dynamo leaves each function that calls a recurrent layer to autograd


def backend(
    piece: fx.GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """What runs a piece. options: as `pccompile.compile` takes them, but for the loss.

    Nothing is compiled before the first call, since an error raised here may be silenced by Dynamo, which then would
    leave the gradients to autograd.
    """
    del example_inputs
    program = program_of(piece, options or {})
    last = program.options.get("algorithm", "exact") != "exact" and is_last_form()
    return _refuse_further_forms if last else program.run


def program_of(piece: fx.GraphModule, options: Mapping[str, Any], kind: type[Piece] | None = None) -> PieceProgram:
    """What runs a piece, while Dynamo compiles the frame that it is cut from, to whose guards some are added."""
    guard_hooks()
    guard_methods()
    return PieceProgram(piece, dict(options), takes_absent_gradients(), kind or Piece)


def _refuse_further_forms(*args: Any) -> Any:
    """Raise CompileError: the next form would silently have the gradients of backpropagation."""
    limit = torch._dynamo.config.recompile_limit
    raise CompileError(
        f"a function was compiled in {limit} forms, beyond which torch leaves it to autograd",
        hint="raise torch._dynamo.config.recompile_limit, or let less in the model change from call to call",
    )


class PieceProgram:
    """What runs a piece: one program whatever the numbers among its arguments are, or one for each.

    Dynamo hands over floats that change from call to call (a rate of dropout, a slope, a schedule) as tensors. Where
    such a number decides more than an operand can, each of its values gets a program of its own, of which the last
    `MANY` are kept.
    """

    MANY = 64

    def __init__(
        self, piece: fx.GraphModule, options: dict[str, Any], absent_gradients: bool, kind: type[Piece]
    ) -> None:
        self.piece, self.options, self.absent_gradients, self.kind = piece, options, absent_gradients, kind
        self.general: Piece | None = None
        self.numbers: tuple[int, ...] = ()
        self.special: dict[tuple[str, ...], Piece] = {}

    @property
    def compiled(self) -> tuple[Piece, ...]:
        """The pieces with programs that have been compiled: one, or one for each value of the numbers."""
        pieces = (self.general, *self.special.values())
        return tuple(p for p in pieces if p is not None and p._last is not None)

    def run(self, *args: Any) -> tuple[Any, ...]:
        """The piece's results."""
        if self.numbers:
            return self._specialised(args)
        if self.general is None:
            if self.absent_gradients:
                refuse_absent_gradients(self.piece)
            piece = exportable(self.piece)
            if piece.fixed:
                self.numbers = piece.numbers
                return self._specialised(args)
            self.general = self.kind(piece, self.options)
        try:
            call = self.general.prepared(args)
        except CompileError:
            if not self.general.numbers:
                raise
            self.numbers, self.general = self.general.numbers, None
            return self._specialised(args)
        return self.general.run(args, call)

    def _specialised(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        values = {i: float(args[i]) for i in self.numbers}
        key = tuple(v.hex() for v in values.values())
        piece = self.special.pop(key, None) or self.kind(exportable(self.piece, values), self.options)
        self.special[key] = piece
        if len(self.special) > self.MANY:
            self.special.pop(next(iter(self.special)))
        return piece.run(args, piece.prepared(args))


class Piece(CompiledModule):
    """A piece with predictive-coding gradients, in place of what Dynamo found between two graph breaks."""

    def __init__(self, piece: Exportable, options: Mapping[str, Any]) -> None:
        settings = dict(options)
        named = {k: settings.pop(k) for k in OPTIONS if k in settings}
        if named.get("feedback") in LEAVES:
            what = f"torch.compile has no place for the weights of {named['feedback']} feedback"
            raise CompileError(what, hint=f'pccompile.compile(model, args, feedback="{named["feedback"]}") has')
        hook, check = settings.pop("hook", None), settings.pop("check", True)
        super().__init__(piece.module, Options(**named, settings=settings), hook=hook, check=check)
        self.taken, self.numbers = piece.arguments, piece.numbers
        self.carrying: dict[tuple[bool, ...], bool] = {}
        self.sharing: Sharing | None = None

    def _import(self, args: tuple[Any, ...], kwargs: dict[str, Any], form: CaptureForm) -> Imported:
        plain = pytree.tree_map_only(Tensor, torch.Tensor.detach, args)
        model: nn.Module = self.__dict__["model"]
        constant = frozenset(i for i, t in enumerate(args) if isinstance(t, Tensor) and not t.requires_grad)
        return import_model(
            model, plain, kwargs, CaptureForm(free=self._free, path=form.path, constant=constant), hook=self._hook
        )

    def prepared(self, args: tuple[Any, ...]) -> Runtime | None:
        """The program for a call, compiled if there is none yet; None where no error can flow."""
        given = tuple(args[i] for i in self.taken)
        flags = tuple(t.requires_grad for t in (*_tensors(given), *self.parameters()))
        if not any(flags) or not torch.is_grad_enabled():
            return None
        if flags not in self.carrying:
            self.carrying[flags] = self._carries(given)
        return self.prepare(given) if self.carrying[flags] else None

    def _carries(self, given: tuple[Any, ...]) -> bool:
        """Whether an error can flow from a result to what learns."""
        captured, inputs = self._call(given, {})
        graph = captured.imported.graph
        wanted = {name for name, t in inputs.items() if t.requires_grad} | graph.wanted
        return not active(replace(graph, wanted=frozenset(wanted))).isdisjoint(graph.outputs)

    def run(self, args: tuple[Any, ...], runtime: Runtime | None) -> tuple[Any, ...]:
        """The piece's results, and what it writes into its arguments, as eager torch has them."""
        given = tuple(args[i] for i in self.taken)
        if runtime is None:
            return self._plain(given)
        assert runtime.compiled is not None
        writes, interface = runtime.compiled.imported.writes, runtime.interface
        inputs = interface.bind(given, {})
        for name in writes:
            refuse_overlap(name, inputs)
        if self.sharing is None:
            self.sharing = sharing(self.__dict__["model"], given)
        own = {k: t.clone() if k in writes else t for k, t in inputs.items()}
        outputs = self._run(runtime, own)
        position = {o: i for i, o in enumerate(runtime.compiled.imported.graph.outputs)}
        results = interface.assemble(outputs, inputs)
        for name, value in writes.items():
            leaf = inputs[name].is_leaf and inputs[name].requires_grad  # written where gradients are off
            with torch.no_grad() if leaf else nullcontext():
                inputs[name].copy_(outputs[position[value]])
        return tuple(shared(list(results), given, list(own.values()), self.sharing))

    def _plain(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """What eager torch returns where no error can flow."""
        with torch.no_grad() if torch.is_grad_enabled() else nullcontext():
            results: tuple[Any, ...] = self.__dict__["model"](*args)
        given = set(map(memory, _tensors(args)))  # a view of an argument is autograd's own
        if any(r.requires_grad and memory(r) not in given for r in _tensors(results)):
            raise CompileError(
                "gradients are switched on within a program that is called without them",
                hint="call it outside torch.no_grad()",
            )
        return results


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    return [v for v in values if isinstance(v, Tensor)]
