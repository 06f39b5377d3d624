"""How models with states are used: resets, pieces of a sequence, copies, losses, other algorithms, other roads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pccompile
from pccompile import PCModule
from validity.cells import (
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
    Rebound,
    Spiking,
    Teacher,
    Warming,
    Written,
)
from validity.states import agree, data, detached, pair

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
