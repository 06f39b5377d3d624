"""Each way to capture a program: which one `compile` takes by itself, what it says of it, and why none is left."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from zoo.programs import EarlyExit, IfOnASum, Layers

import pccompile
from pccompile import CompileError
from pccompile.api.pieces import PiecewiseModule
from pccompile.api.ways import PathModule

pytestmark = pytest.mark.usefixtures("fresh_dynamo", "silent_logs")


def made(kind: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return kind().double(), torch.randn(5, 3, dtype=torch.float64)


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor | None]:
    model.zero_grad()
    loss.backward()
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


class Straight(Layers):
    """Without a decision."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).tanh())  # type: ignore[no-any-return]


@pytest.mark.slow
def test_the_first_way_with_all_gradients_is_taken_and_told() -> None:
    for kind, module, words in (
        (Straight, pccompile.PCModule, "vertices"),
        (IfOnASum, PiecewiseModule, "compiled in pieces"),
        (EarlyExit, PiecewiseModule, "compiled in pieces"),
        (Loop, PathModule, "each call runs forward once more to find the one"),
    ):
        model, x = made(kind)
        pc = pccompile.compile(model, x)
        assert type(pc) is module
        assert words in str(pc.summary())


def test_an_algorithm_that_needs_the_whole_graph_follows_the_path() -> None:
    model, x = made(IfOnASum)
    pc = pccompile.compile(model, x, algorithm="strict", loss=mse_loss, steps=5, rate=0.1)
    assert isinstance(pc, PathModule)
    twin = pccompile.compile(model, x, algorithm="strict", loss=mse_loss, steps=5, rate=0.1, capture="path")
    target = torch.ones(5, 2).double()
    for a, b in zip(*(gradients(m.loss(x, target=target), model) for m in (pc, twin)), strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)  # type: ignore[arg-type]


class Loop(Layers):
    """A parameter that no layer holds, in a loop that numbers decide: Dynamo leaves it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((4,), 0.9))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for _ in range(20):
            if h.norm() < 1.5:
                break
            h = h * self.scale
        return self.last(h)  # type: ignore[no-any-return]


class LoopOfNumbers(Loop):
    """Each number with a fraction is a path of its own."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for _ in range(3):
            if h.norm().item() > 0.1:
                h = h * self.scale
        return self.last(h)  # type: ignore[no-any-return]


def test_a_path_for_each_number_is_left_to_autograd_where_a_piece_is_there() -> None:
    model, x = made(LoopOfNumbers)
    with pytest.warns(UserWarning, match="autograd itself has the gradients of scale"):
        pc = pccompile.compile(model, x)
    assert isinstance(pc, PiecewiseModule)


@pytest.mark.slow
def test_layers_in_a_loop_are_pieces_in_a_copy_too() -> None:
    model, x = made(EarlyExit)
    pc = pccompile.compile(model, x)
    twin = copy.deepcopy(pc)
    assert isinstance(twin, PiecewiseModule)
    assert all("forward" not in layer.__dict__ for layer in model.modules())
    found = [gradients(m(x).square().sum(), m) for m in (pc, twin, model)]
    assert len(twin.pieces) == len(pc.pieces) > 0  # type: ignore[attr-defined]
    for a, b, c in zip(*found, strict=True):
        assert (a is None) == (b is None) == (c is None)
        torch.testing.assert_close(a, c, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(b, c, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_further_paths_run_by_autograd_and_are_refused_where_that_has_other_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pccompile.runtime.paths.MOST", 2)
    model, x = made(Loop)
    reference, target = copy.deepcopy(model), torch.zeros(5, 2).double()
    pc = pccompile.compile(model, x, loss=mse_loss)
    assert isinstance(pc, PathModule)

    def agree(y: Tensor) -> None:
        for found, wanted in ((pc(y), reference(y)), (pc.loss(y, target=target), mse_loss(reference(y), target))):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
            mine, theirs = gradients(found.sum(), model), gradients(wanted.sum(), reference)
            for a, b in zip(mine, theirs, strict=True):
                assert (a is None) == (b is None)
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)

    with pytest.warns(UserWarning, match="has taken 2 paths, and takes another one") as told:
        list(map(agree, (x, 2 * x, 3 * x, 4 * x, x)))
    assert "has the gradients of autograd" in str(told[0].message)
    strict = pccompile.compile(model, x, algorithm="strict", loss=mse_loss, rate=0.1, steps=2)
    strict.loss(2 * x, target=target).backward()
    with pytest.raises(CompileError, match="has taken 2 paths"):
        strict.loss(4 * x, target=target)


class Unfollowed(Layers):
    """Decides by an array of NumPy in a loop: Dynamo leaves it, and no path shows it."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for layer in self.experts:
            if h.detach().numpy().sum() > 0:
                h = layer(h)
        return self.last(h)  # type: ignore[no-any-return]


def test_the_reasons_of_all_ways_are_told_in_one_error() -> None:
    model, x = made(Unfollowed)
    with pytest.raises(CompileError) as raised:
        pccompile.compile(model, x, algorithm="strict")
    told = [p.what for p in raised.value.problems]
    assert told[0].startswith("torch.export cannot capture Unfollowed")
    assert told[1] == "in pieces: Unfollowed is not compiled in pieces, since strict needs the whole graph"
    assert told[2].startswith("along a path: ")
