"""Models that are compiled and called from several threads at once."""

from __future__ import annotations

import contextlib
import copy
import logging
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.models import half_squares, seeded
from torch import nn

import pccompile
from pccompile.frontends.process import capturing, replaced
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


INSIDE: dict[str, object] = {}


class Looking(nn.Linear):
    """Notes what is replaced while it runs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        INSIDE.update(replaceable())
        return super().forward(x)


class Refused(Looking):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y if y.sum() > 0 else -y


def replaceable() -> dict[str, object]:
    """What torch's classes and modules have under the names that a capture replaces, and torch's loggers' levels."""
    names = {
        torch: ["as_tensor", "ctc_loss", "instance_norm", "manual_seed", "seed", "default_generator"],
        torch._C: ["_InferenceMode"],
        torch._VF: ["_pack_padded_sequence", "_pad_packed_sequence"],
        torch.autograd.Function: ["apply"],
        torch.autograd.function._SingleLevelFunction: ["apply"],
        torch.Tensor: ["data", "retain_grad", "register_hook"],
        torch.distributions.Distribution: ["_validate_args"],
        torch.fx.Interpreter: ["run"],
        nn.Module: ["__getattr__"],
        nn.modules.batchnorm._BatchNorm: ["forward"],
        **{kind: ["forward"] for kind in (nn.LSTM, nn.GRU, nn.RNN)},
    }
    found = {f"{owner} {n}": vars(owner).get(n) for owner, several in names.items() for n in several}
    return {**found, "level": logging.getLogger("torch").level, "stderr": sys.stderr}


@pytest.mark.parametrize("make", [Looking, Refused])
def test_torch_is_afterwards_what_it_was(make: type[nn.Module]) -> None:
    before, model = replaceable(), seeded(lambda: make(3, 2))
    with pytest.raises(pccompile.CompileError) if make is Refused else contextlib.nullcontext():
        pccompile.compile(model, (torch.randn(4, 3, dtype=torch.float64),), check=False, capture="export")
    assert replaceable() == before
    changed = {name for name, value in before.items() if INSIDE[name] is not value}
    assert changed >= {f"{torch.Tensor} data", f"{torch.autograd.Function} apply", f"{torch} ctc_loss", "stderr"}


def test_nothing_is_replaced_without_the_lock() -> None:
    before = torch.ctc_loss
    with pytest.raises(RuntimeError, match="does not hold the lock"), replaced(torch, ctc_loss=len):
        pass
    with capturing(), ThreadPoolExecutor(1) as pool:
        elsewhere = pool.submit(replaced(torch, ctc_loss=len).__enter__)
        with pytest.raises(RuntimeError, match="does not hold the lock"):
            elsewhere.result()
        with replaced(torch, ctc_loss=len):
            assert torch.ctc_loss is len
    assert torch.ctc_loss is before


def test_threads_that_share_a_model_in_pieces() -> None:
    """Dynamo traces in one thread while another captures a piece."""
    torch.manual_seed(0)
    model = Deciding()
    twin, x = copy.deepcopy(model), torch.randn(4, 3)
    pc = pccompile.compile(model, x)
    inputs = [torch.randn(n, 3) * (-1) ** n for n in range(2, 8)]
    with ThreadPoolExecutor(3) as pool:
        for output, given in zip(pool.map(pc, inputs), inputs, strict=True):
            torch.testing.assert_close(output, twin(given))
            assert output.grad_fn is not None


class Deciding(nn.Module):
    """Decides by a number what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x).tanh()
        if h[0].sum() > 0:
            return self.second(h).mean(0, keepdim=True) + h
        return h.sin()
