"""What is compared where something compiled is checked against its model: outputs and gradients, on an example.

Both run from equal states on equal numbers, and what differs is judged: whether it is rounding is measured.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pccompile.analysis.compare import Checked, Difference, difference
from pccompile.diagnostics import NOWHERE, CompileError, first_line, listing, printable
from pccompile.runtime.fault_location import Fault
from pccompile.runtime.shared_products import Products
from pccompile.runtime.smaller_example import Example
from pccompile.runtime.trial_run import (
    Change,
    Draws,
    Jitter,
    Results,
    backward,
    fresh,
    multiplied,
    replaced,
    untouched,
)

BUDGET = 4 * 2**30
"""Bytes that a check may add to what training takes: a second set of gradients, and copies of buffers."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""Relative differences that are rounding in any network; of larger ones it is measured whether they are."""
NOTHING = 0.04
"""A difference of so many tolerances of the largest gradient is none: some gradients are 0 up to rounding. So are
numbers that are too small for all digits."""
SHARED = 0.1
"""Operands that differ by this part of a tolerance have one product."""
ELSEWHERE = 1e-2
"""The part of itself by which each number changes where the program is tried at another place."""
DRAWS, TIMES = 3, 10.0
"""What so many changes of the last bit of every number make, so many times over, is rounding too."""
REPORT = "please report it, or change the model there; check=False compiles without this comparison"
OTHERWISE = "forward may run otherwise while it is captured (torch.compiler.is_compiling()); check=False compiles that"


class NotRun(Exception):
    """The model itself does not run on the example."""


class Comparison(ABC):
    """What was compiled of `model`, against the model itself on an example.

    dtype: the floating type whose tolerance holds. random: numbers are drawn. misjudged: why eager torch's gradients
    say nothing, if they do. alone: each draw starts anew. sharing: products in common are computed once. bare: what is
    saved for backward may be heard outside.
    """

    def __init__(
        self, model: nn.Module, example: Example, dtype: torch.dtype, random: bool = True, misjudged: str = ""
    ) -> None:
        self.model, self.example, self.dtype, self.random, self.misjudged = model, example, dtype, random, misjudged
        self.alone = self.sharing = self.bare = False

    # what is compared

    @abstractmethod
    def learning(self) -> dict[str, Tensor]:
        """The parameters that learn, by key."""

    @abstractmethod
    def leaves(self, leaves: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """The inputs whose gradient is wanted, by key; they are given by their places among the arguments."""

    @abstractmethod
    def program(self, change: Change | None = None) -> Results:
        """What was compiled gives. Raises CompileError where it fails."""

    @abstractmethod
    def fault(self) -> tuple[Fault | None, str]:
        """The first fault, in float64; or why it could not be looked for."""

    def decided(self) -> set[str]:
        """The gradients that are none where their branch is not taken, and zeros in eager torch."""
        return set()

    def reference(self, change: Change | None = None) -> Results:
        """What is expected. Raises NotRun."""
        return self.eager(change)

    def note_on_reference(self) -> tuple[str, ...]:
        """What a reader must know of what is expected."""
        return ()

    def reason_to_skip(self) -> str:
        """Why the model is not run; '' if it is."""
        example = tensors_of((self.example.args, self.example.kwargs))
        tensors = [*self.model.parameters(), *self.model.buffers(), *example]
        if any(t.is_meta for t in tensors):
            return "the model's tensors have no numbers (meta device)"
        needed = sum(t.numel() * t.element_size() for t in tensors)
        if needed > BUDGET:
            return f"a second set of gradients takes {needed / 2**30:.1f} GiB, more than {BUDGET / 2**30:.0f}"
        return ""

    # running

    @contextmanager
    def trial(self, change: Change | None) -> Iterator[tuple[dict[str, Tensor], tuple[Any, ...], dict[str, Any]]]:
        """Within, the model may be run: gives what learns, and the arguments. change: what becomes of each number."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            if not self.bare:
                stack.enter_context(torch.autograd.graph.saved_tensors_hooks(_itself, _itself))
            stack.enter_context(untouched(self.model))
            learning = self.learning()
            for parameter in learning.values():
                parameter.requires_grad_()
            args, kwargs = self.example.args, dict(self.example.kwargs)
            if change:
                learning = replaced(self.model, learning, change)
                args, kwargs = pytree.tree_map_only(Tensor, change, (args, kwargs))
            args, kwargs, leaves = fresh(args, kwargs)
            learning |= self.leaves(leaves)
            if self.alone:
                stack.enter_context(Draws())
            yield learning, args, kwargs

    def eager(self, change: Change | None = None) -> Results:
        """What eager torch gives. Raises NotRun."""
        with self.trial(change) as (learning, args, kwargs):
            try:
                return backward(tensors_of(self.model(*args, **kwargs)), learning, self.sharing)
            except Exception as e:
                if self.bare or "saved tensor hooks" not in str(e):
                    raise NotRun(f"it does not run there ({printable(first_line(e), 160)})") from e
        self.bare = True  # torch.func.grad does not run within such hooks
        return self.eager(change)

    # judging

    def shared(self) -> tuple[Results, Results] | None:
        """What is expected, and what the program gives, with products in common computed once.

        None where they take little, or that fails: only if all agrees need nothing be computed in full.
        """
        if not self.example.large:
            return None
        products, self.sharing = Products(TOLERANCE[self.dtype] * SHARED), True
        try:
            with products.recorded():
                expected = self.reference()
            stand_ins = [f.stand_in for f in expected.factors.values()]
            for factors in expected.factors.values():
                products.add(*factors.operands, factors.stand_in)
            with products.replayed([*tensors_of((expected.outputs, expected.gradients)), *stand_ins]):
                found = self.program()
        except (NotRun, CompileError):
            return None
        finally:
            self.sharing = False
        return None if products.spoilt else multiplied(expected, found)

    def run(self, example: Example) -> Checked:
        """The record of the comparison. Raises CompileError where it fails, NotRun where there is none."""
        self.example, self.alone = example, False
        notes = [f"compared with eager torch on a part of the example: {example.part}"] if example.part else []
        shared = self.shared()
        expected, compared = self.judged(*shared) if shared else self.compared()
        differing = self.differing(expected, compared)
        if differing and shared:
            expected, compared = self.compared()
            differing = self.differing(expected, compared)
        if self.misjudged:
            notes.append(f"gradients were not compared with eager torch's: {self.misjudged}")
        notes += self.note_on_reference()
        if differing and self.random:
            self.alone = True
            expected, compared = self.compared()
            differing = self.differing(expected, compared)
            notes.append("random numbers are drawn in another order than in eager torch: compared draw by draw")
        if (
            differing and not self.bare
        ):  # where torch keeps what is handed to hooks, it does not see that it was written
            self.bare = True
            expected, compared = self.compared()
            differing = self.differing(expected, compared)
        if differing:
            notes += self.dispute(expected, differing)
        gradients = [d for d in compared if d.name in expected.gradients]
        zero = tuple(d.name for d in gradients if d.norm == 0 and not d.note)
        if zero:
            notes.append(f"gradients of 0 on the example tell little: {listing(zero)}")
        worst = max((d.relative_error for d in compared), default=0.0)
        return Checked(len(expected.outputs), len(gradients), worst, zero, tuple(notes))

    def compared(self, change: Change | None = None) -> tuple[Results, list[Difference]]:
        """What is expected, and what the program gives against it."""
        return self.judged(self.reference(change), self.program(change))

    def judged(self, expected: Results, found: Results) -> tuple[Results, list[Difference]]:
        """What is expected of both runs, and the differences. Zeros are as good as no gradient, where there is none."""

        def as_found(key: str, gradient: Tensor | None) -> Tensor | None:
            absent = gradient is not None and found.gradients.get(key) is None
            return None if absent and not bool(torch.as_tensor(gradient).any()) else gradient

        gradients = {} if self.misjudged else {k: as_found(k, g) for k, g in expected.gradients.items()}
        expected = replace(expected, gradients=gradients)
        if len(found.outputs) != len(expected.outputs):
            what = f"the program returns {len(found.outputs)} tensors and the model {len(expected.outputs)}"
            raise CompileError(what, hint=REPORT)
        return expected, self.differences(expected, found)

    def differences(self, expected: Results, found: Results) -> list[Difference]:
        """Everything that was computed against what it should be."""
        enough = TOLERANCE[self.dtype] / 2
        pairs = zip(found.outputs, expected.outputs, strict=True)
        outputs = [_typed(difference(f"output {i}", a, b, enough), a, b) for i, (a, b) in enumerate(pairs)]
        gradients = []
        for key, theirs in expected.gradients.items():
            ours = found.gradients.get(key)
            none = ours is None and theirs is not None and key in self.decided() and not theirs.any()
            gradients.append(difference(key, ours, None if none else theirs, enough))
        return [*outputs, *gradients]

    def differing(self, expected: Results, compared: Sequence[Difference]) -> list[Difference]:
        """What differs by more than rounding does in any network."""
        limit = TOLERANCE[self.dtype]
        largest = max((d.norm for d in compared if d.name in expected.gradients), default=0.0)
        nothing = max(NOTHING * limit * largest, 16 * torch.finfo(self.dtype).tiny)
        return [d for d in compared if not (d.relative_error <= limit or error(d) <= nothing)]

    def dispute(self, expected: Results, differing: Sequence[Difference]) -> list[str]:
        """Notes, where differences turn out to be rounding. Raises CompileError where they do not."""
        spread = self.spread(expected)
        beyond = [d for d in differing if not error(d) <= TIMES * spread.get(d.name, 0.0)]
        if beyond:
            fault, reason = self.fault()
            if fault is not None or reason or self.differs_elsewhere():
                raise refusal(beyond, fault, captured_otherwise=fault is None and not reason)
        worst = max(d.relative_error for d in differing)
        kind = str(self.dtype).removeprefix("torch.")
        why = "in float64 they are not there" if beyond else "a last bit of the weights changes as much"
        return [f"differences of up to {worst:.2g} in {kind} are rounding: {why}"]

    def spread(self, expected: Results, at: float = 0.0, seed: int = 0) -> dict[str, float]:
        """How much each result moves when every number changes in its last place, at numbers changed as `at` says."""
        moved: dict[str, float] = {}
        eps = torch.finfo(self.dtype).eps
        for draw in range(DRAWS):
            for d in self.differences(expected, self.reference(Jitter(seed, at, draw, eps))):
                moved[d.name] = max(moved.get(d.name, 0.0), error(d))
        return moved

    def differs_elsewhere(self) -> bool:
        """Whether the program differs at other weights and inputs too, where no kink is."""
        for seed in range(2):
            expected, compared = self.compared(Jitter(seed, ELSEWHERE))
            differing = self.differing(expected, compared)
            spread = self.spread(expected, ELSEWHERE, seed) if differing else {}
            if all(error(d) <= TIMES * spread.get(d.name, 0.0) for d in differing):
                return False
        return True


def _typed(d: Difference, found: Tensor, expected: Tensor) -> Difference:
    """A difference, of another type too where two tensors have two."""
    if found.dtype == expected.dtype:
        return d
    ours, theirs = (str(t.dtype).removeprefix("torch.") for t in (found, expected))
    return replace(d, relative_error=math.inf, max_abs=math.inf, note=f"is {ours} for {theirs}")


def error(d: Difference) -> float:
    """The norm of a difference; infinite where it is no number."""
    size = d.relative_error * d.norm if d.norm else d.max_abs
    return size if size == size else float("inf")


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors in what a model takes or returns."""
    return [t for t in pytree.tree_leaves(tree) if isinstance(t, Tensor)]


def _itself(tensor: Tensor) -> Tensor:
    """What is saved for backward, kept from whoever listens outside, such as a checkpoint."""
    return tensor


def refusal(differing: Sequence[Difference], fault: Fault | None, captured_otherwise: bool = False) -> CompileError:
    """The error that names what differs. captured_otherwise: the program is what was captured, vertex by vertex."""
    worst = max(differing, key=lambda d: d.relative_error)
    named = [d.name if d.name.startswith(("output ", "input ")) else printable(d.name, 80) for d in differing]
    much = f"{printable(worst.name, 80)} {worst.note or f'by {worst.relative_error:.2g}'}"
    differ = "differs" if len(named) == 1 else "differ"
    what = f"the program is not the model: {listing(named)} {differ} from eager torch ({much})"
    where = NOWHERE
    if fault is not None:
        what, where = f"{what}; {fault}", fault.vertex.where
    elif captured_otherwise:
        return CompileError(f"{what}; so does what was captured of it", hint=OTHERWISE)
    return CompileError(what, where, REPORT)
