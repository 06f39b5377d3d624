"""Sparse gradients of embeddings, and what sparse tensors are refused for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.models import seeded
from torch import Tensor, nn

import pccompile
from pccompile import CompileError


class Words(nn.Module):
    """Two embeddings that ask for sparse gradients, one of them read twice and with a padding row."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.first = nn.Embedding(10, 4, sparse=True, padding_idx=0)
        self.second, self.out = nn.Embedding(10, 4, sparse=True), nn.Linear(4, 2)
        self.tied = tied

    def forward(self, i: Tensor) -> Tensor:
        h = self.first(i) * self.second(i) + self.first(i.flip(0))
        return self.out(h @ self.second.weight.t() @ self.second.weight if self.tied else h)


def step(model: nn.Module, i: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(i).sin().sum().backward()
    return {k: p.grad for k, p in model.named_parameters()}


@pytest.mark.parametrize("algorithm", ["exact", "fixed-prediction"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_gradient_is_sparse_where_that_of_autograd_is(tied: bool, algorithm: str) -> None:
    make: Callable[[], nn.Module] = lambda: Words(tied)  # noqa: E731
    i = torch.randint(6, (3, 5))
    settings = {"rate": 1.0} if algorithm == "fixed-prediction" else {}
    pc = pccompile.compile(seeded(make), (i,), algorithm=algorithm, **settings)
    found, wanted = step(pc, i), step(seeded(make), i)
    for name, grad in wanted.items():
        assert found[name].layout is grad.layout, name
        torch.testing.assert_close(found[name].to_dense(), grad.to_dense())
        if grad.is_sparse:
            assert set(found[name]._indices().flatten().tolist()) == set(grad._indices().flatten().tolist())


def test_a_sparse_optimizer_takes_the_same_steps() -> None:
    i = torch.randint(6, (3, 5))
    models = pccompile.compile(seeded(Words), (i,)), seeded(Words)
    for model in models:
        optimizer = torch.optim.SparseAdam([p for k, p in model.named_parameters() if not k.startswith("out")], 0.1)
        for _ in range(3):
            step(model, i)
            optimizer.step()
    for a, b in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(a, b)


class Sparse(nn.Module):
    """What `use` makes of a matrix of weights and an argument."""

    def __init__(self, use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.w, self.use = nn.Parameter(torch.randn(5, 3)), use

    def forward(self, a: Tensor) -> Tensor:
        return self.use(self.w, a)


def matrix() -> Tensor:
    return (torch.rand(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) > 0.5).double()


def product(w: Tensor, a: Tensor) -> Tensor:
    return torch.tanh(a @ w)


def made_inside(w: Tensor, a: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(torch.tensor([[0, 1], [1, 2]]), w[0, :2] * a[0, 0], (3, 3)).to_dense()


@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_coo])
def test_a_sparse_argument_is_a_constant(layout: torch.layout) -> None:
    a, make = matrix().to_sparse(layout=layout), lambda: Sparse(product)
    pc, plain = pccompile.compile(seeded(make), (a,)), seeded(make)
    for model in (pc, plain):
        model(a).square().sum().backward()
    torch.testing.assert_close(pc.model.w.grad, plain.w.grad)


@pytest.mark.parametrize(
    "use, a, words",
    [
        (product, matrix().to_sparse_csr().requires_grad_(), "is sparse and takes a gradient"),
        (made_inside, matrix(), "is sparse"),
    ],
)
def test_other_sparse_tensors_are_refused(use: Any, a: Tensor, words: str) -> None:
    with pytest.raises(CompileError, match=words):
        pccompile.compile(seeded(lambda: Sparse(use)), (a,))
