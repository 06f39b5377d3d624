"""Capturing a model leaves what its attributes hold as it was."""

import copy

import pytest
import torch
from torch import nn

import pccompile


class Accumulated(nn.Module):
    """Adds to a tensor in a plain attribute, or in a container, without gradients."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.fc, self.place = nn.Linear(3, 4), place
        total = torch.zeros(2, 4, dtype=torch.float64)
        self.total, self.table, self.rows = total, {"total": total.clone()}, [total.clone()]

    def held(self) -> torch.Tensor:
        return {"attribute": self.total, "dict": self.table["total"], "list": self.rows[0]}[self.place]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.held().add_(1.0)
        return self.fc(x) * self.held()


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("place", ["attribute", "dict", "list"])
def test_compiling_adds_nothing_to_what_forward_adds_to(place: str, check: bool) -> None:
    torch.manual_seed(0)
    model = Accumulated(place).double()
    twin, x = copy.deepcopy(model), torch.randn(2, 3, dtype=torch.float64)
    compiled = pccompile.compile(model, x, check=check)
    assert torch.equal(model.held(), twin.held())
    for _ in range(3):
        compiled(x).sum().backward()
        twin(x).sum().backward()
        assert torch.equal(model.held(), twin.held())
    torch.testing.assert_close(model.fc.weight.grad, twin.fc.weight.grad)
