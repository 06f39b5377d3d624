"""Guards on the hooks of modules, which Dynamo leaves out: a hook that comes or goes after compiling counts."""

from __future__ import annotations

from torch._dynamo.guards import GuardBuilder
from torch._dynamo.source import AttrSource
from torch._guards import Guard, TracingContext

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
