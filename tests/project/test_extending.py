"""docs/extending.md: its code runs, and the operations that it defines have autograd's gradients."""

from typing import Any

import pytest
import sympy as sp
import torch
from helpers.pages import blocks, run
from onnx import helper
from onnx_frontend.build import model
from torch import Tensor, nn

import pccompile
from pccompile.algorithms import _known as algorithms
from pccompile.frontends.onnx.registry import OPERATORS
from pccompile.ops import OPS
from pccompile.ops.expressions import log1p, stable

BLOCKS = blocks("docs/extending.md")


class Call(nn.Module):
    """A linear layer, then an operator."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 7, dtype=torch.float64)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.fc(x))


@pytest.fixture
def code() -> Any:
    """Runs block number i of the document; what it registers is forgotten after the test."""
    before, operators, known = dict(OPS), dict(OPERATORS), dict(algorithms)
    yield lambda i: run(BLOCKS[i])
    for table, old in ((OPS, before), (OPERATORS, operators), (algorithms, known)):
        table.clear()
        table.update(old)


def agree(compiled: nn.Module, plain: nn.Module, x: Tensor) -> None:
    """The gradients of both by a loss that weighs each output differently."""
    found = []
    for module in (compiled, plain):
        at = x.clone().requires_grad_()
        y = module(at)
        loss = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()
        parameters = list(module.parameters())
        found.append(torch.autograd.grad(loss, [at, *parameters]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_the_blocks_are_short() -> None:
    assert len(BLOCKS) == 4
    for block in BLOCKS:
        assert len(block.strip().splitlines()) <= 26


def test_elementwise(code: Any) -> None:
    swoosh = code(0)["swoosh"]
    x = torch.randn(5, 4, dtype=torch.float64)
    compiled = Call(swoosh)
    plain = Call(lambda v: v * torch.tanh(nn.functional.softplus(v)))
    plain.load_state_dict(compiled.state_dict())
    pc = pccompile.compile(compiled, (x,))
    assert "swoosh" not in pc.source.split("def predict")[0]
    agree(pc, plain, x)


def test_linear(code: Any) -> None:
    thinned = code(1)["thinned"]
    x = torch.randn(5, 4, dtype=torch.float64)
    compiled = Call(lambda v: thinned(v, 3))
    plain = Call(lambda v: v[..., ::3])
    plain.load_state_dict(compiled.state_dict())
    pc = pccompile.compile(compiled, (x,))
    assert "index_add" in pc.source
    agree(pc, plain, x)
    agree(pc, plain, torch.randn(9, 4, dtype=torch.float64))


def test_linear_refuses_to_learn_its_other_arguments() -> None:
    @torch.library.custom_op("pcc_test::weighed", mutates_args=())
    def weighed(x: Tensor, weight: Tensor) -> Tensor:
        return x * weight

    weighed.register_fake(lambda x, weight: torch.empty_like(x))
    pccompile.register_linear(weighed, lambda error, weight: error * weight)

    class Learns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return weighed(x, self.weight)

    with pytest.raises(pccompile.CompileError, match="linear in x only"):
        pccompile.compile(Learns(), (torch.ones(3, 4),))


def test_onnx(code: Any) -> None:
    snake = code(2)["snake"]
    node = helper.make_node("Snake", ["x", "rate"], ["y"], domain="com.example", name="/snake")
    file = model(
        [node],
        {"x": ["batch", 4], "rate": [4]},
        {"y": ["batch", 4]},
        extra_opsets=[helper.make_opsetid("com.example", 1)],
    )
    x, rate = (torch.randn(s).requires_grad_() for s in ((5, 4), (4,)))
    pc = pccompile.compile(file, (x, rate))
    sent = torch.randn(5, 4)
    found = torch.autograd.grad(pc(x, rate), [x, rate], sent)
    expected = torch.autograd.grad(snake(None, x, rate), [x, rate], sent)
    torch.testing.assert_close(found, expected)


def test_onnx_keeps_its_own_operators() -> None:
    with pytest.raises(ValueError, match="not redefined"):
        pccompile.register_onnx("Relu", domain="")


def test_an_operator_is_not_taken_for_one_of_torch() -> None:
    @torch.library.custom_op("pcc_test::relu", mutates_args=())
    def relu(x: Tensor) -> Tensor:
        return x * 2

    relu.register_fake(lambda x: torch.empty_like(x))
    relu.register_autograd(lambda ctx, error: error * 2)
    x = torch.randn(5, 4, dtype=torch.float64)
    model = Call(relu)
    agree(pccompile.compile(model, (x,)), model, x)


def test_an_inference_algorithm(code: Any) -> None:
    code(-1)
    torch.manual_seed(0)
    x, y = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
    found = []
    for how in ({"algorithm": "sparse", "decay": 0.0}, {"algorithm": "strict"}, {"algorithm": "sparse", "decay": 0.5}):
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 7)).double()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.linspace(-1, 1, p.numel()).reshape(p.shape))
        pccompile.compile(model, (x,), loss=nn.MSELoss(reduction="sum"), **how).loss(x, target=y).backward()
        found.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(found[0], found[1], rtol=1e-13, atol=1e-13)  # one rounds as a fused step does
    assert not torch.allclose(found[0][0], found[2][0])


def test_a_logarithm_keeps_its_digits_near_zero() -> None:
    """log(x) is no log1p(x − 1), which has none left there; log(1 + x) is log1p(x)."""
    x = sp.Symbol("x", real=True)
    assert stable(sp.log(x)) == sp.log(x)
    assert stable(sp.log(1 + x**2)) == log1p(x**2)
