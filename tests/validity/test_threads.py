"""Models that are compiled and called from several threads at once."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import torch
from core.models import half_squares, seeded
from torch import nn

import pccompile
from validity.changing_model import Net


def test_each_thread_compiles_its_own() -> None:
    x = torch.randn(4, 3, dtype=torch.float64)

    def differs(seed: int) -> float:
        model = seeded(Net, torch.float64, seed).eval()
        twin = copy.deepcopy(model)
        pc = pccompile.compile(model, (x,))
        half_squares(pc(x)).backward()
        half_squares(twin(x)).backward()
        pairs = zip(model.parameters(), twin.parameters(), strict=True)
        return max(float((p.grad - q.grad).abs().max()) for p, q in pairs)

    with ThreadPoolExecutor(3) as pool:
        assert max(pool.map(differs, range(4))) < 1e-9


def test_threads_that_share_a_compiled_model() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    pc = pccompile.compile(model, (torch.randn(2, 3, dtype=torch.float64),))
    exports: list[str] = []
    pc._hook = lambda stage, result, seconds: exports.append(stage) if stage == "export" else None
    model[1] = nn.ReLU()
    x = torch.randn(5, 3, dtype=torch.float64)
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda _: pc(x), range(8)))
    for output in outputs:
        torch.testing.assert_close(output, model(x))
        assert output.grad_fn is not None
    assert len(exports) == 1
