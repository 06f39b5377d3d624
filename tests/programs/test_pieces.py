"""Pieces of one value in generated code."""

from __future__ import annotations

import torch
from helpers.models import Transformer
from torch import Tensor, nn

import pccompile


def test_pieces_of_one_value_that_one_vertex_reads_lie_side_by_side() -> None:
    """Queries, keys and values of one projection: no padded copies."""
    source = pccompile.compile(Transformer(), (torch.randn(2, 3, 4),)).source
    assert "slice_backward" not in source
    assert "minus_error_qkv = torch.cat(" in source


class Shifted(nn.Module):
    """Pieces of one value that overlap, where one end is counted from behind."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.linear(x))
        return h[:, 1:] * h[:, :-1]


def test_pieces_counted_from_the_end() -> None:
    model, x = Shifted().double(), torch.randn(2, 5, 3, dtype=torch.float64)
    pc = pccompile.compile(model, x)
    wanted = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    pc(x).square().sum().backward()
    for p, w in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, w, rtol=1e-12, atol=1e-12)
