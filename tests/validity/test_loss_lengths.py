"""A loss may count by lengths or branch on them, those of outputs and of targets: each call has its own."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pccompile

Loss = Callable[[Tensor, Any], Tensor]


def rows(n: int) -> tuple[Tensor, Any]:
    return torch.randn(n, 4, dtype=torch.float64), torch.randn(n, 2, dtype=torch.float64)


def sequences(n: int) -> tuple[Tensor, Any]:
    return torch.randn(3, n, 4, dtype=torch.float64), torch.randn(3, n, 2, dtype=torch.float64)


def counted(n: int) -> tuple[Tensor, Any]:
    x, y = sequences(n)
    return x, {"y": y, "count": torch.tensor(n)}


def classes(n: int) -> tuple[Tensor, Any]:
    return sequences(n)[0], torch.randint(2, (3, n))


def pixels(n: int) -> tuple[Tensor, Any]:
    return torch.randn(2, 4, n, n + 1, dtype=torch.float64), torch.randint(2, (2, n, n + 1))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()


class States(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.core = nn.GRU(4, 2, batch_first=True).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.core(x)[0]


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 1)).double()


def branches(o: Tensor, t: Tensor) -> Tensor:
    return o.pow(3).sum() * (2 if o.shape[0] > 5 else 1)


def branches_on_the_target(o: Tensor, t: Tensor) -> Tensor:
    return o.pow(3).sum() * (2 if t.shape[0] > 5 else 1)


def divides_by_steps(o: Tensor, t: Any) -> Tensor:
    return (o - t).square().sum() / o.shape[1]


def last_steps(o: Tensor, t: Tensor) -> Tensor:
    return (o - t)[:, -3:].square().sum() if o.shape[1] > 3 else (o - t).abs().sum()


CASES: list[Any] = [
    (mlp, rows, lambda o, t: (o - t).square().sum() / len(o)),
    (mlp, rows, lambda o, t: o.pow(3).sum() / len(t)),
    (mlp, rows, branches),
    (mlp, rows, branches_on_the_target),
    (States, sequences, divides_by_steps),
    (States, sequences, last_steps),
    (States, sequences, lambda o, t: F.mse_loss(o.mean(1), t[:, -1])),
    (States, counted, lambda o, t: (o - t["y"]).square().sum() / t["count"]),
    (States, classes, lambda o, t: F.cross_entropy(o.transpose(1, 2), t)),
    (States, classes, lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten(), reduction="sum") / t.shape[1]),
    (convolutions, pixels, F.cross_entropy),
    (convolutions, pixels, lambda o, t: o.square().sum() / o.shape[2] + t.shape[1] * o.sum()),
]


@pytest.mark.parametrize("make, inputs, loss", CASES)
@pytest.mark.parametrize("algorithm", ["exact", pytest.param("zil", marks=pytest.mark.slow)])
def test_each_length_has_its_loss(
    algorithm: str, make: Callable[[], nn.Module], inputs: Callable[[int], tuple[Tensor, Any]], loss: Loss
) -> None:
    torch.manual_seed(0)
    model = make()
    params = list(model.parameters())
    pc = pccompile.compile(model, (inputs(8)[0],), loss=loss, algorithm=algorithm)
    for n in (8, 11, 3, 8, 4, 6):
        x, target = inputs(n)
        value, expected = pc.loss(x, target=target), loss(model(x), target)
        torch.testing.assert_close(value, expected)
        found, wanted = torch.autograd.grad(value, params), torch.autograd.grad(expected, params)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_a_length_that_was_seen_costs_no_compilation() -> None:
    stages: list[str] = []
    loss = CASES[2][2]
    x, y = rows(8)
    pc = pccompile.compile(mlp(), (x,), loss=loss, hook=lambda stage, result, seconds: stages.append(stage))
    for n in (8, 3, 9, 4):
        x, y = rows(n)
        pc.loss(x, target=y)
    count = len(stages)
    for n in (7, 2, 8, 5, 20):
        x, y = rows(n)
        pc.loss(x, target=y)
    assert len(stages) == count


class Chosen(nn.Module):
    """As many rows as data decide."""

    def __init__(self) -> None:
        super().__init__()
        self.readout = nn.Linear(4, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        rows = self.readout(x)
        return rows[x.sum(1) > 0]


@pytest.mark.parametrize("loss", [None, lambda o, t: o.square().sum() / o.shape[0], lambda o, t: (o - t).abs().mean()])
def test_lengths_that_data_decide(loss: Loss | None) -> None:
    torch.manual_seed(0)
    model = Chosen()
    params = list(model.parameters())
    pc = pccompile.compile(model, (rows(8)[0],), **({"loss": loss} if loss else {}))
    for n in (8, 9, 30):
        x = rows(n)[0]
        target = torch.randn_like(model(x))
        expected = loss(model(x), target) if loss else (model(x) - target).square().sum() / 2
        found = torch.autograd.grad(pc.loss(x, target=target), params)
        torch.testing.assert_close(found, torch.autograd.grad(expected, params))


@pytest.mark.parametrize("loss", [branches, lambda o, t: o.square().sum() / len(o)])
def test_a_loss_that_rests_on_a_length_of_data_is_refused(loss: Loss) -> None:
    pc = pccompile.compile(Chosen(), (rows(8)[0],), loss=loss)
    with pytest.raises(pccompile.CompileError, match=r"dimension 0 of output 0 or branches on it, and data decide"):
        pc.loss(rows(8)[0], target=torch.zeros(1))


@pytest.mark.filterwarnings("always")
def test_many_lengths_of_one_loss_are_said() -> None:
    torch.manual_seed(0)
    x, y = rows(2)
    pc = pccompile.compile(mlp(), (x,), loss=lambda o, t: o.sum() / len(o), check=False)
    with warnings.catch_warnings(record=True) as said:
        for n in range(2, 11):
            x, y = rows(n)
            pc.loss(x, target=y)
    assert [str(w.message) for w in said if "the loss is compiled for 9 lengths" in str(w.message)]
