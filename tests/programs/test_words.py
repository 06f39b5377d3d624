"""The names at the top of a generated file, and the paths of tensors that only a program has."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pccompile
from pccompile.backends.torch.spell import Speller
from pccompile.frontends.exported import import_program


def test_two_kernels_never_share_a_name() -> None:
    speller = Speller()
    ops = ["one.foo.default", "two.foo.default", "three.foo.default", "four.foo_default.x", "five.range.default"]
    names = [speller.kernel(op) for op in ops]
    assert len(set(names)) == len(names)
    assert "range" not in names
    assert {*names} <= speller.words(ops)


@pytest.fixture(scope="module")
def operators() -> Iterator[Any]:
    """Three operators of one name, and one called like a function of the generated file."""
    with (
        torch.library._scoped_library("pcc_words_a", "DEF") as a,
        torch.library._scoped_library("pcc_words_b", "DEF") as b,
    ):
        factors = {"pcc_words_a::scale": 2.0, "pcc_words_b::scale": 3.0, "pcc_words_a::predict": 5.0}
        for name, factor in factors.items():
            library = a if "_a:" in name else b
            library.define(f"{name.partition('::')[2]}(Tensor x) -> Tensor")
            short = name.partition("::")[2]
            library.impl(short, lambda x, factor=factor: x * factor, "CompositeExplicitAutograd")
        yield factors


def test_operators_of_one_name_stay_apart(operators: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = torch.ops.pcc_words_a.scale(torch.ops.pcc_words_b.scale(torch.ops.pcc_words_a.predict(x)))
            return self.fc(x)

    model, x = Net(), torch.randn(2, 3)
    assert torch.allclose(pccompile.compile(model, x, check=False)(x), model(x))


def test_a_constant_takes_no_path_of_the_model() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)
            self.register_buffer("lifted_tensor_0", torch.full((3,), 7.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) * torch.tensor([1.0, 2.0, 3.0]) + 0 * self.lifted_tensor_0

    model, x = Net(), torch.randn(2, 3)
    imported = import_program(torch.export.export(model, (x,)), model)
    paths = list(imported.graph.origin.values())
    assert len(set(paths)) == len(paths)
    pc = pccompile.compile(copy.deepcopy(model), x)
    assert torch.allclose(pc(x), model(x))


def test_a_constant_is_not_read_off_a_tensor_that_the_program_does_not_use() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)
            for i in range(3):
                self.register_buffer(f"lifted_tensor_{i}", torch.full((3,), 7.0))
                self.register_buffer(f"_tensor_constant{i}", torch.full((3,), 7.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) * torch.tensor([1.0, 2.0, 3.0])

    model, x = Net(), torch.randn(2, 3)
    pc = pccompile.compile(model, x)
    assert torch.allclose(pc(x), model(x))
    pc(x).sum().backward()
    model.lifted_tensor_0.mul_(2)
    assert torch.allclose(pc(x), model(x))


@pytest.mark.parametrize("name", ["range", "next", "max", "min", "int", "iter", "torch", "F", "math", "u0", "batch"])
def test_a_module_may_be_called_like_what_a_file_calls(name: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)
            self.add_module(name, nn.Tanh())

        def forward(self, x: Tensor) -> Tensor:
            gate = getattr(self, name)((x > 0).to(x.dtype))
            return getattr(self, name)(self.fc(x)) * gate.repeat(1, 1)

    model, x = Net().double(), torch.randn(2, 3, dtype=torch.float64)
    pc = pccompile.compile(model, x, algorithm="fixed-prediction", lowering="relax", steps=3, rate=1.0)
    pc(x).square().sum().backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    model(x).square().sum().backward()
    assert all(torch.allclose(p.grad, g) for p, g in zip(model.parameters(), found, strict=True))
