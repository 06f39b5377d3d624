"""Programs whose Python decides by numbers, captured whole along each path: they learn as eager torch does."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pccompile
from pccompile import CompileError


class Net(nn.Module):
    """Layers, and what Python does with them."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.norm, self.drop, self.gate = nn.BatchNorm1d(4), nn.Dropout(0.5), Gate()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


class Gate(nn.Module):
    """Two layers, of which numbers choose one."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, h: Tensor) -> Tensor:
        return self.high(h).tanh() if h.sum() > 0 else self.low(h).sin()  # type: ignore[no-any-return]


def branch(m: Any, x: Tensor) -> Tensor:
    h = m.norm(m.first(x)).tanh() if x.sum() > 0 else m.first(x) * 2
    return m.last(h)  # type: ignore[no-any-return]


def early_exit(m: Any, x: Tensor) -> Tensor:
    h = m.first(x)
    for _ in range(6):
        h = h - 0.4 * h.tanh()
        if h.norm() < 1.0:
            break
    return m.last(h)  # type: ignore[no-any-return]


def equilibrium(m: Any, x: Tensor) -> Tensor:
    z = torch.zeros(x.shape[0], 4, dtype=x.dtype)
    h = m.first(x)
    while True:
        new = (0.3 * m.second(z) + h).tanh()
        with torch.no_grad():
            done = (new - z).norm() < 1e-6
        z = new
        if done:
            return m.last(z)  # type: ignore[no-any-return]


def adaptive(m: Any, x: Tensor) -> Tensor:
    """Bogacki and Shampine's pair; a step is accepted where its error is small, and halved or doubled."""
    y, t, step = m.first(x), 0.0, 0.5
    while t < 1.0:
        step = min(step, 1.0 - t)
        k1 = m.second(y).tanh()
        k2 = m.second(y + step / 2 * k1).tanh()
        k3 = m.second(y + 3 * step / 4 * k2).tanh()
        new = y + step * (2 * k1 + 3 * k2 + 4 * k3) / 9
        k4 = m.second(new).tanh()
        error = (step * (-5 * k1 / 72 + k2 / 12 + k3 / 9 - k4 / 8)).norm()
        if error > 5e-3:
            step /= 2
            continue
        t, y = t + step, new
        if error < 1e-3:
            step *= 2
    return m.last(y)  # type: ignore[no-any-return]


def twice(m: Any, x: Tensor) -> Tensor:
    return m.last(m.gate(m.gate(m.first(x)) - 0.2))  # type: ignore[no-any-return]


def listed(m: Any, x: Tensor) -> Tensor:
    h = m.first(x)
    for row in h.argmax(-1).tolist():
        h = h + 0.1 * (m.gate.high(h) if row % 2 else m.gate.low(h)).tanh()
    return m.last(h)  # type: ignore[no-any-return]


def number(m: Any, x: Tensor) -> Tensor:
    h = m.first(x)
    scale = h[0, 0].item()
    h = h.tanh() * scale
    return m.last(h if scale > 0 else h.sin())  # type: ignore[no-any-return]


def masked(m: Any, x: Tensor) -> Tensor:
    h = m.first(x)
    kept = h[h > 0].square().sum()
    return m.last(h) * (kept if int((h > 0).sum()) % 2 else 1 - kept)  # type: ignore[no-any-return]


def drawn(m: Any, x: Tensor) -> Tensor:
    h = m.drop(m.first(x))
    return m.last(h.tanh() if h.sum() > 0 else m.second(h))  # type: ignore[no-any-return]


RUNS = (branch, early_exit, equilibrium, adaptive, twice, listed, number, masked, drawn)


def net(run: Callable[[Any, Tensor], Tensor]) -> tuple[Net, Tensor]:
    torch.manual_seed(3)
    return Net(run).double(), torch.randn(5, 3).double()


def step(f: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Outputs, gradients and buffers of one step."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    torch.manual_seed(7)
    out = f(x)
    (out * torch.arange(1.0, 1 + out.numel()).double().view_as(out)).sum().backward()
    assert x.grad is not None
    found = {"output": out.detach(), "x": x.grad, **{k: b.clone() for k, b in model.named_buffers()}}
    return found | {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in model.named_parameters()}


def agree(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.quick(5)
@pytest.mark.parametrize("run", RUNS)
def test_every_path_learns_as_eager_torch_does_and_so_does_the_way_back(run: Callable[[Any, Tensor], Tensor]) -> None:
    model, x = net(run)
    reference = copy.deepcopy(model)
    pc = pccompile.compile(model, (x,), capture="path")
    captured = []
    for factor in (1.0, 30.0, -30.0, 1.0, 30.0):
        agree(step(pc, model, factor * x), step(reference, reference, factor * x))
        captured.append(len(pc._cache.captures))
    assert captured[2] > 1
    assert captured[2] == captured[-1]  # the way back compiles nothing


def test_another_batch_on_the_same_path_compiles_nothing() -> None:
    model, x = net(branch)
    reference = copy.deepcopy(model)
    pc = pccompile.compile(model, (x.abs(),), capture="path")
    agree(step(pc, model, x[:3].abs()), step(reference, reference, x[:3].abs()))
    assert len(pc._cache.captures) == 1


@pytest.mark.parametrize(("algorithm", "settings"), [("fixed-prediction", {"rate": 1.0, "steps": 20}), ("zil", {})])
def test_what_equals_backpropagation_does_so_on_each_path(algorithm: str, settings: dict[str, Any]) -> None:
    model, x = net(twice)
    reference = copy.deepcopy(model)
    pc = pccompile.compile(model, (x,), capture="path", algorithm=algorithm, **settings)
    for factor in (1.0, 30.0):
        y = factor * x
        found, expected = step(pc, model, y), step(reference, reference, y)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6, msg=name)


def straight(m: Any, x: Tensor) -> Tensor:
    return m.last(m.second(m.first(x)).tanh())  # type: ignore[no-any-return]


def forked(m: Any, x: Tensor) -> Tensor:
    return m.last(m.second(m.first(x)).tanh() if x.sum() > 0 else m.first(x).tanh())  # type: ignore[no-any-return]


def test_strict_on_a_path_is_strict_of_the_program_without_the_decision() -> None:
    (model, x), (plain, _) = net(forked), net(straight)
    y = torch.ones(5, 2).double()
    for m in (model, plain):
        how: dict[str, Any] = {"capture": "path"} if m is model else {}
        loss = torch.nn.functional.mse_loss
        pc = pccompile.compile(m, (x.abs(),), algorithm="strict", steps=20, rate=0.1, loss=loss, **how)
        pc.loss(x.abs(), target=y).backward()
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-9, msg=name)


def test_reports_and_learning_know_the_program() -> None:
    model, x = net(forked)
    pc = pccompile.compile(model, (x.abs(),), capture="path", loss=nn.functional.mse_loss)
    before, target = model.last.weight.detach().clone(), torch.ones(5, 2).double()
    assert pc.checked is not None
    assert "tanh" in str(pc.explain())
    assert "exact" in str(pc.summary())
    pc.train_step(-x.abs(), target, torch.optim.SGD(model.parameters(), lr=0.1))
    assert not torch.equal(before, model.last.weight)


SCRIPT = """
import sys, torch
from safetensors.torch import load_file
sys.path.insert(0, sys.argv[1])
import forked_pc as file
tensors, x = load_file(sys.argv[1] + "/forked_pc.safetensors"), torch.load(sys.argv[1] + "/x.pt")
params = {k: v for k, v in tensors.items()}
print(file.predict(params, {}, {"x": x})[0][0].sum().item())
try:
    file.predict(params, {}, {"x": -x})
except file.OtherPath as e:
    print(e)
"""


def test_a_file_of_a_path_refuses_what_takes_another(tmp_path: Path) -> None:
    model, x = net(forked)
    pc = pccompile.compile(model, (x.abs(),), capture="path")
    pc.save(tmp_path, "forked")
    torch.save(x.abs(), tmp_path / "x.pt")
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, check=True)
    value, refusal = done.stdout.splitlines()
    assert float(value) == pytest.approx(model(x.abs()).sum().item(), rel=1e-12)
    assert refusal.startswith("forward reads False at test_paths.py:")
    assert refusal.endswith("this program is of the path on which it read True")


def test_numbers_with_a_fraction_are_announced_and_then_refused() -> None:
    model, x = net(number)
    pc = pccompile.compile(model, (x,), capture="path", check=False)
    with pytest.warns(UserWarning, match=r"each number that Python reads at test_paths.py:\d+ is a path of its own"):
        pc(2 * x)
    for factor in range(3, 9):
        pc(factor * x)
    with pytest.raises(CompileError, match="there have been 8"):
        pc(9 * x)
    pc(3 * x)  # a path that was taken before


def test_zero_has_a_sign() -> None:
    def signed(m: Any, x: Tensor) -> Tensor:
        return m.last(m.first(x) * (1 if str(x[0, 0].item()) == "0.0" else 2))  # type: ignore[no-any-return]

    model, _ = net(signed)
    reference, zero = copy.deepcopy(model), torch.zeros(5, 3).double()
    pc = pccompile.compile(model, (zero,), capture="path")
    with pytest.warns(UserWarning, match="path of its own"):
        agree(step(pc, model, -zero), step(reference, reference, -zero))


def test_what_cannot_be_followed_is_refused() -> None:
    model, x = net(branch)
    with pytest.raises(CompileError, match="jit=True"):
        pccompile.compile(model, (x,), capture="path", jit=True)
    model.first.register_forward_hook(lambda *_: None)
    with pytest.raises(CompileError, match="has hooks"):
        pccompile.compile(model, (x,), capture="path")
