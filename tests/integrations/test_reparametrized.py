"""torch's own reparametrizations, applied and taken away after compiling: pruning, weight norm, spectral norm."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.models import half_squares
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import pccompile


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv1d(2, 4, 3), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.tanh(self.fc1(torch.tanh(self.conv(x)).mean(-1))))


STEPS: dict[str, tuple[Callable[[Any], Any], ...]] = {
    "random": (lambda m: prune.random_unstructured(m.fc1, "weight", 0.4), lambda m: prune.remove(m.fc1, "weight")),
    "l1": (lambda m: prune.l1_unstructured(m.fc1, "weight", 0.4), lambda m: prune.remove(m.fc1, "weight")),
    "bias": (lambda m: prune.l1_unstructured(m.fc1, "bias", 2), lambda m: prune.remove(m.fc1, "bias")),
    "random_structured": (lambda m: prune.random_structured(m.conv, "weight", 1, dim=0),),
    "ln_structured": (lambda m: prune.ln_structured(m.conv, "weight", 1, n=2, dim=1),),
    "twice": (lambda m: prune.l1_unstructured(m.fc1, "weight", 0.3),
              lambda m: prune.random_unstructured(m.fc1, "weight", 0.3)),
    "custom_mask": (lambda m: prune.custom_from_mask(m.fc2, "weight", torch.eye(3, 6)),),
    "identity": (lambda m: prune.identity(m.fc2, "weight"), lambda m: m.fc2.weight_mask.zero_()),
    "global": (lambda m: prune.global_unstructured([(m.fc1, "weight"), (m.conv, "weight")],
                                                   pruning_method=prune.L1Unstructured, amount=0.3),),
    "old_weight_norm": (lambda m: torch.nn.utils.weight_norm(m.fc1),
                        lambda m: torch.nn.utils.remove_weight_norm(m.fc1)),
    "weight_norm": (lambda m: parametrizations.weight_norm(m.conv, dim=1),
                    lambda m: parametrize.remove_parametrizations(m.conv, "weight")),
    "old_spectral_norm": (lambda m: torch.nn.utils.spectral_norm(m.fc1, n_power_iterations=2), lambda m: m.eval(),
                          lambda m: torch.nn.utils.remove_spectral_norm(m.fc1)),
    "spectral_norm": (lambda m: parametrizations.spectral_norm(m.fc1), lambda m: m.eval(),
                      lambda m: parametrize.remove_parametrizations(m.fc1, "weight")),
    "orthogonal": (lambda m: parametrizations.orthogonal(m.fc1),),
    "cached": (lambda m: parametrize.register_parametrization(m.fc1, "weight", nn.Tanh()),
               lambda m: parametrize.register_parametrization(m.fc1, "weight", nn.Softplus())),
}  # fmt: skip


@pytest.mark.quick(4)
@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("name", STEPS)
def test_each_step_shows_at_the_next_call(name: str) -> None:
    torch.manual_seed(0)
    model, x = Net().double(), torch.randn(4, 2, 7, dtype=torch.float64)
    twin = copy.deepcopy(model)
    pc = pccompile.compile(model, (x,))
    for step in (lambda m: None, *STEPS[name]):
        for m in (model, twin):
            torch.manual_seed(1)
            step(m)
        optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in (model, twin)]
        for _ in range(2):
            for run, optimizer in zip((pc, twin), optimizers, strict=True):
                optimizer.zero_grad()
                half_squares(run(x)).backward()
            for (path, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
                torch.testing.assert_close(p.grad, q.grad, msg=lambda text, path=path: f"{path}: {text}")
            for optimizer in optimizers:
                optimizer.step()
        for (path, p), q in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
            torch.testing.assert_close(p, q, msg=lambda text, path=path: f"{path}: {text}")
