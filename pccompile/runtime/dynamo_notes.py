"""What Dynamo leaves out of a piece or of its guards, read from its notes while it compiles the piece."""

from __future__ import annotations

import sys
from types import CodeType, FrameType, FunctionType
from typing import Any

import torch
from torch import fx
from torch._dynamo.guards import GuardBuilder
from torch._dynamo.output_graph import OutputGraph
from torch._dynamo.source import AttrSource, TypeSource
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch._guards import CompileContext, Guard, TracingContext
from torch.autograd.function import FunctionCtx

from pccompile.diagnostics import CompileError
from pccompile.frontends.functional import op_name

TABLES = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks"),
)
"""Where torch keeps the hooks of a module, and those of all modules."""


def guard_hooks() -> None:
    """Let the frame that Dynamo compiles now be compiled anew where a table of hooks that it read has changed.

    Dynamo notes each table, and by default checks none of them at later calls.
    """
    context = TracingContext.try_get()
    if context is None:
        return
    guards = context.guards_context.dynamo_guards
    for guard in list(guards):
        source = guard.originating_source
        if isinstance(source, AttrSource) and source.member in TABLES:
            guards.add(Guard(source, GuardBuilder.DICT_KEYS_MATCH))


def guard_methods() -> None:
    """Let the frame that Dynamo compiles now be compiled anew where a method that it read has been replaced in a class.

    Dynamo checks the class of an object, and not what the class holds.
    """
    context, output = TracingContext.try_get(), _output()
    if context is None or output is None:
        return
    guards = context.guards_context.dynamo_guards
    code, scope = set(context.traced_code), {"L": output.local_scope, "G": output.global_scope}
    for source in {g.originating_source for g in guards if g.create_fn is GuardBuilder.TYPE_MATCH}:
        try:
            value = eval(source.name, {**output.global_scope, **scope})
        except Exception:
            continue  # nothing that an expression reaches: an iterator, a cell
        for name in _methods(type(value), code):
            guards.add(Guard(AttrSource(TypeSource(source), name), GuardBuilder.FUNCTION_MATCH))


def _methods(kind: type, code: set[CodeType]) -> list[str]:
    """The names of the methods of a class that were traced."""
    own = {name: value for c in reversed(kind.__mro__) for name, value in vars(c).items()}
    return [k for k, f in own.items() if isinstance(f, FunctionType) and f.__code__ in code]


def _output() -> OutputGraph | None:
    """What Dynamo is compiling, found up the stack."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if isinstance(output := frame.f_locals.get("self"), OutputGraph):
            return output
        frame = frame.f_back
    return None


def compiles_here() -> bool:
    """Whether what Dynamo traces now goes to a backend of this package."""
    found: Any = InstructionTranslator.current_tx().output.compiler_fn
    while found is not None:
        if str(getattr(found, "__module__", "")).startswith("pccompile"):
            return True
        inner = (getattr(found, name, None) for name in ("_torchdynamo_orig_backend", "compiler_fn", "func"))
        found = next((f for f in inner if f is not None), None)
    return False


def takes_absent_gradients() -> bool:
    """Whether the frame that Dynamo compiles now calls a Function that sets set_materialize_grads."""
    context = TracingContext.try_get()
    return context is not None and FunctionCtx.set_materialize_grads.__code__ in context.traced_code


def refuse_absent_gradients(piece: fx.GraphModule) -> None:
    """Raise CompileError for a Function of several results whose backward decides by which gradients are present.

    In the graph that Dynamo makes of it all of them are.
    """
    for n in piece.graph.nodes:
        if op_name(n.target) != "hop.autograd_function_apply":
            continue
        body = getattr(piece, str(n.args[0].target))
        returned = next(m for m in reversed(body.graph.nodes) if m.op == "output")
        results = len(returned.args[0][0]) - len(n.kwargs.get("non_differentiable_idx", ()))
        if results > 1:
            raise CompileError(
                "a custom autograd.Function of several results takes absent gradients (set_materialize_grads(False))",
                hint="compile the model by pccompile.compile, or let the Function have gradients of zeros",
            )


def is_last_form() -> bool:
    """Whether Dynamo leaves every further form of the function that it compiles now to eager torch."""
    compiling = CompileContext.current_compile_id()
    number = None if compiling is None else compiling.frame_compile_id
    return number is not None and number + 1 >= torch._dynamo.config.recompile_limit
