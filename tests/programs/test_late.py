"""Values that are made where they are read: fewer lie in memory at once, and what comes out is the same."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

import pccompile

optimise = importlib.import_module("pccompile.backends.torch.optimise")


class Wide(nn.Module):
    """Blocks that widen a stream of 4 to 64 and narrow it again, with a shorter way around each."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(4, 64) for _ in range(4))
        self.down = nn.ModuleList(nn.Linear(64, 4) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(nn.functional.gelu(up(torch.tanh(x))))
        return x


def peak(step) -> int:
    """The most bytes that are alive at once beyond those that were."""
    step()
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = step()
    del result
    alive = most = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for e in sorted(events, key=lambda e: e.start_ns()):
        alive += e.nbytes()
        most = max(most, alive)
    return most


def test_wide_errors_are_not_all_there_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x, y = Wide(), torch.randn(256, 4), torch.randn(256, 4)

    def compiled():
        how = {"algorithm": "fixed-prediction", "lowering": "combinations", "steps": 100, "rate": 0.1}
        pc = pccompile.compile(model, (x,), **how)
        runtime = pc.prepare((x,))
        params = {k: p.detach() for k, p in pc.tables(runtime)[0].items()}
        (output,), context = runtime.function("predict")(params, {}, runtime.interface.bind((x,), {}))
        run = runtime.function("infer_and_learn")
        return lambda: run(params, [*context], [y - output])

    late = compiled()
    monkeypatch.setattr(optimise, "made_late", lambda f, pc: f)
    early = compiled()
    expected, found = early(), late()
    assert all(torch.equal(found[k], g) for k, g in expected.items())
    assert peak(late) < 0.8 * peak(early)
