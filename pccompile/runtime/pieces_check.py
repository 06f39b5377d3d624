"""A model in pieces right after compiling against the model itself, as a whole; each piece has been checked before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pccompile.analysis.compare import Checked
from pccompile.diagnostics import CompileError, first_line
from pccompile.runtime.comparison import REPORT, TOLERANCE, Comparison, tensors_of
from pccompile.runtime.fault_location import Fault
from pccompile.runtime.pieces import EAGER, UNCHECKED, ModuleInPieces
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


class NothingLearns(CompileError):
    """Dynamo leaves all that learns to eager torch."""


class _Check(Comparison):
    """What the pieces make together, against the model."""

    def __init__(self, pc: ModuleInPieces, example: Example) -> None:
        self.pc, model = pc, pc.__dict__["model"]
        tensors = [*model.parameters(), *tensors_of((example.args, example.kwargs))]
        kinds = {t.dtype.to_real() for t in tensors} & set(TOLERANCE)
        super().__init__(model, example, max(kinds, key=lambda d: TOLERANCE[d], default=torch.float32))

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
                results = backward(tensors_of(self.pc(*args, **kwargs)), learning)
            except CompileError:
                raise
            except Exception as e:
                what = f"the pieces fail where the model runs: {type(e).__name__}: {first_line(e)}"
                raise CompileError(what, hint=REPORT) from e
        if not self.pc.pieces:
            raise NothingLearns("in pieces there is no program that learns", hint=EAGER)
        return results

    def shared(self) -> None:
        """No product is shared with eager torch."""

    def fault(self) -> tuple[Fault | None, str]:
        """None: each piece has been compared by itself, so that what differs lies between them."""
        return None, "it lies between pieces"
