"""What runs behind autograd's back: gradients stop there, except where the very same tensor comes out again."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import pccompile
from pccompile import CompileError


class Layer(nn.Module):
    def __init__(self, body: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.body = nn.Linear(3, 4), body
        self.register_buffer("table", torch.ones(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def cast_to_itself(m: nn.Module, x: Tensor) -> Tensor:
    h = m.linear(x)
    with torch.no_grad():
        mask = h.to(x.dtype) > 0
    return h * mask


def contiguous(m: nn.Module, x: Tensor) -> Tensor:
    h = m.linear(x)
    with torch.no_grad():
        same, other = h.contiguous(), h + 1
    return h * same + other * h


def written(m: nn.Module, x: Tensor) -> Tensor:
    h = m.linear(x)
    with torch.no_grad():
        h.clamp_(-0.1, 0.1).mul_(2)
    return h * h


def buffer_slice(m: nn.Module, x: Tensor) -> Tensor:
    h = m.linear(x)
    with torch.no_grad():
        m.table[:, 1:3] = h[:4, 1:3]
    return h @ m.table


def like(m: nn.Module, x: Tensor) -> Tensor:
    return x.sum() * torch.ones_like(m.linear(x)) + m.linear.bias


@pytest.mark.parametrize("body", [cast_to_itself, contiguous, written, buffer_slice, like])
def test_as_autograd(body: Callable[[nn.Module, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model, x, weight = Layer(body).double(), torch.randn(6, 3).double(), torch.randn(6, 4).double()
    twin = copy.deepcopy(model)
    (pccompile.compile(model, x)(x) * weight).sum().backward()
    (twin(x) * weight).sum().backward()
    for found, wanted in zip(model.parameters(), twin.parameters(), strict=True):
        if wanted.grad is None:
            assert found.grad is None
        else:
            torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-12, atol=1e-12)
    assert torch.equal(model.table, twin.table)


def clamped_weight(m: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.linear.weight.clamp_(-0.1, 0.1)
    return m.linear(x)


def test_refused() -> None:
    with pytest.raises(CompileError, match="a parameter is changed"):
        pccompile.compile(Layer(clamped_weight), torch.randn(6, 3))


def test_embedding_that_renormalises_its_weight_is_refused() -> None:
    with pytest.raises(CompileError, match="changed in place"):
        pccompile.compile(nn.Embedding(5, 3, max_norm=0.5), torch.arange(4))


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: Tensor, **more: Tensor) -> Tensor:
        return self.linear(x) + self.linear(more["y"])


def test_the_batch_is_free_where_keywords_have_no_names() -> None:
    model, x = Keywords(), torch.randn(5, 3)
    pc = pccompile.compile(model, (x,), {"y": x})
    assert list(pc.compiled.graph.dims) == ["batch"]
    assert "forward" not in model.__dict__


class Asserting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)

    def forward(self, words: Tensor) -> Tensor:
        torch._check((words > 0).sum().item() <= 100)
        return self.embedding(words)


def test_a_number_that_only_an_assertion_reads_does_no_harm() -> None:
    words = torch.tensor([1, 2, 0])
    model = Asserting()
    torch.testing.assert_close(pccompile.compile(model, words)(words), model.embedding(words))


class DefaultDtype(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        rest = torch.full((2, 4), 0.5)
        rest[:, :3] = x
        return rest


def test_new_tensors_have_the_default_dtype_of_the_call() -> None:
    model, x = DefaultDtype(), torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    torch.set_default_dtype(torch.float64)
    try:
        pc = pccompile.compile(model, x)
        torch.testing.assert_close(pc(x), model(x))
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(pc(x), model(x))
