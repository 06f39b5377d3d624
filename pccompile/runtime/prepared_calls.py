"""Calls whose program is known: what has to be as it was for the same program to run again, compared at once.

Only plain calls are prepared: tensors as arguments, no autocast, nothing of the model's own that decides anew at each
call. All others, and those that differ from what was prepared in anything at all, go the ordinary way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pccompile.frontends.tensor_forms import surely_like
from pccompile.runtime.derivative_guards import transformed
from pccompile.runtime.loaded_program import Runtime
from pccompile.runtime.loss_state import LossState
from pccompile.runtime.model_state import ModelState, Tables
from pccompile.runtime.program_cache import CallKey, Captured, ProgramCache

default_dtype, function_modes = torch.get_default_dtype, torch._C._len_torch_function_stack
dispatch_modes = torch._C._len_torch_dispatch_stack
KEPT = 8
"""So many calls of a module are kept prepared, those that were found last."""


@dataclass(frozen=True, slots=True, eq=False)
class PreparedCall:
    """A call that has been made: how it came, what it rested on, and what ran.

    keywords: the names of its keyword arguments. like: whether tensors, those of a call and behind them its target, are
    of the forms that its own had, and in the same surroundings of torch: no autocast, and nothing of torch.func or of
    torch.jit that would see what is done with them. surroundings: what said so of the model's
    tensors. captures, recent: the tables in which its program stood; they are replaced where programs are dropped.
    """

    keywords: tuple[str, ...]
    count: int
    targets: int
    like: Callable[..., bool]
    surroundings: Callable[..., bool]
    captures: tuple[Captured, ...]
    captured: Captured
    recent: Any
    state: ModelState
    conditions: int
    dtype: torch.dtype
    loss: LossState | None
    runtime: Runtime
    tables: Tables
    names: tuple[str, ...]

    def comes_again(
        self, cache: ProgramCache, keywords: tuple[str, ...], values: tuple[Any, ...], targets: int
    ) -> bool:
        """Whether a call with these values is this one again, but for the state of its loss."""
        captured = self.captured
        return (
            self.count == len(values)
            and self.keywords == keywords
            and self.targets == targets
            and self.like(*values)
            and cache.captures is self.captures
            and captured.recent is self.recent
            and captured.state is self.state
            and default_dtype() is self.dtype
            and not (function_modes() or dispatch_modes() or forward_ad._current_level >= 0)
            and captured.interface.conditions() == self.conditions
            and self.state.holds()
            and self.state.surroundings is self.surroundings
        )


def prepared(
    captured: Captured,
    cache: ProgramCache,
    keywords: tuple[str, ...],
    values: tuple[Any, ...],
    found: tuple[Runtime, Tables, dict[str, Tensor]],
    key: CallKey,
    targets: int,
) -> PreparedCall | None:
    """A call that has found its program, to be recognised when it comes again; None for one that is not plain.

    key: what leads to its program as things are now, see `CallKey`.
    """
    runtime, tables, inputs = found
    state, interface = captured.state, captured.interface
    decides = captured.imported.states or captured.learning is not None or captured.offsets is not None
    reads = runtime.reads is not None or interface.layouts or state.tables(captured.imported) is not tables
    settings = captured.settings[0] is not None or function_modes() or dispatch_modes() or transformed()
    if decides or reads or settings or all(c is not captured for c in cache.captures):
        return None
    same = captured.recent.get(key) is runtime and state.holds()
    given = len(values) == len(inputs) + targets == len(interface.inputs) + targets
    if not same or not given or any(v is not t for v, t in zip(values, inputs.values(), strict=False)):
        return None
    like, surroundings = surely_like(values), state.surroundings
    if like is None or surroundings is None or any(map(torch._C._functorch.is_functorch_wrapped_tensor, values)):
        return None
    if targets and values[-1].requires_grad:  # refused where gradients are on
        return None
    own = keywords, len(values), targets, like, surroundings, cache.captures, captured, captured.recent, state
    now = interface.conditions(), default_dtype(), key.loss
    return PreparedCall(*own, *now, runtime, tables, tuple(inputs))


__all__ = ["KEPT", "PreparedCall", "prepared"]
