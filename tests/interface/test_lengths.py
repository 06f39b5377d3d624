"""What a program relied on when it was captured is checked at each call: lengths, and which inputs are one tensor."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pccompile


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] > 5 else x * 3


class Product(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * y.sin()


class Unruled(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.special.zeta(x.exp() + 1, y)


class Orthogonal(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.qr(x)[1].abs()


class Strided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.as_strided((2, 2), (1, 2), 0)


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.readout = nn.Linear(3, 4).double()
        self.loss = nn.MultiLabelMarginLoss(reduction="none")
        self.register_buffer("classes", torch.tensor([[3, 0, -1, 1]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.loss(self.readout(x), self.classes.expand(len(x), -1))


def agree(model: nn.Module, pc: nn.Module, *args: Tensor) -> None:
    leaves = [a.clone().requires_grad_() for a in args]
    expected = torch.autograd.grad(model(*leaves).square().sum(), leaves)
    torch.testing.assert_close(torch.autograd.grad(pc(*leaves).square().sum(), leaves), expected)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def test_a_branch_on_a_length_is_taken_anew() -> None:
    pc = pccompile.compile(Branches(), (draw(8, 3),))
    agree(Branches(), pc, draw(3, 3))
    agree(Branches(), pc, draw(7, 3))


def test_one_tensor_given_twice_stays_two_inputs() -> None:
    x = draw(4, 3)
    agree(Product(), pccompile.compile(Product(), (x, x)), draw(4, 3), draw(4, 3))


def test_a_rule_that_depends_on_a_length() -> None:
    pc = pccompile.compile(Orthogonal(), (draw(6, 4),))
    for rows in (6, 4, 2):
        agree(Orthogonal(), pc, draw(rows, 4))


def test_a_rule_whose_sum_is_larger_than_its_first_term() -> None:
    class Gamma(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.mvlgamma(x + 5, 3)

    agree(Gamma(), pccompile.compile(Gamma(), (draw(4, 3),)), draw(4, 3))


def test_memory_beyond_a_view_is_refused() -> None:
    with pytest.raises(pccompile.CompileError, match="between or beyond"):
        pccompile.compile(Strided(), (draw(20)[5:15],))


def test_a_shape_that_only_a_kernel_knows() -> None:
    """torch would run the kernel on tensors of the length that stands for the free one."""
    model = Several()
    pc = pccompile.compile(model, (draw(2, 3),))
    for rows in (2, 6):
        agree(model, pc, draw(rows, 3))


@pytest.mark.parametrize(
    "model, how, captured",
    [(Product(), {}, 1), (Product(), {"algorithm": "strict", "steps": -1}, 1), (Unruled(), {}, 2)],
    ids=["nothing learns", "a setting", "no rule"],
)
def test_a_model_is_captured_anew_only_where_its_lengths_may_be_to_blame(
    model: nn.Module, how: dict[str, Any], captured: int
) -> None:
    stages: list[str] = []
    x = draw(4, 3) if how or isinstance(model, Unruled) else draw(4, 3).detach()
    with pytest.raises(pccompile.CompileError):
        pccompile.compile(model, (x, x), hook=lambda stage, result, seconds: stages.append(stage), **how)
    assert stages.count("export") == captured


class OnePiece(nn.Module):
    """An input that is split into one piece, whose length another input says."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        (piece,) = (x * 1).split(counts.tolist())
        return piece * self.scale * x


def test_an_input_that_must_be_as_long_as_data_says_keeps_its_name() -> None:
    model, x = OnePiece(), torch.randn(6, 3, dtype=torch.float64)
    pc = pccompile.compile(model, (x, torch.tensor([6])))
    for size in (6, 4):
        model.zero_grad()
        model(x[:size], torch.tensor([size])).square().sum().backward()
        expected = model.scale.grad
        model.zero_grad()
        pc(x[:size], torch.tensor([size])).square().sum().backward()
        torch.testing.assert_close(model.scale.grad, expected)
    with pytest.raises(RuntimeError, match="length that is read from data"):
        pc(x, torch.tensor([5]))
