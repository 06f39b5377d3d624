"""What a loss reads from outside is changed between calls: `pc.loss` follows it as the loss itself does, or refuses."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pccompile
from pccompile.diagnostics import CompileError

SETTINGS: dict[str, Any] = {"weight": 1.0}
GLOBAL = torch.tensor(2.0, dtype=torch.float64)
CLASSES = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
X = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(4, 5).sin()
Y = torch.linspace(2, -1, 12, dtype=torch.float64).reshape(4, 3).cos()
LABELS = torch.tensor([0, 1, 2, 1])


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def loss(output: Tensor, target: Tensor) -> Tensor:
    return SETTINGS["weight"] * GLOBAL * (output - target).square().sum()


def agree(pc: Any, criterion: Callable[..., Tensor], target: Any) -> None:
    """Value and gradients are those of autograd through a copy."""
    eager = copy.deepcopy(pc.model)
    eager.zero_grad()
    pc.model.zero_grad()
    expected = criterion(eager(X), target)
    expected.backward()
    found = pc.loss(X, target=target)
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for p, q in zip(pc.model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("algorithm", ["exact", "zil"])
def test_what_a_function_reads(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pc = pccompile.compile(net(), (X,), loss=loss, algorithm=algorithm)
    agree(pc, loss, Y)
    monkeypatch.setitem(SETTINGS, "weight", 2.0)
    agree(pc, loss, Y)
    monkeypatch.setitem(globals(), "GLOBAL", GLOBAL * 3)
    agree(pc, loss, Y)
    GLOBAL.mul_(2)
    agree(pc, loss, Y)
    GLOBAL.data = GLOBAL.data * 5
    agree(pc, loss, Y)
    monkeypatch.setitem(SETTINGS, "weight", 1.0)
    agree(pc, loss, Y)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_criterion_that_is_a_module(wrapped: bool) -> None:
    criterion = nn.CrossEntropyLoss(weight=CLASSES.clone())
    taken = (lambda output, target: criterion(output, target)) if wrapped else criterion
    pc = pccompile.compile(net(), (X,), loss=taken)
    agree(pc, criterion, LABELS)
    criterion.label_smoothing = 0.1
    agree(pc, criterion, LABELS)
    criterion.weight.mul_(CLASSES)
    agree(pc, criterion, LABELS)
    criterion.weight = CLASSES.flip(0)
    agree(pc, criterion, LABELS)
    criterion.reduction = "sum"
    agree(pc, criterion, LABELS)


def test_a_loss_that_has_not_changed_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pc = pccompile.compile(net(), (X,), loss=loss)
    for weight in (1.0, 2.0, 1.0, 2.0):
        monkeypatch.setitem(SETTINGS, "weight", weight)
        agree(pc, loss, Y)
    with_loss = [p for c in pc._cache.captures for p in c.programs.values() if p.compiled and p.compiled.loss]
    assert len(with_loss) == 2


def test_a_target_with_numbers_in_it() -> None:
    def weighted(output: Tensor, target: tuple[Tensor, float]) -> Tensor:
        return target[1] * (output - target[0]).square().sum()

    pc = pccompile.compile(net(), (X,), loss=weighted)
    for target in ((Y, 1.0), (Y, 2.0), (Y, 0.5)):
        agree(pc, weighted, target)


def test_targets_that_are_broadcast() -> None:
    pc = pccompile.compile(net(), (X,), loss=loss)
    for target in (Y, Y[:1], Y[:, :1], Y):
        agree(pc, loss, target)


def test_a_target_that_requires_a_gradient_is_refused() -> None:
    pc = pccompile.compile(net(), (X,), loss=loss)
    with pytest.raises(CompileError, match="a target requires a gradient"):
        pc.loss(X, target=Y.clone().requires_grad_())


def test_a_penalty_on_weights_is_refused_unless_they_are_frozen() -> None:
    model, scale = net(), nn.Parameter(torch.ones(3, dtype=torch.float64))

    def penalised(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().sum() + model[0].weight.square().sum()

    def scaled(output: Tensor, target: Tensor) -> Tensor:
        return (scale * output - target).square().sum()

    for criterion in (penalised, scaled):
        pc = pccompile.compile(model, (X,), loss=criterion)
        with pytest.raises(CompileError, match="requires a gradient, and would give it none"):
            pc.loss(X, target=Y)
    scale.requires_grad_(False)
    agree(pc, scaled, Y)


def test_copies_follow_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pc = pccompile.compile(net(), (X,), loss=loss)
    agree(pc, loss, Y)
    for twin in (copy.deepcopy(pc), pickle.loads(pickle.dumps(pc))):
        monkeypatch.setitem(SETTINGS, "weight", 3.0)
        agree(twin, loss, Y)
        monkeypatch.setitem(SETTINGS, "weight", 1.0)
        agree(twin, loss, Y)


def test_functions_whose_code_is_replaced_as_reloading_does() -> None:
    def before(x: Tensor) -> Tensor:
        return x.square()

    def after(x: Tensor) -> Tensor:
        return x.sin()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return before(self.layer(x))

    model = Net().double()
    pc = pccompile.compile(model, (X,), loss=loss)
    agree(pc, loss, Y)
    before.__code__ = after.__code__
    agree(pc, loss, Y)
    torch.testing.assert_close(pc(X), model.layer(X).sin())


class Trainer:
    """What a loop for training keeps beside its loss."""

    def __init__(self, weight: float) -> None:
        self.weight, self.step, self.curve = weight, 0, []
        self.scales = {"error": 1.0}

    def criterion(self, output: Tensor, target: Tensor) -> Tensor:
        return self.scaled((output - target).square().sum())

    def scaled(self, value: Tensor) -> Tensor:
        return self.weight * self.scales["error"] * value

    def train(self, pc: Any) -> None:
        self.step += 1
        self.curve.append(float(pc.loss(X, target=Y)))


@pytest.mark.parametrize("wrapped", [False, True])
def test_only_what_a_loss_names_makes_it_another(wrapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(2.0)
    taken = (lambda output, target: trainer.criterion(output, target)) if wrapped else trainer.criterion
    pc = pccompile.compile(net(), (X,), loss=taken)
    agree(pc, trainer.criterion, Y)
    with monkeypatch.context() as m:
        m.setattr("pccompile.runtime.module.compile_loss", None)
        for _ in range(3):
            trainer.train(pc)
    assert trainer.step == 3
    trainer.weight = 3.0
    agree(pc, trainer.criterion, Y)
    trainer.scales["error"] = 0.5
    agree(pc, trainer.criterion, Y)
    trainer.scales = {"error": 4.0}
    agree(pc, trainer.criterion, Y)


def test_attributes_that_no_code_names_are_followed() -> None:
    class Looked(Trainer):
        def scaled(self, value: Tensor) -> Tensor:
            return getattr(self, "".join(("wei", "ght"))) * value

    trainer = Looked(2.0)
    pc = pccompile.compile(net(), (X,), loss=trainer.criterion)
    agree(pc, trainer.criterion, Y)
    trainer.weight = 3.0
    agree(pc, trainer.criterion, Y)


def test_a_loss_that_is_compiled_again_and_again_is_told() -> None:
    trainer = Trainer(1.0)
    pc = pccompile.compile(net(), (X,), loss=trainer.criterion)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for weight in range(7):
            trainer.weight = float(weight)
            agree(pc, trainer.criterion, Y)
    assert [str(w.message) for w in told if "loss criterion is compiled anew for the 5th time" in str(w.message)]
    assert len(told) == 1


class Weighted:
    """A weight that stands in the class, until an object has its own."""

    weight = 1.0

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return self.weight * (output - target).square().sum()


class Asking(Weighted):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (self.weight if hasattr(self, "own") else 3.0) * (output - target).square().sum()


class Trying(Weighted):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        try:
            factor = self.own
        except AttributeError:
            factor = self.weight
        return factor * (output - target).square().sum()


@pytest.mark.parametrize("kind, name", [(Weighted, "weight"), (Asking, "own"), (Trying, "own")])
def test_attributes_that_come_and_go(kind: type[Weighted], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held = kind()
    pc = pccompile.compile(net(), (X,), loss=held.loss)
    agree(pc, held.loss, Y)
    setattr(held, name, 2.0)
    agree(pc, held.loss, Y)
    delattr(held, name)
    agree(pc, held.loss, Y)
    monkeypatch.setattr(Weighted, "weight", 5.0)
    agree(pc, held.loss, Y)


@dataclasses.dataclass
class Settings:
    weight: float = 1.0


@dataclasses.dataclass
class Configured:
    """A loss that is equal to others, and has no hash."""

    settings: Settings

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return self.settings.weight * (output - target).square().sum()


def test_a_loss_without_a_hash() -> None:
    criterion = Configured(Settings())
    pc = pccompile.compile(net(), (X,), loss=criterion)
    agree(pc, criterion, Y)
    criterion.settings.weight = 2.0
    agree(pc, criterion, Y)
    criterion.settings = Settings(4.0)
    agree(pc, criterion, Y)


def test_programs_of_old_states_are_forgotten() -> None:
    trainer = Trainer(1.0)
    pc = pccompile.compile(net(), (X,), loss=trainer.criterion)
    counts = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for weight in range(12):
            trainer.weight = float(weight)
            agree(pc, trainer.criterion, Y)
            counts.append(sum(len(c.programs) for c in pc._cache.captures))
    assert counts[-1] == counts[-2] < 12
