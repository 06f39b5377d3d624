"""What Dynamo leaves out of a piece or of its guards, read from its notes while it compiles the piece."""

from __future__ import annotations

from torch import fx
from torch._dynamo.guards import GuardBuilder
from torch._dynamo.source import AttrSource
from torch._guards import Guard, TracingContext
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
