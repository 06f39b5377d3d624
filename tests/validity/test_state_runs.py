"""How models with states are used: resets, pieces of a sequence, copies, losses, other algorithms, other roads."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pccompile
from pccompile import PCModule
from validity.cells import (
    CELLS,
    ROWS,
    WIDTH,
    Cache,
    Counting,
    Gru,
    InTraining,
    Kept,
    LatePlain,
    Lif,
    Lstm,
    Means,
    Plain,
    PlainWritten,
    Rebound,
    Spiking,
    Teacher,
    Warming,
    Written,
    agree,
    data,
    detached,
    flat,
    pair,
    states,
)

Make = Callable[[], nn.Module]


def _programs(pc: PCModule) -> int:
    return sum(len(t.programs) for t in pc._cache.captures)


def test_a_reset_by_the_user_goes_back_to_the_first_program() -> None:
    eager, pc = pair(Lif)
    counts = []
    for _ in range(3):
        for model, call in ((eager, eager), (pc.model, pc)):
            model.reset()
            sum(call(x).sum() for x in data(3)).backward()
        counts.append(_programs(pc))
    agree(pc.model, eager)
    assert counts[0] == counts[-1]


def test_the_graph_may_be_kept() -> None:
    eager, pc = pair(Plain)
    for call in (eager, pc):
        total: Any = 0
        for x in data(3):
            total = total + call(x).square().sum()
            total.backward(retain_graph=True)
    agree(pc.model, eager)


def test_a_loss_over_the_state_itself() -> None:
    eager, pc = pair(Means)
    for model, call in ((eager, eager), (pc.model, pc)):
        y = [call(x) for x in data(2)]
        (y[0].sum() + model.d.square().sum()).backward()
    agree(pc.model, eager)


def test_calls_without_gradients_move_the_state() -> None:
    eager, pc = pair(Spiking)
    for call in (eager, pc):
        xs = data(4)
        with torch.no_grad():
            call(xs[0])
        first = call(xs[1])
        with torch.no_grad():
            call(xs[2])
        (first.sum() + call(xs[3]).sum()).backward()
    agree(pc.model, eager)


def test_detaching_in_place() -> None:
    eager, pc = pair(Plain)
    for model, call in ((eager, eager), (pc.model, pc)):
        for x in data(3):
            call(x).sum().backward()
            model.h.detach_()
    agree(pc.model, eager)


def test_a_gradient_for_the_first_state() -> None:
    eager, pc = pair(Gru)
    first = torch.randn(ROWS, WIDTH, dtype=torch.float64)
    found = []
    for model, call in ((eager, eager), (pc.model, pc)):
        start = first.clone().requires_grad_()
        model.inner.h = start * 1
        sum(call(x).square().sum() for x in data(3)).backward()
        found.append(start.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-10)
    agree(pc.model, eager)


def test_training_steps_between_calls() -> None:
    eager, pc = pair(Lstm)
    for model, call in ((eager, eager), (pc.model, pc)):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for x in data(4):
            optimizer.zero_grad()
            call(x).square().sum().backward()
            optimizer.step()
            detached(model)
    for p, q in zip(pc.model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)


def test_a_parameter_that_is_stepped_between_forward_and_backward_is_noticed() -> None:
    _, pc = pair(Plain)
    loss = sum(pc(x).sum() for x in data(2))
    with torch.no_grad():
        pc.model.u.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_an_earlier_call_read_is_not_what_a_later_one_wrote() -> None:
    eager, pc = pair(Teacher)
    for call in (eager, pc):
        sum(call(x).sum() for x in data(3)).backward()
    agree(pc.model, eager)


def test_states_that_the_user_collects_are_tensors_of_their_own() -> None:
    eager, pc = pair(Rebound)
    found = []
    for model, call in ((eager, eager), (pc.model, pc)):
        kept = []
        for x in data(3):
            before = model.h
            y = call(x)
            assert model.h is y
            assert model.h is not before
            kept.append(model.h.detach())
        found.append(torch.stack(kept))
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


def test_a_buffer_that_is_written_in_place_stays_the_same_tensor() -> None:
    class Shown(Written):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            return self.h

    eager, pc = pair(Shown)
    for model, call in ((eager, eager), (pc.model, pc)):
        h = model.h
        y = call(data(1)[0])
        assert model.h is h
        y.square().sum().backward()
    agree(pc.model, eager)
    earlier = [call(data(1)[0]) for call in (eager, pc)]
    later = [call(data(2)[1]) for call in (eager, pc)]
    for a, b in (*zip(earlier, later, strict=True), earlier, later):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_list_that_forward_appends_to_stays_the_same_list() -> None:
    _, pc = pair(Cache)
    keys = pc.model.keys
    pc(data(1)[0])
    pc(data(1)[0])
    assert pc.model.keys is keys
    assert len(keys) == 2


def test_the_state_moves_in_the_mode_that_moves_it() -> None:
    eager, pc = pair(InTraining)
    for model, call in ((eager, eager), (pc, pc)):
        outputs = []
        for i, x in enumerate(data(4)):
            model.train(i % 2 == 0)
            outputs.append(call(x))
        sum(o.square().sum() for o in outputs).backward()
    agree(pc.model, eager)


def test_counting_compiles_once_and_counts() -> None:
    eager, pc = pair(Counting)
    for call in (eager, pc):
        for x in data(5):
            call(x).sum().backward()
    agree(pc.model, eager)
    assert pc.model.calls == 5
    assert len(pc._cache.captures) == 1


def test_a_number_that_decides_is_followed() -> None:
    eager, pc = pair(Warming)
    for call in (eager, pc):
        for x in data(6):
            call(x).sum().backward()
    agree(pc.model, eager)
    assert pc.model.step == 3
    assert len(pc._cache.captures) == 4


def test_what_is_only_written_does_not_fix_the_batch() -> None:
    _, pc = pair(Kept)
    for rows in (4, 7, 2):
        x = torch.randn(rows, WIDTH, dtype=torch.float64)
        pc(x)
        assert pc.model.shown.shape == (rows, WIDTH)
        assert pc.model.size == rows
    assert len(pc._cache.captures) == 1


def test_another_batch_after_a_reset_compiles_anew() -> None:
    eager, pc = pair(LatePlain)
    for model, call in ((eager, eager), (pc.model, pc)):
        for rows in (4, 6):
            model.h = None
            sum(call(x).sum() for x in torch.randn(2, rows, WIDTH, dtype=torch.float64) * 0 + 1).backward()
    agree(pc.model, eager)


@pytest.mark.parametrize("frozen", ["w", "u"])
def test_frozen_weights(frozen: str) -> None:
    eager, pc = pair(Plain)
    for model, call in ((eager, eager), (pc.model, pc)):
        getattr(model, frozen).requires_grad_(False)
        sum(call(x).square().sum() for x in data(3)).backward()
    agree(pc.model, eager)


def test_an_unread_state_needs_no_gradient() -> None:
    """A parameter that leads to a state and to no result has a gradient only where the state is used."""

    class Side(Plain):
        def forward(self, x: Tensor) -> Tensor:
            self.h = self.u(x)
            return self.w(x)

    eager, pc = pair(Side)
    for call in (eager, pc):
        call(data(1)[0]).sum().backward(retain_graph=True)
    assert pc.model.u.weight.grad is None
    agree(pc.model, eager)
    for model in (eager, pc.model):
        model.h.sum().backward()
    agree(pc.model, eager)


@pytest.mark.parametrize("make", [Plain, Written, Spiking, Means])
def test_float32(make: Make) -> None:
    eager, pc = pair(make, torch.float32)
    for call in (eager, pc):
        sum(call(x).square().sum() for x in data(3, torch.float32)).backward()
    agree(pc.model, eager, 1e-5)


@pytest.mark.parametrize("make", [Plain, Written, Lstm, Spiking])
def test_a_loss_that_is_compiled_in(make: Make) -> None:
    eager, pc = pair(make, loss=lambda output, target: (output - target).square().mean())
    target = torch.ones((), dtype=torch.float64)
    total = sum((eager(x) - target).square().mean() * (i + 1) for i, x in enumerate(data(3)))
    total.backward()
    sum(pc.loss(x, target=target.expand_as(eager(x).detach())) * (i + 1) for i, x in enumerate(data(3))).backward()
    for p, q in zip(pc.model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [Plain, Written])
def test_fixed_prediction_through_time(make: Make) -> None:
    eager, pc = pair(make, algorithm="fixed-prediction", steps=300)
    for call in (eager, pc):
        sum(call(x).square().sum() for x in data(3)).backward()
    agree(pc.model, eager, 1e-7)


@pytest.mark.parametrize("make", [Plain, Rebound, Written, Spiking])
def test_strict_refuses_a_gradient_through_states(make: Make) -> None:
    with pytest.raises(pccompile.CompileError, match=r"the state (h|layers\.0\.mem|layers\.1\.mem|trace)"):
        pair(make, algorithm="strict")


def test_strict_takes_a_state_that_is_detached() -> None:
    class Cut(Plain):
        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.w(x) + self.u(self.h))
            self.h = h.detach()
            return h * 2

    eager, pc = pair(Cut, algorithm="strict")
    for x in data(2):
        eager(x)
        pc.loss(x, target=torch.zeros(ROWS, WIDTH, dtype=torch.float64)).backward()
    torch.testing.assert_close(pc.model.h, eager.h, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [Rebound, PlainWritten, Spiking, Cache])
def test_a_copy_has_a_state_of_its_own(make: Make) -> None:
    _, pc = pair(make)
    twin = copy.deepcopy(pc)
    pc(data(1)[0])
    stream = io.BytesIO()
    torch.save(copy.deepcopy(twin), stream)
    for x in data(2):
        a = twin(x)
    other = pair(make)[0]
    for x in data(2):
        b = other(x)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", CELLS)
def test_compiling_leaves_the_model_as_it_was(make: Make) -> None:
    torch.manual_seed(0)
    model = make()
    before = {p: (dict(m.__dict__), dict(m._buffers), dict(m._parameters)) for p, m in model.named_modules()}
    tensors = [t for t in flat(states(model)) if isinstance(t, Tensor)]
    values = [t.clone() for t in tensors]
    pccompile.compile(model, torch.ones(ROWS, WIDTH))
    for path, module in model.named_modules():
        tables = (module.__dict__, module._buffers, module._parameters)
        for now, then in zip(tables, before[path], strict=True):
            assert list(now) == list(then)
            assert all(now[k] is v for k, v in then.items() if not k.startswith("_flat_weight"))  # torch renews these
    after = [t for t in flat(states(model)) if isinstance(t, Tensor)]
    assert len(after) == len(tensors)
    for t, value in zip(after, values, strict=True):
        assert torch.equal(t, value)
        assert not t.requires_grad
        assert type(t) is Tensor


@pytest.mark.parametrize("make", [Rebound, Plain, Written, Lif, Spiking, Means, Cache, Counting])
def test_reports_do_not_move_the_state(make: Make) -> None:
    eager, pc = pair(make)
    x = data(1)[0]
    for call in (eager, pc):
        call(x)
    assert pccompile.verify(pc, (x,)).passed
    pc.infer((x,), target=torch.zeros_like(eager(x).detach()))
    pc.summary()
    pc.explain()
    for call in (eager, pc):
        call(x)
    eager_again, _ = pair(make)
    eager_again(x)
    eager_again(x)
    for a, b in zip(flat(states(pc.model)), flat(states(eager_again)), strict=True):
        if isinstance(b, Tensor):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        else:
            assert a == b


@pytest.mark.parametrize("make", [Rebound, Plain, Written, PlainWritten, Lstm, Teacher])
def test_the_file_alone_keeps_the_state_in_its_buffers(make: Make) -> None:
    """`predict` moves the state on in `buffers`, `step` gives the gradients of one call."""
    eager, pc = pair(make)
    scope: dict[str, Any] = {}
    params = {k: v.detach() for k, v in pc.model.named_parameters()}
    exec(pc.source, scope)
    _, buffers = pc.tables(pc._last)
    buffers = {k: b.clone() for k, b in buffers.items()}
    for x in data(3):
        detached(eager)
        y = eager(x)
        target = torch.zeros_like(y)
        eager.zero_grad()
        (0.5 * y.square().sum()).backward()
        loss, gradients = scope["step"](params, buffers, {"x": x}, [target])
        torch.testing.assert_close(loss, 0.5 * y.detach().square().sum(), rtol=1e-12, atol=1e-12)
        for name, p in eager.named_parameters():
            torch.testing.assert_close(gradients[name], p.grad, rtol=1e-10, atol=1e-10)


ACTIONS = ("call", "call", "call", "quiet", "backward", "detach", "reset")


@pytest.fixture(scope="module")
def followed() -> dict[Make, tuple[nn.Module, PCModule, list[Any]]]:
    made = {}
    for make in (Plain, Written, Lstm, Lif):
        eager, pc = pair(make)
        made[make] = eager, pc, [copy.deepcopy(m.__dict__) for m in eager.modules()]
    return made


@settings(max_examples=12, deadline=None, derandomize=True)
@given(actions=st.lists(st.sampled_from(ACTIONS), min_size=3, max_size=9), which=st.integers(0, 3))
def test_any_sequence_of_actions(
    followed: dict[Make, tuple[nn.Module, PCModule, list[Any]]], actions: list[str], which: int
) -> None:
    """Whatever is done between calls, gradients and states are eager's; where eager raises, so does ours."""
    eager, pc, first = list(followed.values())[which]
    results = []
    for model, call in ((eager, eager), (pc.model, pc)):
        _restart(model, first)
        model.zero_grad()
        results.append(_act(model, call, actions, first))
    assert results[0] == results[1]
    agree(pc.model, eager, 1e-9)


def _restart(model: nn.Module, first: list[Any]) -> None:
    for module, attributes in zip(model.modules(), first, strict=True):
        for name, value in attributes.items():
            if not name.startswith("_") and name != "training":
                module.__dict__[name] = copy.deepcopy(value)
        for name, value in attributes["_buffers"].items():
            module._buffers[name] = copy.deepcopy(value)


def _act(model: nn.Module, call: Any, actions: list[str], first: list[Any]) -> list[str]:
    total, raised = [], []
    for action, x in zip(actions, data(len(actions)), strict=True):
        if action == "call":
            total.append(call(x).square().sum())
        elif action == "quiet":
            with torch.no_grad():
                call(x)
        elif action == "detach":
            detached(model)
        elif action == "reset":
            _restart(model, first)
        elif total and any(t.requires_grad for t in total):
            try:
                sum(total).backward()
            except RuntimeError as e:
                raised.append(str(e)[:40])
            total = []
            detached(model)
    return raised
