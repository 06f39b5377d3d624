"""A program right after compiling against the model itself: outputs and gradients, by eager autograd on the example.

The outputs' errors are random numbers, so that every output takes part whatever the loss will be. Where an algorithm
differs from backpropagation by design, the exact program over the same vertices is compared: the rules are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pccompile.analysis.compare import Checked, Difference, difference
from pccompile.diagnostics import CompileError, first_line, listing, printable
from pccompile.frontends.model_tensors import tensor_at
from pccompile.ir import TensorType
from pccompile.ops import OPS
from pccompile.pipeline import Compiled
from pccompile.runtime.check_refusal import REPORT, refusal
from pccompile.runtime.exact_rules import exact
from pccompile.runtime.fault_location import Fault, first_fault, reference_values
from pccompile.runtime.loaded_program import Runtime
from pccompile.runtime.losses import targets_of
from pccompile.runtime.shared_products import Products
from pccompile.runtime.smaller_example import Example, examples
from pccompile.runtime.trial_run import (
    Change,
    Draws,
    Jitter,
    Results,
    backward,
    fresh,
    has_hooks,
    multiplied,
    replaced,
    streams,
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

Run = Callable[[Runtime, dict[str, Tensor]], Sequence[Tensor]]
"""Runs a program on tensors by name, as a part of autograd."""


class NotRun(Exception):
    """The model itself does not run on the example."""


def self_check(
    model: nn.Module, runtime: Runtime, args: tuple[Any, ...], kwargs: Mapping[str, Any], run: Run
) -> Checked:
    """`runtime` compared with `model` on the example arguments; neither they nor the model are touched.

    A part of the example will do, unless the model does not run on it or some gradient is 0 there. Raises CompileError,
    which names what differs and the first vertex whose value or error does.
    """
    check, checked = Check(model, runtime, Example(args, kwargs), run), None
    reason = check.reason_to_skip()
    for example in () if reason else examples(check.compiled, runtime.interface, args, kwargs):
        try:
            checked = check.run(example)
        except NotRun as e:
            reason = str(e)
            continue
        if not checked.zero:
            break
    return checked or Checked(notes=(f"not compared with eager torch: {reason}",))


def check_loss(runtime: Runtime, criterion: Callable[..., Tensor], outputs: Sequence[Tensor], target: Any) -> None:
    """Raise CompileError where the loss of a program, or an error that it gives an output, is not that of autograd."""
    free = [o.detach() for o in outputs]
    clamped = [free[i].requires_grad_() for i in runtime.source.errors]
    sent: Sequence[Tensor | None] = [None] * len(clamped)
    with torch.inference_mode(False), torch.enable_grad(), streams(free):
        value = criterion(runtime.interface.assemble(free), target)
        if value.requires_grad:
            sent = torch.autograd.grad(value, clamped, allow_unused=True)
    with streams(free):
        loss, errors = runtime.clamp([o.detach() for o in outputs], targets_of(target))
    wanted = [torch.zeros_like(o) if g is None else -g for g, o in zip(sent, clamped, strict=True)]
    pairs = zip(errors, wanted, strict=True)
    compared = [difference("the loss", loss.reshape(()), value.detach().reshape(()))]
    compared += [difference(f"the error of output {i}", e, w) for i, (e, w) in enumerate(pairs)]
    limit = max(TOLERANCE.get(o.dtype, 0.0) for o in outputs)
    if differing := [d for d in compared if not (d.relative_error <= limit or error(d) <= limit * NOTHING)]:
        raise refusal(differing, None)


class Check:
    """One comparison of a program with its model."""

    def __init__(self, model: nn.Module, runtime: Runtime, example: Example, execute: Run) -> None:
        assert runtime.compiled is not None
        self.model, self.example, self.execute = model, example, execute
        whole: Compiled = runtime.compiled
        self.compiled = replace(whole, pc=whole.plain or whole.pc)
        self.runtime = exact(runtime)
        self.dtype = coarsest(self.compiled)
        self.random = any(n.op in OPS and OPS[n.op].random for n in self.compiled.graph.nodes)
        self.misjudged = next(
            (OPS[n.op].misjudged for n in self.compiled.graph.nodes if n.op in OPS and OPS[n.op].misjudged), ""
        )
        self.reference = self.captured if has_hooks(model) else self.eager
        self.alone = self.sharing = False

    def reason_to_skip(self) -> str:
        """Why the model is not run; '' if it is."""
        tensors = [*self.model.parameters(), *self.model.buffers(), *_tensors((self.example.args, self.example.kwargs))]
        if any(t.is_meta for t in tensors):
            return "the model's tensors have no numbers (meta device)"
        needed = sum(t.numel() * t.element_size() for t in tensors)
        if needed > BUDGET:
            return f"a second set of gradients takes {needed / 2**30:.1f} GiB, more than {BUDGET / 2**30:.0f}"
        return ""

    # running

    def learning(self) -> dict[str, Tensor]:
        """The parameters that the program has gradients for, or that learn without it, by key."""
        paths = {g.key: g.entry for g in self.runtime.source.gradients if g.table == "params"}
        named = {k: p for k, path in paths.items() if isinstance(p := tensor_at(self.model, path), Tensor)}
        known = {id(p) for p in named.values()}
        return named | {k: p for k, p in self.model.named_parameters() if p.requires_grad and id(p) not in known}

    def leaves(self, leaves: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """The inputs whose gradient is wanted, by key."""
        keys = {g.entry: g.key for g in self.runtime.source.gradients if g.table == "inputs"}
        names = self.runtime.interface.inputs
        return {keys.get(n, f"input {n}"): leaf for i, leaf in leaves.items() if (n := names[i]) is not None}

    @contextmanager
    def trial(self, change: Change | None) -> Iterator[tuple[dict[str, Tensor], tuple[Any, ...], dict[str, Any]]]:
        """Within, the model may be run: gives what learns, and the arguments. change: what becomes of each number."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
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
                return backward(_tensors(self.model(*args, **kwargs)), learning, self.sharing)
            except Exception as e:
                raise NotRun(f"it does not run there ({printable(first_line(e), 160)})") from e

    def captured(self, change: Change | None = None) -> Results:
        """What autograd gives on the captured operations: running the model would run its hooks. Raises NotRun."""
        graph = self.compiled.imported.graph
        with self.trial(change) as (learning, args, kwargs):
            inputs = self.runtime.interface.bind(args, kwargs)
            try:
                values, outputs = reference_values(graph, *self.tables(), inputs)
                named = {g.key: values[g.name] for g in self.runtime.source.gradients}
                results = backward(_tensors(self.runtime.interface.assemble(outputs, inputs)), named)
            except Exception as e:
                raise NotRun(f"it has hooks, and its operations do not run one by one ({first_line(e)})") from e
            return replace(results, gradients={k: results.gradients.get(k) for k in learning})

    def tables(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The model's parameters and buffers by path, as it has them now."""
        graph, own = self.compiled.imported.graph, self.compiled.imported.tensors
        params, buffers = (
            {path: own[n] if (t := tensor_at(self.model, path)) is None else t for n, path in origins}
            for origins in ([(n, graph.origin[n]) for n in names] for names in (graph.params, graph.buffers))
        )
        return params, buffers

    def program(self, change: Change | None = None) -> Results:
        """What the program gives. Raises CompileError where it fails."""
        with self.trial(change) as (learning, args, kwargs):
            inputs = self.runtime.interface.bind(args, kwargs)
            try:
                outputs = self.execute(self.runtime, inputs)
                return backward(_tensors(self.runtime.interface.assemble(outputs, inputs)), learning)
            except CompileError:
                raise
            except Exception as e:
                if empty := self.empty():
                    what = f"forward gives its first entries to {listing(empty)}"
                    raise CompileError(what, hint="run the model once before it is compiled") from e
                what = f"the compiled program fails where the model runs: {type(e).__name__}: {first_line(e)}"
                raise CompileError(what, hint=REPORT) from e

    def empty(self) -> list[str]:
        """The buffers without entries that the program writes: quantisation gives them their sizes at the first run."""
        graph = self.compiled.graph
        return [graph.origin[b] for b in graph.updates if 0 in graph.buffers[b].shape]

    # judging

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
        if self.reference != self.eager:
            notes.append("compared with its captured operations: the model itself would have run its hooks once more")
        if differing and self.random:
            self.alone = True
            expected, compared = self.compared()
            differing = self.differing(expected, compared)
            notes.append("random numbers are drawn in another order than in eager torch: compared draw by draw")
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
            with products.replayed([*_tensors((expected.outputs, expected.gradients)), *stand_ins]):
                found = self.program()
        except (NotRun, CompileError):
            return None
        finally:
            self.sharing = False
        return None if products.spoilt else multiplied(expected, found)

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

    def decided(self) -> set[str]:
        """The gradients that are none where their branch is not taken; torch.cond has zeros there."""
        pc = self.compiled.pc
        return {pc.graph.origin[name] if name in pc.graph.params else f"input {name}" for name in pc.decided}

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

    def fault(self) -> tuple[Fault | None, str]:
        """The first fault, in float64; or why it could not be looked for."""
        try:
            with self.trial(None) as (_, args, kwargs):
                inputs = self.runtime.interface.bind(args, kwargs)
                return first_fault(self.compiled, *self.tables(), inputs), ""
        except Exception as e:
            return None, first_line(e)


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


def coarsest(compiled: Compiled) -> torch.dtype:
    """The floating type with the fewest digits among a program's values."""
    types = [t for n in compiled.graph.nodes for t in (n.type if isinstance(n.type, tuple) else (n.type,))]
    types += compiled.graph.leaves.values()
    real = {t.dtype.to_real() for t in types if isinstance(t, TensorType) and t.differentiable}
    return max((d for d in real if d in TOLERANCE), key=lambda d: TOLERANCE[d], default=torch.float32)


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(tree) if isinstance(t, Tensor)]


def _itself(tensor: Tensor) -> Tensor:
    """What is saved for backward, kept from whoever listens outside, such as a checkpoint."""
    return tensor
