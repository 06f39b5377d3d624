"""What a loss is when it is captured, noticed when it changes.

A program has the numbers in it that its loss read from outside: globals, closures, attributes, small tensors. A loss in
which any of them has changed is another loss.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from types import MethodType

import torch
from torch import Tensor, nn

from pccompile.frontends.code_reads import BY_ANY_NAME, CodeReads, functions_in
from pccompile.frontends.snapshots import Describer, Snapshots, is_own_code
from pccompile.runtime.model_state import ModelState
from pccompile.runtime.shared_memory import memory

STATES = 8
"""So many states of a loss are remembered; the one that was left longest ago goes first."""
MANY = 4
"""So many states of a loss are compiled without a word."""


class LossState:
    """A loss as it was at one moment: what its code reads, the modules among that, and tensors that programs copy."""

    def __init__(self, loss: Callable[..., Tensor]) -> None:
        self._tensors: list[tuple[Tensor, Tensor]] = []
        self._snapshots, describe, names = _followed(loss, by_name=True)
        if names & BY_ANY_NAME:
            self._snapshots, describe, _ = _followed(loss, by_name=False)
        self._modules = [ModelState(v) for v in describe.met if isinstance(v, nn.Module)]
        held = [t for m in self._modules for t in m.tensors.values()]
        self._read = [t for t in (*describe.met, *held) if isinstance(t, Tensor)]

    def copied(self, tensors: Iterable[Tensor]) -> None:
        """Compare the entries of these tensors too: a program has been written with them in it."""
        self._tensors += [(t, t.detach().clone()) for t in tensors]

    def learns(self, tensor: Tensor) -> bool:
        """Whether a tensor that the program of a loss holds is one that requires a gradient where the loss read it."""
        return any(t.requires_grad and memory(t) == memory(tensor) for t in self._read)

    def holds(self) -> bool:
        """Whether the loss is what it was."""
        states = (self._snapshots.hold(), *(m.holds() for m in self._modules))
        return all(states) and all(is_same_tensor(tensor, copy) for tensor, copy in self._tensors)


def _followed(loss: Callable[..., Tensor], by_name: bool) -> tuple[Snapshots, Describer, frozenset[str]]:
    """What the code of a loss reads. by_name: of objects only what code names, so not the counters of a trainer."""
    snapshots = Snapshots()
    describe = Describer(snapshots, by_name)
    describe(loss)
    describe.functions.update(dict.fromkeys(f for f in functions_in(loss) if is_own_code(f)))
    reads = CodeReads(describe)
    reads.follow(())
    return snapshots, describe, reads.names


class LossStates:
    """The states in which losses have been seen. A copy of a module begins without any."""

    def __init__(self) -> None:
        self._known: tuple[tuple[Callable[..., Tensor], tuple[LossState, ...]], ...] = ()

    def __reduce__(self) -> tuple[type[LossStates], tuple[()]]:
        return LossStates, ()

    def of(self, loss: Callable[..., Tensor] | None) -> LossState | None:
        """The state that a loss is in: one of those that were seen, if it is again as it was then."""
        if loss is None:
            return None
        known = next((states for other, states in self._known if _is_same(other, loss)), ())
        state = next((s for s in known if s.holds()), None) or LossState(loss)
        if len(known) == MANY and state not in known:
            what = f"the loss {getattr(loss, '__name__', type(loss).__name__)} is compiled anew"
            why = "what it reads from outside changes; hand it over with the target"
            warnings.warn(f"{what} for the {MANY + 1}th time: {why}", stacklevel=5)
        if not known or state is not known[0]:
            others = (entry for entry in self._known if not _is_same(entry[0], loss))
            self._known = (loss, (state, *(s for s in known if s is not state))[:STATES]), *others
        return state

    def __contains__(self, state: object) -> bool:
        """Whether a state is remembered, so that programs of it may be asked for."""
        return state is None or any(state in states for _, states in self._known)


def _is_same(a: Callable[..., Tensor], b: Callable[..., Tensor]) -> bool:
    """Whether two losses are one object, or one method of one object. Those that are equal may change apart."""
    if isinstance(a, MethodType) and isinstance(b, MethodType):
        return a.__self__ is b.__self__ and a.__func__ is b.__func__
    return a is b


def is_same_tensor(tensor: Tensor, copy: Tensor) -> bool:
    """Whether a tensor has the entries of its copy, what is no number among them."""
    if tensor.shape != copy.shape or tensor.dtype != copy.dtype or tensor.device != copy.device:
        return False
    return torch.equal(tensor, copy) or bool(((tensor == copy) | ((tensor != tensor) & (copy != copy))).all())
