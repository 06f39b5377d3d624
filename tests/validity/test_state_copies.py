"""What leaves a state where it is: copies, compilation, reports, and the generated file alone."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pccompile
from validity.cells import (
    CELLS,
    ROWS,
    WIDTH,
    Cache,
    Counting,
    Lif,
    Lstm,
    Means,
    Plain,
    PlainWritten,
    Rebound,
    Spiking,
    Teacher,
    Written,
)
from validity.states import data, detached, flat, pair, states

Make = Callable[[], nn.Module]


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


@pytest.mark.quick(13)
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
