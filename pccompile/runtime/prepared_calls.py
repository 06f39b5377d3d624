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
from pccompile.passes.roles import NO_ROLES, Roles
from pccompile.runtime.automatic_rates import measures
from pccompile.runtime.derivative_guards import transformed
from pccompile.runtime.loaded_program import FORMS, Runtime
from pccompile.runtime.loss_lengths import target_form
from pccompile.runtime.loss_state import LossState, LossStates
from pccompile.runtime.losses import refuse_targets, targets_of
from pccompile.runtime.model_state import ModelState, Tables
from pccompile.runtime.module_captures import ModuleCaptures
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
    torch.jit that would see what is done with them. surroundings: what said so of the model's tensors. captures,
    recent: the tables in which its program stood; they are replaced where programs are dropped.
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
            and self.state.forms.surroundings is self.surroundings
        )


def is_plain(captured: Captured, cache: ProgramCache, runtime: Runtime, tables: Tables) -> bool:
    """Whether nothing but the model, its arguments and its loss decides what a call runs."""
    decides = captured.imported.states or captured.learning is not None or captured.offsets is not None
    reads = runtime.reads is not None or captured.interface.layouts
    own = captured.state.tables(captured.imported) is not tables  # the module's, beside the model's
    settings = captured.settings[0] is not None or function_modes() or dispatch_modes() or transformed()
    return not (decides or reads or own or settings) and any(c is captured for c in cache.captures)


def prepared(
    captured: Captured,
    cache: ProgramCache,
    keywords: tuple[str, ...],
    values: tuple[Any, ...],
    found: tuple[Runtime, Tables, dict[str, Tensor]],
    key: CallKey,
    targets: int,
) -> PreparedCall | None:
    """A plain call that has found its program, to be recognised when it comes again; None where it could not be.

    key: what leads to its program as things are now.
    """
    runtime, tables, inputs = found
    state, interface = captured.state, captured.interface
    same = captured.recent.get(key) is runtime and state.holds()
    given = len(values) == len(inputs) + targets == len(interface.inputs) + targets
    if not same or not given or any(v is not t for v, t in zip(values, inputs.values(), strict=False)):
        return None
    like, surroundings = surely_like(values), state.forms.surroundings
    if like is None or surroundings is None or any(map(torch._C._functorch.is_functorch_wrapped_tensor, values)):
        return None
    if targets and values[-1].requires_grad:  # refused where gradients are on
        return None
    own = keywords, len(values), targets, like, surroundings, cache.captures, captured, captured.recent, state
    now = interface.conditions(), default_dtype(), key.loss
    return PreparedCall(*own, *now, runtime, tables, tuple(inputs))


class PreparedModule(ModuleCaptures):
    """Finds the program for a call at once where it has come before."""

    _program: Callable[..., tuple[Runtime, Tables, dict[str, Tensor]]]
    """The program for a call, compiled if there is none yet, with the model's tensors and those of the call."""

    def __init__(self, *captures: Any) -> None:
        super().__init__(*captures)
        self._last: Runtime | None = None
        self._losses = LossStates()
        self._prepared: tuple[PreparedCall, ...] = ()
        self._seen = set[Any]()

    def _anew(self) -> dict[str, Any]:
        return {**super()._anew(), "_last": None, "_losses": LossStates(), "_prepared": (), "_seen": set()}

    def _found(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], loss: Any = None, target: Any = None, targets: int = 0
    ) -> tuple[Runtime, Tables, dict[str, Tensor]]:
        """The program for a call, with the model's tensors and those of the call: at once where it has come before.

        targets: 1 where a loss is asked for. Raises CompileError.
        """
        plain = not (kwargs or targets)
        values = args if plain else (*args, *kwargs.values(), *((target,) if targets else ()))
        keywords = tuple(kwargs) if kwargs else ()
        for known in self._prepared:
            if not known.comes_again(self._cache, keywords, values, targets):
                continue
            if known.loss is (None if loss is None else self._losses.of(loss)):
                self._cache.first(known.state)
                if self._last is not known.runtime:
                    self._last = known.runtime
                return known.runtime, known.tables, dict(zip(known.names, values, strict=False))
        if targets:
            refuse_targets(targets_of(target))
        call = self._call(args, kwargs)
        found = self._program(call, args, kwargs, loss, target)
        self._prepared = tuple(known for known in self._prepared if known.captures is self._cache.captures)
        forms = (targets, *(v.shape if isinstance(v, Tensor) else None for v in values))
        if forms not in self._seen:
            self._seen = {*self._seen, forms} if len(self._seen) < FORMS else {forms}
        elif self._paths is None and not measures(self.options) and is_plain(call[0], self._cache, *found[:2]):
            key = CallKey(*self._key(call[0], *found[1:], loss, target, False, NO_ROLES))
            now = prepared(call[0], self._cache, keywords, values, found, key, targets)
            self._prepared = (*([now] if now else []), *self._prepared)[:KEPT]
        return found

    def _key(
        self, captured: Captured, tables: Tables, inputs: Any, loss: Any, target: Any, record: bool, roles: Roles
    ) -> tuple[Any, ...]:
        """What a call has at hand that decides which program it uses, see `CallKey`."""
        form = target_form(target, inputs) if loss is not None else ()
        return (*captured.learning_flags(tables, inputs), self._losses.of(loss), form, record, roles)


__all__ = ["PreparedCall", "PreparedModule"]
