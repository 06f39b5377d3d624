"""What forward may not write is refused by name; arguments and the rest are written as in eager torch."""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pccompile
from pccompile import CompileError
from validity.cells import ROWS, WIDTH, Lif, Means, Plain, Rebound, Written
from validity.states import agree, data, pair

OUTSIDE = torch.zeros(WIDTH)


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)


class _Store:
    def __init__(self) -> None:
        self.value: Any = None


class _InObject(_Net):
    def __init__(self) -> None:
        super().__init__()
        self.store = _Store()

    def forward(self, x: Tensor) -> Tensor:
        self.store.value = self.fc(x)
        return self.store.value


class _InSet(_Net):
    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[Any] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.add(x.dim())
        return self.fc(x)


class _AnObject(_Net):
    def __init__(self) -> None:
        super().__init__()
        self.kept: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.kept = _Store()
        return self.fc(x)


class _Global(_Net):
    def forward(self, x: Tensor) -> Tensor:
        OUTSIDE.add_(1)
        return self.fc(x) + OUTSIDE


class _NewParameter(_Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        self.fc.bias = nn.Parameter(torch.zeros(WIDTH))
        return y


class _View(_Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(2, WIDTH))
        self.row = self.bank[0]

    def forward(self, x: Tensor) -> Tensor:
        self.bank.add_(1)
        return self.fc(x) + self.row


REFUSED = (
    (_InObject, r"forward changes store\.value, an attribute of a _Store"),
    (_InSet, r"forward changes the set shapes"),
    (_AnObject, r"forward writes kept, which becomes a _Store"),
    (_Global, r"a tensor that no module holds"),
    (_NewParameter, r"forward replaces the parameter fc\.bias"),
    (_View, r"bank is changed in place and shares memory with row"),
)


@pytest.mark.parametrize(("make", "words"), REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(make: Callable[[], nn.Module], words: str) -> None:
    model = make()
    before = {k: (id(v), copy.copy(v)) for k, v in model.__dict__.items() if not k.startswith("_")}
    with pytest.raises(CompileError, match=words):
        pccompile.compile(model, torch.ones(ROWS, WIDTH))
    assert {k: id(v) for k, v in model.__dict__.items() if not k.startswith("_")} == {
        k: i for k, (i, _) in before.items()
    }
    if isinstance(model, _InObject):
        assert model.store.value is None
    if isinstance(model, _InSet):
        assert model.shapes == set()
    assert not OUTSIDE.requires_grad


@pytest.mark.parametrize("make", [Rebound, Plain, Written, Lif, Means])
def test_a_circuit_refuses_states(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    with pytest.raises(CompileError, match=r"forward writes the state (h|mem|[a-e]), which a circuit does not keep"):
        pccompile.compile(make(), torch.ones(ROWS, WIDTH), backend="netlist")


def test_a_loss_that_keeps_a_state_is_refused() -> None:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros((), dtype=torch.float64))

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            loss = (output - target).square().mean()
            self.mean = 0.9 * self.mean + 0.1 * loss.detach()
            return loss / (self.mean + 1)

    _, pc = pair(Plain, loss=Loss())
    with pytest.raises(CompileError, match="the loss keeps a state"):
        pc.loss(data(1)[0], target=data(1)[0])


class _Doubling(_Net):
    """Its argument is changed before and after it is read."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x.mul_(2)
        y = self.fc(x.clone()) * x.clone()
        x[:, 0] = y.detach()[:, 0]
        return y, x


def test_an_argument_that_is_changed_in_place() -> None:
    eager, pc = pair(_Doubling)
    found = []
    for call in (eager, pc):
        x = data(1)[0].clone()
        y, same = call(x)
        assert same is x
        y.square().sum().backward()
        found.append(x)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], data(1)[0])
    agree(pc.model, eager)


def test_an_argument_with_a_history_that_is_changed_in_place() -> None:
    eager, pc = pair(_Doubling)
    found = []
    for call in (eager, pc):
        leaf = data(1)[0].clone().requires_grad_()
        x = leaf * 1
        y, same = call(x)
        (y.square().sum() + same.square().sum() + x.sum()).backward()
        found.append(leaf.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-10)
    agree(pc.model, eager)


def test_a_leaf_that_is_changed_in_place_raises_as_in_eager() -> None:
    eager, pc = pair(_Doubling)
    for call in (eager, pc):
        with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
            call(data(1)[0].clone().requires_grad_())


class _Bank(_Net):
    """A bank that is read, then written."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bank", torch.randn(ROWS, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x.clone()) * self.bank.clone()
        self.bank.add_(y.detach())
        return y


def test_the_buffer_itself_as_the_argument() -> None:
    eager, pc = pair(_Bank)
    for model, call in ((eager, eager), (pc.model, pc)):
        for _ in range(2):
            call(model.bank).square().sum().backward()
    agree(pc.model, eager)


@pytest.mark.parametrize("functional", [False, True])
def test_an_exported_program_moves_its_state(functional: bool) -> None:
    torch.manual_seed(0)
    model = _Bank().double()
    twin = copy.deepcopy(model)
    program = torch.export.export(model, (torch.ones(ROWS, WIDTH, dtype=torch.float64),))
    pc = pccompile.compile(program.run_decompositions({}) if functional else program)
    for call in (twin, pc):
        for x in data(3):
            call(x).square().sum().backward()
    for p, q in zip(pc.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(dict(pc.named_buffers())["bank"], twin.bank, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("functional", [False, True])
def test_an_exported_program_changes_its_argument(functional: bool) -> None:
    class Adding(_Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x.clone())
            x.add_(1)
            return y

    torch.manual_seed(0)
    model = Adding()
    program = torch.export.export(model, (torch.ones(ROWS, WIDTH),))
    pc = pccompile.compile(program.run_decompositions({}) if functional else program)
    x = torch.zeros(ROWS, WIDTH)
    pc(x).sum().backward()
    assert torch.equal(x, torch.ones(ROWS, WIDTH))
    assert all(not p.grad.any() for n, p in pc.named_parameters() if n.endswith("weight"))


def test_a_graph_module_moves_its_state() -> None:
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, path: str) -> bool:
            return isinstance(m, Plain) or super().is_leaf_module(m, path)

    torch.manual_seed(0)
    eager = nn.Sequential(Plain(), nn.Linear(WIDTH, 2)).double()
    eager[0].h = eager[0].h.double()
    twin = copy.deepcopy(eager)
    graph = torch.fx.GraphModule(twin, Tracer().trace(twin))
    pc = pccompile.compile(graph, torch.ones(ROWS, WIDTH, dtype=torch.float64))
    for call in (eager, pc):
        sum(call(x).square().sum() for x in data(3)).backward()
    ours, theirs = dict(graph.named_parameters()), dict(eager.named_parameters())
    for name, p in theirs.items():
        torch.testing.assert_close(ours[name].grad, p.grad, rtol=1e-10, atol=1e-10)


class _Logging(_Net):
    """A number that is read from a tensor is kept; the last few losses, too."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.recent = 0.0, collections.deque([0.0, 0.0], maxlen=2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        self.last = y.mean().item()
        return y


def test_a_number_that_is_read_from_a_tensor() -> None:
    eager, pc = pair(_Logging)
    for model, call in ((eager, eager), (pc.model, pc)):
        call(data(1)[0]).sum().backward()
        assert isinstance(model.last, float)
    assert pc.model.last == pytest.approx(eager.last, rel=1e-12)
    agree_last = pc.model.last
    pc(data(2)[1])
    assert pc.model.last != agree_last
    assert len(pc._cache.captures) == 1


class _Window(_Net):
    """The last two inputs, in a deque."""

    def __init__(self) -> None:
        super().__init__()
        self.window = collections.deque([torch.zeros(ROWS, WIDTH), torch.zeros(ROWS, WIDTH)], maxlen=2)

    def forward(self, x: Tensor) -> Tensor:
        self.window.append(self.fc(x))
        return self.window[0] * self.window[1].tanh()


def test_a_deque() -> None:
    torch.manual_seed(0)
    eager = _Window()
    pc = pccompile.compile(copy.deepcopy(eager), torch.ones(ROWS, WIDTH))
    for call in (eager, pc):
        sum(call(x).sum() for x in data(3, torch.float32)).backward()
    for p, q in zip(pc.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    assert pc.model.window.maxlen == 2


@pytest.mark.parametrize("registered", [True, False])
def test_a_tensor_that_learns_and_is_no_parameter(registered: bool) -> None:
    """A buffer or an attribute that requires a gradient has one, as in eager torch."""

    class Scaled(_Net):
        def __init__(self) -> None:
            super().__init__()
            scale = torch.ones(WIDTH, dtype=torch.float64).requires_grad_()
            self.register_buffer("scale", scale) if registered else setattr(self, "scale", scale)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) * self.scale

    torch.manual_seed(0)
    eager = Scaled().double()
    if not registered:
        eager.scale = torch.ones(WIDTH, dtype=torch.float64, requires_grad=True)
    twin = copy.deepcopy(eager)
    pc = pccompile.compile(twin, torch.ones(ROWS, WIDTH, dtype=torch.float64))
    for call in (eager, pc):
        call(data(1)[0]).square().sum().backward()
    torch.testing.assert_close(twin.scale.grad, eager.scale.grad, rtol=1e-12, atol=1e-12)
