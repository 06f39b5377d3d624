"""Outputs that share units each bring their error to them."""

import torch
from torch import nn

from pccompile.backends.netlist import NetlistOptions
from pccompile.pipeline import compile_netlist


class Views(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.tanh(self.inner(x))
        return y, y.T


def test_an_output_and_a_view_of_it() -> None:
    torch.manual_seed(0)
    model, x = Views().double(), torch.randn(4, 2, dtype=torch.float64)
    first, second = torch.randn(4, 3, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    net = compile_netlist(model, (x,), options=NetlistOptions(loss="none", rate=1.0, eta=1.0))
    result = net.simulate(x, clamps=(first, second), ticks=9, learn=True)
    y, z = model(x)
    (expected,) = torch.autograd.grad((y * first).sum() + (z * second).sum(), model.inner.weight)
    change = torch.from_numpy(result.params["inner.weight"]) - model.inner.weight.detach()
    assert torch.allclose(change, expected, rtol=1e-12)
