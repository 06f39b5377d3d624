"""Sequences of what users do to a model between calls: eager outputs and gradients at each step, or a refusal."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor, nn

import pccompile
from pccompile import CompileError

GAIN = 1.0
PARAMETERS = ("first.weight", "first.bias", "last.weight", "last.bias", "norm.weight")
MODULES = ("", "first", "activation", "norm", "drop", "last")
ROWS = st.sampled_from((2, 3, 5))
SEEDS = st.integers(0, 5)


class Gained(torch.autograd.Function):
    """The identity, whose gradient is scaled by a global."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * GAIN


class Net(nn.Module):
    """A small network with statistics, dropout, attributes and a custom Function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.activation, self.norm = nn.Linear(3, 4), nn.Tanh(), nn.BatchNorm1d(4)
        self.drop, self.last = nn.Dropout(0.3), nn.Linear(4, 2)
        self.tau, self.options = 1.0, {"residual": False}

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.norm(self.activation(self.first(x) / self.tau)))
        h = Gained.apply(h) + (h.sin() if self.options["residual"] else 0)
        return self.last(h)


class Criterion:
    """A loss with a number that changes."""

    def __init__(self) -> None:
        self.weight = 1.0

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return self.weight * (output - target).square().mean() + output.abs().sum()


def doubled(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """A forward hook."""
    return output * 2


def shifted(module: nn.Module, args: Any) -> Any:
    """A forward hook before a module."""
    return (args[0] + 0.5,)


def data(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def puts(owner: str, name: str, value: Callable[[], Any]) -> Callable[[Any], object]:
    """What sets an attribute of a module in both models."""
    return lambda actions: actions.both(lambda model: setattr(model.get_submodule(owner), name, value()))


def trains(name: str, mode: bool) -> Callable[[Any], object]:
    """What switches a module's mode in both models."""
    return lambda actions: actions.both(lambda model: model.get_submodule(name).train(mode))


CHANGES: dict[str, Callable[[Any], object]] = {
    **{f"tau {v}": puts("", "tau", lambda v=v: v) for v in (0.5, 1.0, 2)},
    **{f"p {v}": puts("drop", "p", lambda v=v: v) for v in (0.0, 0.5)},
    **{kind.__name__: puts("", "activation", kind) for kind in (nn.Tanh, nn.LeakyReLU, nn.Softplus)},
    **{f"{name}.train({mode})": trains(name, mode) for name in MODULES for mode in (False, True)},
    **{f"residual {v}": lambda a, v=v: a.both(lambda m: m.options.update(residual=v)) for v in (False, True)},
    **{f"weight {v}": lambda a, v=v: a.set_criterion(v) for v in (1.0, 2.0)},
    **{f"gain {v}": lambda a, v=v: set_gain(v) for v in (1.0, 2.0, 3.0)},
}


NUMBERS = ("gain 1.0", "gain 3.0", "weight 1.0", "weight 2.0", "tau 1.0", "tau 2", "residual True")
"""Changes of what code reads by name, which come more often than others."""


def replaced(model: nn.Module, path: str) -> bool:
    """Put another parameter in the place of one; what is open then belongs to none."""
    owner, _, name = path.rpartition(".")
    old = model.get_parameter(path)
    setattr(model.get_submodule(owner), name, nn.Parameter(old.detach().flip(0), requires_grad=old.requires_grad))
    return True


def flipped(model: nn.Module, path: str) -> bool:
    """Freeze a parameter, or let it learn again."""
    parameter = model.get_parameter(path)
    parameter.requires_grad_(not parameter.requires_grad)
    return False


def scaled(model: nn.Module, path: str) -> bool:
    """Write into a parameter."""
    with torch.no_grad():
        model.get_parameter(path).mul_(0.9)
    return False


PARAMETER_CHANGES = (replaced, flipped, scaled)


def set_gain(gain: float) -> None:
    """Change what a custom backward reads."""
    global GAIN
    GAIN = gain


class Actions(RuleBasedStateMachine):
    """A model, the same one compiled, and calls of both whose backward pass is yet to come."""

    how: dict[str, Any] = {}
    tolerance = 1e-9

    def __init__(self) -> None:
        super().__init__()
        set_gain(1.0)

    @initialize()
    def start(self) -> None:
        torch.manual_seed(0)
        self.eager, self.criterion = Net().double(), Criterion()
        model = copy.deepcopy(self.eager)
        self.pc: Any = pccompile.compile(model, (data(3, 0),), check=False, loss=self.criterion, **self.how)
        self.pending: list[tuple[Tensor, Tensor, Tensor | None, Tensor | None]] = []
        self.hooks: list[tuple[Any, Any]] = []

    @property
    def models(self) -> tuple[nn.Module, nn.Module]:
        return self.eager, self.pc.model

    def both(self, change: Callable[[Any], object]) -> list[Any]:
        return [change(model) for model in self.models]

    def forget(self) -> None:
        """Drop what is open: neither model has gradients or calls any more."""
        self.pending = []
        self.both(lambda m: m.zero_grad())

    def compared(self, ours: Callable[[], Tensor], theirs: Callable[[], Tensor]) -> tuple[Tensor, Tensor] | None:
        """What both return for the same draws; None where ours is refused. An error of either is one of both."""
        results: list[Any] = []
        for run in (ours, theirs):
            torch.manual_seed(7)
            try:
                results.append(run())
            except CompileError:
                return None
            except RuntimeError:
                results.append(None)
        assert (results[0] is None) == (results[1] is None)
        if results[0] is None:
            return None
        torch.testing.assert_close(*(r.detach() for r in results), rtol=self.tolerance, atol=self.tolerance)
        assert results[0].requires_grad == results[1].requires_grad
        return results[0], results[1]

    # calls

    @rule(rows=ROWS, seed=SEEDS, learns=st.booleans())
    def call(self, rows: int, seed: int, learns: bool) -> None:
        inputs = [data(rows, seed).requires_grad_(learns) for _ in range(2)]
        found = self.compared(lambda: self.pc(inputs[0]), lambda: self.eager(inputs[1]))
        if found and found[0].requires_grad:
            self.pending = [*self.pending[-2:], (*found, *inputs)]

    @rule(rows=ROWS, seed=SEEDS)
    def loss(self, rows: int, seed: int) -> None:
        x, target = data(rows, seed), data(rows, seed + 10)[:, :2]
        ours, theirs = lambda: self.pc.loss(x, target=target), lambda: self.criterion(self.eager(x), target)
        found = self.compared(ours, theirs)
        if found and found[0].requires_grad:
            self.pending = [*self.pending[-2:], (*found, None, None)]

    @rule(rows=ROWS, mode=st.sampled_from((torch.no_grad, torch.inference_mode)))
    def look(self, rows: int, mode: Any) -> None:
        with mode():
            self.compared(lambda: self.pc(data(rows, 0)), lambda: self.eager(data(rows, 0)))

    @invariant()
    def learns(self) -> None:
        """Both have the same gradients now, whatever is open."""
        if not hasattr(self, "eager"):
            return
        x, target = data(3, 1), data(3, 2)[:, :2]
        self.same_gradients(lambda: self.pc(x), lambda: self.eager(x))
        self.same_gradients(lambda: self.pc.loss(x, target=target), lambda: self.criterion(self.eager(x), target))

    def same_gradients(self, ours: Callable[[], Tensor], theirs: Callable[[], Tensor]) -> None:
        """Compare two calls and their gradients."""
        found = self.compared(ours, theirs)
        grads = [self.gradients(y, m) for y, m in zip(found, self.models[::-1], strict=True)] if found else []
        if not grads or grads[0] is None or grads[1] is None:
            assert grads in ([], [None, None])
            return
        for (name, _), a, b in zip(self.eager.named_parameters(), *grads, strict=True):
            assert (a is None) == (b is None), name
            if a is not None:
                torch.testing.assert_close(a, b, rtol=self.tolerance, atol=self.tolerance, msg=name)

    def gradients(self, output: Tensor, model: nn.Module) -> list[Tensor | None] | None:
        """Of what learns, that of a sum of squares; None where nothing does. `.grad` stays as it is."""
        learning = [p for p in model.parameters() if p.requires_grad]
        if not output.requires_grad or not learning:
            return None
        found = iter(torch.autograd.grad(output.square().sum(), learning, allow_unused=True))
        return [next(found) if p.requires_grad else None for p in model.parameters()]

    @rule(
        which=st.integers(0, 2),
        keep=st.booleans(),
        power=st.sampled_from((1, 2)),
        write=st.booleans(),
        between=st.sampled_from((None, *NUMBERS, "gain 2.0", ".train(False)")),
    )
    def backward(self, which: int, keep: bool, power: int, write: bool, between: str | None) -> None:
        if not self.pending:
            self.call(3, which, keep)
        if not self.pending:
            return
        if between:
            CHANGES[between](self)
        call = self.pending[which % len(self.pending)]
        errors: list[str] = []
        for result in call[:2]:
            try:
                if write and result.dim() and not keep:
                    with torch.no_grad() if result.is_leaf else torch.enable_grad():
                        result.mul_(2)
                (result**power).sum().backward(retain_graph=keep)
                errors.append("")
            except CompileError as e:
                errors = [str(e)]
                break
            except RuntimeError as e:
                errors.append(str(e))
        if any(errors):
            assert len(errors) == 1 or all(errors), errors
            self.forget()
        elif not keep:
            self.pending = [p for p in self.pending if p is not call]
        if call[2] is not None and not any(errors):
            torch.testing.assert_close(call[2].grad, call[3].grad, rtol=self.tolerance, atol=self.tolerance)

    @rule(zero=st.booleans())
    def step(self, zero: bool) -> None:
        self.both(lambda m: torch.optim.SGD(m.parameters(), lr=0.05).step())
        self.pending = []
        if zero:
            self.both(lambda m: m.zero_grad())

    def set_criterion(self, weight: float) -> None:
        """Change a number of the loss."""
        self.pc.criterion.weight = self.criterion.weight = weight

    # changes

    @rule(name=st.sampled_from(sorted(CHANGES)))
    def change(self, name: str) -> None:
        CHANGES[name](self)

    @rule(name=st.sampled_from(NUMBERS))
    def change_number(self, name: str) -> None:
        CHANGES[name](self)

    @rule(change=st.sampled_from(PARAMETER_CHANGES), path=st.sampled_from(PARAMETERS))
    def change_parameter(self, change: Callable[[nn.Module, str], bool], path: str) -> None:
        if any(self.both(lambda m: change(m, path))):
            self.forget()

    @rule(name=st.sampled_from(MODULES[1:]), before=st.booleans())
    def add_hook(self, name: str, before: bool) -> None:
        def add(model: nn.Module) -> Any:
            module = model.get_submodule(name)
            return module.register_forward_pre_hook(shifted) if before else module.register_forward_hook(doubled)

        self.hooks = [*self.hooks[:2], tuple(self.both(add))] if len(self.hooks) < 3 else self.hooks

    @rule(path=st.sampled_from(PARAMETERS))
    def add_gradient_hook(self, path: str) -> None:
        if len(self.hooks) < 3 and all(m.get_parameter(path).requires_grad for m in self.models):
            self.hooks += [tuple(self.both(lambda m: m.get_parameter(path).register_hook(lambda g: 2 * g)))]

    @precondition(lambda self: self.hooks)
    @rule()
    def remove_hook(self) -> None:
        for handle in self.hooks.pop():
            handle.remove()

    @rule()
    def copy(self) -> None:
        self.eager, self.pc = copy.deepcopy(self.eager), copy.deepcopy(self.pc)
        self.pending, self.hooks = [], []

    @rule()
    def load(self) -> None:
        state = {k: v + 1 if v.is_floating_point() else v for k, v in self.eager.state_dict().items()}
        self.both(lambda m: m.load_state_dict(state))

    @invariant()
    def agrees(self) -> None:
        """Parameters, their gradients and buffers are equal."""
        if not hasattr(self, "eager"):
            return
        for (name, theirs), ours in zip(self.eager.named_parameters(), self.pc.model.parameters(), strict=True):
            assert (ours.grad is None) == (theirs.grad is None), name
            pairs = [(ours.detach(), theirs.detach())] + [(ours.grad, theirs.grad)] * (theirs.grad is not None)
            for a, b in pairs:
                torch.testing.assert_close(a, b, rtol=self.tolerance, atol=self.tolerance, msg=name)
        for a, b in zip(self.pc.model.buffers(), self.eager.buffers(), strict=True):
            torch.testing.assert_close(a, b, rtol=self.tolerance, atol=self.tolerance)


class Zil(Actions):
    """By levels, whose gradients are those of backpropagation."""

    how = {"algorithm": "zil"}


def run(machine: type[Actions], examples: int, steps: int) -> None:
    checks = list(HealthCheck)
    how = settings(max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=checks)
    try:
        run_state_machine_as_test(machine, settings=how)
    finally:
        set_gain(1.0)


def test_a_few_sequences_of_actions() -> None:
    run(Actions, 2, 5)


@pytest.mark.slow
@pytest.mark.parametrize("machine", [Actions, Zil])
def test_many_sequences_of_actions(machine: type[Actions]) -> None:
    run(machine, 20, 12)
