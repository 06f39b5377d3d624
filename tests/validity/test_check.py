"""The self-check leaves no trace, alarms nobody in vain, and says what it did not compare."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.models import Busy, Residual, mlp, seeded
from torch import Tensor, nn

import pccompile
from pccompile.runtime import comparison
from pccompile.runtime import self_check as checking
from pccompile.runtime.trial_run import Copies, untouched


class Remembering(nn.Module):
    """Writes whatever it has."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("state", torch.zeros(4))
        self.view = self.state[:2]
        self.calls, self.log, self.last = 0, [], None
        self.queue, self.box, self.table = deque(maxlen=2), SimpleNamespace(n=0), {"n": 0}

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        self.calls += 1
        self.log.append(self.calls)
        self.queue.append(self.calls)
        self.box.n += 1
        self.table["n"] += 1
        self.last = y
        with torch.no_grad():
            self.state.add_(1)
        if self.training:
            self.extra = 3
        return y + random.random() * 0 + np.random.rand() * 0


def streams() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


@pytest.mark.parametrize("algorithm", ["exact", "fixed-prediction"])
def test_compiling_leaves_no_trace(algorithm: str) -> None:
    model, x = seeded(Busy, torch.float32), torch.randn(6, 4, requires_grad=True)
    model(x.detach()).sum().backward()
    model.out.bias.requires_grad_(False)
    model.drop.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    grads = {k: (p.grad, p.grad.clone()) for k, p in model.named_parameters() if p.grad is not None}
    flags = {k: p.requires_grad for k, p in model.named_parameters()}
    modes = [m.training for m in model.modules()]
    versions = [t._version for t in (*model.parameters(), *model.buffers(), x)]
    buffers, old, seen = list(map(id, model.buffers())), x.detach().clone(), streams()
    pc = pccompile.compile(model, (x,), algorithm=algorithm)
    assert pc.checked.gradients == 6
    assert seen == streams()
    assert torch.equal(x, old)
    assert x.grad is None
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(
        p.grad is grads[k][0] and torch.equal(p.grad, grads[k][1]) for k, p in model.named_parameters() if k in grads
    )
    assert flags == {k: p.requires_grad for k, p in model.named_parameters()}
    assert modes == [m.training for m in model.modules()]
    assert versions == [t._version for t in (*model.parameters(), *model.buffers(), x)]
    assert buffers == list(map(id, model.buffers()))


def test_a_trial_run_leaves_no_trace() -> None:
    model, x = Remembering(), torch.randn(2, 4)
    log, queue, box, table, state = model.log, model.queue, model.box, model.table, model.state
    names, seen = set(vars(model)), streams()
    with untouched(model):
        model(x)
        assert model.calls == 1
        assert model.view[0] == 1, "a view of a buffer still is one"
    assert (model.calls, model.log, model.last) == (0, [], None)
    assert model.log is log
    assert model.state is state
    assert (list(queue), box.n, table["n"], state.tolist()) == ([], 0, 0, [0.0] * 4)
    assert names == set(vars(model))
    assert seen == streams()
    model(x)
    assert model.view[0] == 1


def test_a_trial_run_that_fails_leaves_no_trace() -> None:
    model, seen = Remembering(), streams()
    model.log.append(7)

    def fails() -> None:
        with untouched(model):
            model.log.append(8)
            model(torch.randn(2, 7))

    with pytest.raises(RuntimeError):
        fails()
    assert model.log == [7]
    assert model.calls == 0
    assert model.state.tolist() == [0.0] * 4
    assert seen == streams()


def test_tied_copies_stay_tied() -> None:
    base, copies = torch.zeros(6), Copies()
    a, b = copies.tensor(base), copies.tensor(base[2:])
    a.fill_(1)
    assert b.tolist() == [1.0] * 4
    assert base.tolist() == [0.0] * 6
    assert copies.value([base, {"x": base}])[1]["x"] is a


def test_hooks_do_not_run_once_more() -> None:
    model, x, seen = seeded(mlp, torch.float32), torch.randn(5, 4), []
    model[0].weight.register_hook(lambda g: seen.append("gradient") or g * 2)
    model[0].weight.register_post_accumulate_grad_hook(lambda p: seen.append("accumulated"))
    pc = pccompile.compile(model, (x,))
    assert pc.checked.gradients == 6
    assert seen == []
    pc(x).sum().backward()
    assert sorted(seen) == ["accumulated", "gradient"]


def both(build: Callable[[], nn.Module], *x: Tensor, **how: Any) -> Any:
    """The record of a check that compared."""
    pc = pccompile.compile(seeded(build, None) if how.pop("cast", False) else build(), x, **how)
    assert pc.checked is not None
    assert pc.checked.outputs
    return pc.checked


class Function(nn.Module):
    """A layer and then a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.spare, self.function = nn.Linear(4, 4), nn.Linear(4, 4), function

    def forward(self, *x: Tensor) -> Any:
        return self.function(self.fc, *x)


def detached(fc: nn.Module, x: Tensor) -> Any:
    y = fc(x)
    return y, y.detach().exp()


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "complex": lambda fc, x: torch.fft.fft(fc(x)),
    "integers beside": lambda fc, x: (fc(x), fc(x).argmax(-1)),
    "an input as output": lambda fc, x: (fc(x), x),
    "a detached output": detached,
    "not a number": lambda fc, x: fc(x).sub(9).log(),
    "infinite": lambda fc, x: fc(x) / 0.0,
    "relu at zero": lambda fc, x: F.relu(fc(x) * 0),
    "ties": lambda fc, x: F.max_pool1d(F.relu(fc(x)).round()[None], 2),
    "random draws": lambda fc, x: fc(x) * torch.rand_like(x) + torch.randn(4) + F.dropout(x, 0.5),
    "draws that are not used": lambda fc, x: (torch.rand(7), fc(x) * torch.rand(4))[1],
    "a dictionary": lambda fc, x: {"a": fc(x), "n": 3, "none": None},
    "twice the same": lambda fc, x: (y := fc(x), y),
    "few samples": lambda fc, x: F.batch_norm(fc(x[:2]), None, None, training=True),
    "cancelling": lambda fc, x: (fc(x) * 1e4).softmax(-1) - (fc(x) * 1e4).softmax(-1).round(),
    "no gradient at all": lambda fc, x: fc(x).round(),
    "a scalar": lambda fc, x: fc(x).square().mean(),
    "written input": lambda fc, x: fc(x.mul_(2)),
    "data-dependent length": lambda fc, x: fc(x)[fc(x) > 0].sum(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("wanted", [False, True], ids=["", "input"])
def test_nothing_is_alarmed_in_vain(name: str, wanted: bool) -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    if wanted and name != "written input":
        x = x.requires_grad_()
    checked = both(lambda: Function(FUNCTIONS[name]), x)
    assert checked.gradients == 4 + (wanted and name != "written input")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("build", [Residual, mlp, Busy])
def test_each_precision_is_judged_by_what_it_holds(build: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    model = seeded(build, torch.float32).to(dtype)
    assert pccompile.compile(model, (torch.randn(6, 4, dtype=dtype),)).checked.outputs == 1


def test_autocast_is_judged_by_its_precision() -> None:
    model, x = seeded(mlp, torch.float32), torch.randn(6, 4)
    with torch.autocast("cpu", torch.bfloat16):
        pc = pccompile.compile(model, (x,))
        assert pc(x).dtype == torch.bfloat16
    assert pc.checked.outputs == 1


def test_frozen_models_are_checked_as_if_they_learned() -> None:
    model = seeded(mlp, torch.float32).requires_grad_(False)
    assert pccompile.compile(model, (torch.randn(6, 4),)).checked.gradients == 6
    assert not any(p.requires_grad for p in model.parameters())


def test_each_new_form_is_checked() -> None:
    model, x = seeded(Busy, torch.float32), torch.randn(6, 4)
    pc = pccompile.compile(model, (x,))
    records = [pc.checked]
    pc.eval()(x)
    records.append(pc.checked)
    pc.train()(x.double().float().requires_grad_())
    records.append(pc.checked)
    assert [r.gradients for r in records] == [6, 6, 7]
    assert len({id(r) for r in records}) == 3


def test_gradients_of_zero_are_named() -> None:
    model = seeded(mlp, torch.float32)
    with torch.no_grad():
        model[4].weight.zero_()
    pc = pccompile.compile(model, (torch.randn(6, 4),))
    assert pc.checked.zero == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert "gradients of 0 on the example tell little: 0.weight" in str(pc.summary())


def test_what_would_take_too_much_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "BUDGET", 100)
    pc = pccompile.compile(seeded(mlp, torch.float32), (torch.randn(6, 4),))
    assert pc.checked.outputs == 0
    assert pc.notes == ("not compared with eager torch: a second set of gradients takes 0.0 GiB, more than 0",)
    assert "not compared" in str(pc.summary())


class Unwilling(Residual):
    """Runs only where it is captured."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting():
            raise ValueError("not today")
        return super().forward(x)


def test_a_model_that_does_not_run_is_said() -> None:
    pc = pccompile.compile(seeded(Unwilling, torch.float32), (torch.randn(6, 4),))
    assert pc.notes == ("not compared with eager torch: it does not run there (not today)",)


def test_pieces_of_a_program_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[Any] = []
    original = checking.self_check
    monkeypatch.setattr("pccompile.runtime.module.self_check", lambda *a: records.append(original(*a)) or records[-1])
    torch._dynamo.reset()
    model, x = seeded(mlp, torch.float32), torch.randn(6, 4)

    @torch.compile(backend="pccompile")
    def program(x: Tensor) -> Tensor:
        h = model[1](model[0](x))
        torch._dynamo.graph_break()
        return model[4](model[3](model[2](h)))

    program(x).sum().backward()
    torch._dynamo.reset()
    assert [r.outputs for r in records] == [1, 1]
    assert all(r.gradients >= 2 for r in records)


def test_a_copy_keeps_the_check() -> None:
    pc = copy.deepcopy(pccompile.compile(seeded(mlp, torch.float32), (torch.randn(6, 4),)))
    pc(torch.randn(6, 4))
    assert pc.checked.gradients == 6


def test_a_loss_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    pc = pccompile.compile(seeded(mlp, torch.float32), (x,), loss=F.cross_entropy)
    pc.loss(x, target=y).backward()
    assert pc.checked.gradients == 6
    compiled = pccompile.runtime.module.compile_loss
    halved = lambda o, t: 0.5 * F.cross_entropy(o, t)  # noqa: E731
    monkeypatch.setattr("pccompile.runtime.module.compile_loss", lambda loss, *a: compiled(halved, *a))
    pc = pccompile.compile(seeded(mlp, torch.float32), (x,), loss=F.cross_entropy)
    with pytest.raises(pccompile.CompileError, match="the loss, the error of output 0 differ from eager torch"):
        pc.loss(x, target=y)


def test_a_model_that_runs_otherwise_while_it_is_captured_is_told_apart_from_a_wrong_program() -> None:
    class TwoFaced(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y * 2 if torch.compiler.is_compiling() else y

    with pytest.raises(pccompile.CompileError, match="so does what was captured of it") as refused:
        pccompile.compile(TwoFaced(3, 3), (torch.ones(2, 3),))
    assert "is_compiling" in str(refused.value)


def test_an_output_of_another_type_is_a_difference() -> None:
    class OfTwoTypes(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y.double() if torch.compiler.is_compiling() else y

    with pytest.raises(pccompile.CompileError, match="output 0 is float64 for float32"):
        pccompile.compile(OfTwoTypes(3, 3), (torch.ones(2, 3),))
