"""peft: adapters that are switched off, merged and taken out again after compiling."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import peft
import pytest
import torch
from helpers.models import half_squares
from torch import Tensor, nn

import pccompile


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(torch.tanh(self.embed(x)))))


def adapted(**how: Any) -> Any:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["up", "down"], lora_dropout=0.0, **how)
    model = peft.get_peft_model(Net(), config).double()
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p)
    return model


def agree(pc: nn.Module, twin: nn.Module, model: nn.Module, x: Tensor) -> None:
    for m in (model, twin):
        m.zero_grad()
    output, expected = pc(x), twin(x)
    torch.testing.assert_close(output, expected)
    if expected.requires_grad:
        half_squares(output).backward()
        half_squares(expected).backward()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda text, name=name: f"{name}: {text}") if (
            q.grad is not None
        ) else None
        assert (p.grad is None) == (q.grad is None), name


SWITCHES: dict[str, Callable[[Any], Any]] = {
    "disable_adapter": lambda m: m.disable_adapter(),
    "merge_adapter": lambda m: m.merge_adapter(),
    "unmerge_adapter": lambda m: (m.merge_adapter(), m.unmerge_adapter())[0],
    "scaling": lambda m: m.base_model.model.up.set_scale("default", 3.0),
    "second_adapter": lambda m: (m.add_adapter("other", peft.LoraConfig(r=3, target_modules=["up"])), m.double(),
                                 m.set_adapter("other"))[0],
}  # fmt: skip


@pytest.mark.quick(6)
@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_an_adapter_is_what_it_is_now(switch: str, dora: bool) -> None:
    model, x = adapted(use_dora=dora), torch.randn(5, 4, dtype=torch.float64)
    twin = copy.deepcopy(model)
    pc = pccompile.compile(model, (x,))
    agree(pc, twin, model, x)
    torch.manual_seed(1)
    mine = SWITCHES[switch](model)
    torch.manual_seed(1)
    other = SWITCHES[switch](twin)
    within = [m if hasattr(m, "__enter__") else nullcontext() for m in (mine, other)]
    with within[0], within[1]:
        agree(pc, twin, model, x)
    agree(pc, twin, model, x)


def test_switching_to_and_fro_compiles_once_a_state() -> None:
    model, x = adapted(), torch.randn(5, 4, dtype=torch.float64)
    pc = pccompile.compile(model, (x,))
    exports: list[str] = []
    pc._hook = lambda stage, result, seconds: exports.append(stage) if stage == "export" else None
    for _ in range(3):
        with model.disable_adapter():
            torch.testing.assert_close(pc(x), model(x))
        torch.testing.assert_close(pc(x), model(x))
    assert len(exports) == 1


def test_merge_and_unload() -> None:
    model, x = adapted(), torch.randn(5, 4, dtype=torch.float64)
    pc = pccompile.compile(model, (x,))
    expected = pc(x).detach()
    plain = model.merge_and_unload()
    torch.testing.assert_close(pccompile.compile(plain, (x,))(x), expected)
