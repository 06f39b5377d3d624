"""Draws outside torch, and seeds of torch's generator, within forward are refused by name; no generator moves."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pccompile
from pccompile import CompileError


class Draws(nn.Module):
    def __init__(self, draw: Callable[[Any], float], in_evaluation: bool = True) -> None:
        super().__init__()
        self.fc, self.draw, self.in_evaluation = nn.Linear(3, 3), draw, in_evaluation
        self.own, self.old = random.Random(0), np.random.RandomState(0)
        self.held = {"new": [np.random.default_rng(0)]}

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return y * self.draw(self) if self.training or self.in_evaluation else y


DRAWS: dict[str, tuple[Callable[[Any], float], str]] = {
    "random": (lambda m: random.random(), r"Python's random"),
    "choice": (lambda m: random.choice([1.0, 2.0]), r"Python's random"),
    "numpy": (lambda m: float(np.random.rand()), r"numpy\.random"),
    "Random": (lambda m: m.own.gauss(0, 1), r"own, a Random"),
    "RandomState": (lambda m: float(m.old.rand()), r"old, a RandomState"),
    "Generator": (lambda m: float(m.held["new"][0].random()), r"held, a Generator"),
}


@pytest.mark.parametrize(("draw", "words"), DRAWS.values(), ids=DRAWS)
def test_a_draw_is_refused_by_name(draw: Callable[[Any], float], words: str) -> None:
    model = Draws(draw)
    random.seed(1)
    np.random.seed(1)
    expected = draw(model)
    random.seed(1)
    np.random.seed(1)
    model = Draws(draw)
    with pytest.raises(CompileError, match=f"forward draws a number from {words}.*same at each call"):
        pccompile.compile(model, (torch.ones(2, 3),), capture="export")
    assert draw(model) == expected


@pytest.mark.parametrize("name", ["random", "choice"])
def test_draws_of_python_lie_between_pieces(name: str) -> None:
    model, x = Draws(DRAWS[name][0]), torch.ones(2, 3)
    pc = pccompile.compile(model, (x,))
    assert pc.pieces  # type: ignore[attr-defined]
    found, expected = [], []
    for called, results in ((pc, found), (model, expected)):
        random.seed(3)
        for _ in range(4):
            model.zero_grad()
            called(x).sum().backward()
            results.append(model.fc.weight.grad.clone())  # type: ignore[union-attr]
        results.append(torch.tensor(random.random()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert len({float(g.sum()) for g in expected[:-1]}) > 1


def test_where_nothing_is_drawn_nothing_is_refused() -> None:
    model, x = Draws(lambda m: random.random(), in_evaluation=False), torch.ones(2, 3)
    pc = pccompile.compile(model.eval(), (x,))
    torch.testing.assert_close(pc(x), model(x))
    model.train()
    with pytest.raises(CompileError, match="Python's random"):
        pc(x)


def _forked(m: nn.Module) -> float:
    with torch.random.fork_rng():
        torch.manual_seed(1)
    return 1.0


def _held_state(m: nn.Module) -> float:
    torch.set_rng_state(torch.Generator().manual_seed(4).get_state())
    return 1.0


SEEDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "manual_seed": (lambda m: bool(torch.manual_seed(42)), "manual_seed"),
    "seed": (lambda m: bool(torch.seed()), "seed"),
    "state": (_held_state, "set_rng_state"),
    "fork": (_forked, "manual_seed"),
    "generator": (lambda m: bool(torch.default_generator.manual_seed(0)), "default_generator.manual_seed"),
    "state of the generator": (
        lambda m: bool(torch.default_generator.set_state(torch.Generator().manual_seed(4).get_state())),
        "default_generator.set_state",
    ),
    "module": (lambda m: bool(torch.random.manual_seed(0)), "manual_seed"),
}


@pytest.mark.parametrize(("seed", "name"), SEEDS.values(), ids=SEEDS)
def test_a_seed_within_forward_is_refused_by_name(seed: Callable[[Any], float], name: str) -> None:
    """The draws behind it are the same at each call of eager torch; a program draws on."""
    model = Draws(seed)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with pytest.raises(CompileError, match=rf"forward calls torch\.{name}"):
        pccompile.compile(model, (torch.ones(2, 3),))
    torch.testing.assert_close(torch.rand(2), expected)


def test_a_seed_of_another_thread_is_none_of_this_one() -> None:
    stop = threading.Event()

    def seeds() -> None:
        while not stop.is_set():
            torch.manual_seed(0)
            torch.default_generator.manual_seed(1)

    other = threading.Thread(target=seeds)
    other.start()
    try:
        pccompile.compile(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), (torch.ones(2, 3),))
    finally:
        stop.set()
        other.join()


def test_torch_itself_may_seed() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    pc = pccompile.compile(model, (torch.ones(2, 3),))
    results = []
    for m in (model, pc):
        torch.manual_seed(0)
        results.append((m(torch.ones(2, 3)), torch.rand(2)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("own", [True, False])
def test_a_seed_of_a_generator_that_the_model_holds_is_refused(own: bool) -> None:
    class Holder(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 3)
            self.generator = torch.Generator() if own else torch.default_generator

        def forward(self, x: Tensor) -> Tensor:
            self.generator.manual_seed(5)
            return nn.functional.dropout(super().forward(x), 0.5)

    torch.manual_seed(3)
    model, before = Holder(), torch.get_rng_state()
    held = model.generator.get_state()
    with pytest.raises(CompileError, match="from generator, a Generator, or seeds it"):
        pccompile.compile(model, (torch.ones(2, 3),))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model.generator.get_state(), held)
