"""A model in pieces right after compiling against the model itself, as a whole; each piece has been checked before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pccompile.analysis.compare import Checked
from pccompile.diagnostics import CompileError, first_line
from pccompile.runtime.check_refusal import REPORT
from pccompile.runtime.fault_location import Fault
from pccompile.runtime.pieces import EAGER, UNCHECKED, ModuleInPieces, left_to_autograd
from pccompile.runtime.self_check import TOLERANCE, Check
from pccompile.runtime.smaller_example import Example
from pccompile.runtime.trial_run import Change, Results, backward, has_hooks


def compile_pieces(pc: ModuleInPieces, args: tuple[Any, ...], kwargs: Mapping[str, Any], check: bool) -> None:
    """Run the example, which compiles its pieces, and compare the whole with the model itself where `check` is set.

    The model, its random streams and the arguments stay as they are. Raises CompileError, and NotRun where the model
    itself does not run.
    """
    whole = _Check(pc, Example(args, dict(kwargs)))
    if has_hooks(pc.__dict__["model"]):
        pc.comparison = Checked(notes=(UNCHECKED,))
    elif reason := whole.reason_to_skip():
        pc.comparison = Checked(notes=(f"not compared with eager torch: {reason}",))
    elif check:
        pc.comparison = whole.run(whole.example)
    else:
        whole.program()


class _Check(Check):
    """Compares what the pieces make together."""

    def __init__(self, pc: ModuleInPieces, example: Example) -> None:
        self.pc, self.model, self.example = pc, pc.__dict__["model"], example
        self.random, self.misjudged, self.alone, self.sharing = True, "", False, False
        self.reference = self.eager
        tensors = [*self.model.parameters(), *pytree.tree_leaves((example.args, example.kwargs))]
        kinds = {t.dtype.to_real() for t in tensors if isinstance(t, Tensor)} & set(TOLERANCE)
        self.dtype = max(kinds, key=lambda d: TOLERANCE[d], default=torch.float32)

    def learning(self) -> dict[str, Tensor]:
        """The parameters that learn, by path."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def leaves(self, leaves: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """The arguments whose gradient is wanted, by their place."""
        return {f"argument {i}": leaf for i, leaf in leaves.items()}

    def program(self, change: Change | None = None) -> Results:
        """What the pieces give. Raises CompileError where they fail."""
        with self.trial(change) as (learning, args, kwargs):
            try:
                outputs = [t for t in pytree.tree_leaves(self.pc(*args, **kwargs)) if isinstance(t, Tensor)]
                self.pc.left = left_to_autograd(outputs, dict(self.model.named_parameters()))
                results = backward(outputs, learning)
            except CompileError:
                raise
            except Exception as e:
                what = f"the pieces fail where the model runs: {type(e).__name__}: {first_line(e)}"
                raise CompileError(what, hint=REPORT) from e
        if not self.pc.pieces:
            raise CompileError("there is none that learns", hint=EAGER)
        return results

    def shared(self) -> None:
        """No product is shared with eager torch."""

    def decided(self) -> set[str]:
        """No branch is chosen within a program of which eager torch would not know."""
        return set()

    def fault(self) -> tuple[Fault | None, str]:
        """None: each piece has been compared by itself, so that what differs lies between them."""
        return None, "it lies between pieces"


__all__ = ["compile_pieces"]
