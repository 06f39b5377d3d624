"""Programs that torch.export cannot capture whole are compiled in pieces, and learn as eager torch does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.cases import built, drawn
from helpers.models import distance
from torch import Tensor, nn
from torch.nn.functional import linear
from torch_compile.test_backend_zoo import step

import pccompile
from gradients.test_zoo import ALL
from pccompile import CompileError
from pccompile.api.pieces import PiecewiseModule

pytestmark = pytest.mark.usefixtures("fresh_dynamo", "silent_logs")


class Net(nn.Module):
    """Layers, and what Python does with them."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.norm, self.seen = nn.BatchNorm1d(4), list[float]()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def branch(m: Any, x: Tensor) -> Tensor:
    h = m.norm(m.first(x)).tanh()
    h = m.second(h).relu() if h[0].sum() > 0 else h * 2
    return m.last(h)  # type: ignore[no-any-return]


def expert_by_row(m: Any, x: Tensor) -> Tensor:
    h = m.first(x).tanh()
    for n in h.argmax(-1).tolist():
        h = h + m.experts[n % 3](h) * 0.1
    return m.last(h)  # type: ignore[no-any-return]


def order_of_numpy(m: Any, x: Tensor) -> Tensor:
    h = m.first(x).tanh()
    order = np.argsort(h.detach().numpy().sum(-1)).copy()
    return m.last(h[torch.from_numpy(order)].cumsum(0))  # type: ignore[no-any-return]


def chosen_by_name(m: Any, x: Tensor) -> Tensor:
    h = m.first(x)
    table = {True: m.experts[0], False: m.experts[1]}
    return m.last(table[bool(h.abs().max() > 1.5)](h).sin())  # type: ignore[no-any-return]


def rounds_without_gradient(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        rounds = int(m.first(x).abs().sum()) % 3 + 1
    h = m.first(x)
    for _ in range(rounds):
        h = m.second(h).tanh()
    return m.last(h)  # type: ignore[no-any-return]


def noted(m: Any, x: Tensor) -> Tensor:
    h = m.first(x)
    m.seen.append(float(h.mean()))
    return m.last(h.tanh())  # type: ignore[no-any-return]


def rows_by_number(m: Any, x: Tensor) -> Tensor:
    h = m.first(x)
    rows = int(h[0].argmax()) + 1
    return m.last(h[:rows].tanh())  # type: ignore[no-any-return]


PROGRAMS = (rows_by_number, branch, expert_by_row, order_of_numpy, chosen_by_name, rounds_without_gradient, noted)


def _step(called: Any, net: nn.Module, x: Tensor) -> list[Tensor | None]:
    net.zero_grad()
    y = called(x)
    y.sin().sum().backward()
    return [y.detach(), *(None if p.grad is None else p.grad.clone() for p in net.parameters())]


@pytest.mark.quick(3)
@pytest.mark.parametrize("run", PROGRAMS)
def test_each_path_learns_as_in_eager_torch(run: Any) -> None:
    torch.manual_seed(0)
    net, x = Net(run).double(), torch.randn(4, 3, dtype=torch.float64)
    plain = copy.deepcopy(net)
    pc = pccompile.compile(net, x, algorithm="zil" if run is expert_by_row else "exact")
    assert isinstance(pc, PiecewiseModule)
    assert isinstance(pc, pccompile.PCModule)
    assert pc.checked is not None
    assert pc.checked.gradients == len(list(net.parameters()))
    assert net.seen == plain.seen
    assert not any(p.grad is not None for p in net.parameters())
    torch.testing.assert_close(net.norm.running_mean, plain.norm.running_mean)
    for scale in (1.0, -2.0, 5.0):
        for found, expected in zip(_step(pc, net, scale * x), _step(plain, plain, scale * x), strict=True):
            assert (found is None) == (expected is None)
            if found is not None:
                torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(net.norm.running_var, plain.norm.running_var)
    assert len(net.seen) == len(plain.seen)


@pytest.mark.parametrize("name", ["data_dependent_if", "data_dependent_while"])
def test_a_program_that_export_refuses_learns_in_pieces(name: str) -> None:
    case = ALL[name]
    assert case.refused
    inputs, _ = drawn(case, torch.float64)
    net, plain = built(case.build, torch.float64), built(case.build, torch.float64)
    pc = pccompile.compile(net, inputs)
    assert pc.pieces  # type: ignore[attr-defined]
    assert distance(step(case, pc, net), step(case, plain, plain), floor=1e-3) < 1e-9


def test_what_is_asked_of_a_model_in_pieces(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Net(branch), torch.randn(4, 3)
    pc = pccompile.compile(net, x)
    pieces = len(pc.pieces)  # type: ignore[attr-defined]
    assert pieces > 1
    assert f"piece {pieces} of {pieces}" in str(pc.summary())
    assert "piece 1 of" in str(pc.explain())
    report = pccompile.verify(pc, x)
    assert report.passed
    assert len(report.parameters) == len(list(net.parameters()))
    twin = copy.deepcopy(pc)
    optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in (pc, twin)]
    before = pc.train_step(x, torch.zeros(4, 2), optimizers[0])
    value = twin.loss(x, target=torch.zeros(4, 2))
    value.backward()
    optimizers[1].step()
    torch.testing.assert_close(before, value.detach())
    for a, b in zip(pc.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    paths = pc.save_pieces(tmp_path, "net")  # type: ignore[attr-defined]
    assert [p.name for p in paths[:2]] == ["net_1_pc.py", "net_1_pc.safetensors"]
    assert len(paths) == 2 * pieces
    assert "def infer_and_learn" in paths[0].read_text()
    (tmp_path / "own_1_pc.py").write_text("mine")
    with pytest.raises(CompileError, match=r"own_1_pc\.py"):
        pc.save_pieces(tmp_path, "own")  # type: ignore[attr-defined]
    assert not (tmp_path / "own_2_pc.py").exists()
    for ask in (lambda: pc.infer((x,)), lambda: pc.source, lambda: pc.cost(), lambda: pc.explain("nothing")):
        with pytest.raises(CompileError, match="Net is compiled in pieces, and"):
            ask()


def test_each_way_to_capture_is_asked_for_by_name() -> None:
    net, x = Net(branch), torch.randn(4, 3)
    with pytest.raises(CompileError, match="cannot capture Net"):
        pccompile.compile(net, x, capture="export")
    with pytest.raises(CompileError, match="unknown capture whole"):
        pccompile.compile(net, x, capture="whole")  # type: ignore[call-overload]
    for options in ({"algorithm": "strict"}, {"algorithm": "fixed-prediction"}, {"feedback": "random"}):
        with pytest.raises(CompileError, match="not compiled in pieces, since"):
            pccompile.compile(net, x, capture="pieces", **options)
    for options, words in (
        ({"energies": "laplace"}, "knows no energy"),
        ({"precision": 2.0}, "knows no energy"),
        ({"granularity": "nonsense"}, "unknown granularity"),
        ({"steps": 3}, "has no setting steps"),
    ):
        with pytest.raises(CompileError, match=rf"in pieces: .*{words}[\s\S]*along a path: .*{words}"):
            pccompile.compile(net, x, **options)
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    assert isinstance(pccompile.compile(plain, x, capture="pieces"), PiecewiseModule)
    assert not isinstance(pccompile.compile(plain, x), PiecewiseModule)


def in_a_loop(m: Any, x: Tensor) -> Tensor:
    h = linear(x, m.first.weight)
    for layer in m.experts:
        h = linear(h, layer.weight).tanh()
        if h.abs().max() > 0.9:
            break
    return linear(h, m.last.weight)


def after_a_piece(m: Any, x: Tensor) -> Tensor:
    h = m.first(x).tanh()
    print(end="")
    while h.norm() > 1e-3 and h.sum() < 0:
        h = linear(h, m.second.weight).abs()
    return linear(h, m.last.weight)


def test_what_dynamo_leaves_to_eager_torch_is_said() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3)
    with pytest.raises(CompileError, match="in pieces there is no program that learns") as raised:
        pccompile.compile(Net(in_a_loop), x, capture="pieces")
    assert "function or module of your own in it is a piece" in str(raised.value)
    with pytest.warns(UserWarning, match=r"autograd itself has the gradients of second.weight.*last.weight"):
        pc = pccompile.compile(Net(after_a_piece), x, capture="pieces")
    assert any("autograd itself" in note for note in pc.notes)


def test_what_is_left_to_eager_torch_is_said_at_the_call_that_finds_it() -> None:
    """The example of a model with hooks is not run when it is compiled."""
    torch.manual_seed(0)
    net = Net(in_a_loop)
    net.register_forward_hook(lambda *_: None)
    pc = pccompile.compile(net, torch.randn(4, 3))
    assert not pc.pieces  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="autograd itself has the gradients of first.weight"):
        pc(torch.randn(4, 3))


def test_a_model_that_fails_by_itself_is_told_its_own_error() -> None:
    with pytest.raises(CompileError) as raised:
        pccompile.compile(Net(branch), torch.randn(4, 5))
    assert "is compiled in pieces" not in str(raised.value)
    assert "must have same reduction dim" in str(raised.value)
