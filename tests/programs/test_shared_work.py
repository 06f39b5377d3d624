"""What several messages share is computed once: slopes of activations, and copies of permuted values."""

from __future__ import annotations

import re

import pytest
import torch
from algorithms.nets import Problem
from torch import nn


class Smooth(nn.Module):
    """Residual blocks with an activation whose slope is costly."""

    def __init__(self, activation: str = "gelu", blocks: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(blocks))
        self.activation, self.out = activation, nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + getattr(nn.functional, self.activation)(block(x))
        return self.out(x)


class Attention(nn.Module):
    """Two heads of two channels, their queries, keys and values side by side in one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).reshape(2, 5, 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)
        read = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.out(read.transpose(1, 2).reshape(2, 5, 4).mean(1))


def sweep_of(source: str) -> str:
    return source[source.index("def infer_and_learn") :]


@pytest.mark.parametrize("activation", ["gelu", "silu"])
@pytest.mark.parametrize("lowering", ["combinations", "exponentials"])
def test_a_slope_is_computed_once(activation: str, lowering: str) -> None:
    p = Problem(lambda: Smooth(activation), (2, 4))
    how = {"lowering": lowering, "steps": 20, "rate": 0.2}
    source = p.compile("fixed-prediction", **how).source
    inference = source[source.index("def infer(") : source.index("def learn(")]
    assert inference.count(f"{activation}_backward(") == 2  # the first block sends nothing to a vertex
    assert lowering == "combinations" or f"{activation}_backward(" not in inference[inference.index("for ") :]
    found, steps = (p.gradients("fixed-prediction", **{**how, "lowering": x}) for x in (lowering, "relax"))
    for key, gradient in steps.items():
        assert torch.allclose(found[key], gradient, rtol=1e-7, atol=1e-8 * float(p.backprop[key].norm())), key


def test_a_slope_that_moves_in_a_loop_stays_there() -> None:
    p = Problem(Smooth, (2, 4))
    pc = p.compile("strict", steps=3)
    loop = pc.source[pc.source.index(" in range(") : pc.source.index("def learn(")]
    assert "gelu_backward(" in loop
    assert "new_ones" not in loop


def test_permuted_factors_of_products_are_copied_once_and_pieces_lie_where_they_are_read() -> None:
    p = Problem(Attention, (2, 5, 4))
    source = p.compile("exact").source
    assert source.count(".contiguous()") == 1
    assert not re.search(r"pieces\w*\.permute", source)
    assert "torch.stack(" in sweep_of(source)
    taken, closed = (p.gradients("fixed-prediction", steps=20, rate=0.3, lowering=x) for x in ("relax", "closed-form"))
    for key, gradient in taken.items():  # in a loop too, where vertices wait for their turn
        assert torch.allclose(gradient, closed[key], rtol=1e-9, atol=1e-12), key
    for key, gradient in p.gradients("exact").items():
        assert torch.allclose(gradient, p.backprop[key], rtol=1e-10, atol=1e-12), key


def test_a_permutation_that_leaves_batches_as_they_lie_is_no_copy() -> None:
    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            value = self.a(x)
            return self.b((torch.tanh(value @ value.permute(0, 1, 3, 2)) @ value).mean((1, 2)))

    p = Problem(Swapped, (2, 3, 5, 4))
    assert ".contiguous()" not in p.compile("exact").source
    for key, gradient in p.gradients("exact").items():
        assert torch.allclose(gradient, p.backprop[key], rtol=1e-10, atol=1e-12), key
