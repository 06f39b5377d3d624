"""A compiled module passes for its model: attributes, methods and signature."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch import Tensor, nn

import pccompile


class Net(nn.Module):
    """What packages ask of models: settings, properties, methods of its own."""

    kind = "net"

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.config, self.gain = {"width": 3}, 1.0

    @property
    def device(self) -> torch.device:
        return self.fc.weight.device

    @torch.no_grad()
    def generate(self, x: Tensor) -> Tensor:
        return self(x).argmax(-1)

    def training_step(self, x: Tensor) -> Tensor:
        return self(x).sum()

    def encode(self, x: Tensor) -> Tensor:
        return self.fc(x)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.fc(x) * scale * self.gain


X = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pair() -> tuple[Net, pccompile.PCModule]:
    torch.manual_seed(0)
    model = Net().double()
    return model, pccompile.compile(model, (X,))


def test_attributes_are_the_models(pair: tuple[Net, pccompile.PCModule]) -> None:
    model, pc = pair
    assert pc.config is model.config
    assert (pc.kind, pc.device, pc.gain) == ("net", torch.device("cpu"), 1.0)
    with pytest.raises(AttributeError, match="'Net' object has no attribute 'confog'"):
        _ = pc.confog
    assert not hasattr(pc, "confog")


def test_an_attribute_that_is_set_is_the_models_and_counts(pair: tuple[Net, pccompile.PCModule]) -> None:
    model, pc = pair
    before = pc(X)
    pc.gain = 2.0
    assert model.gain == 2.0
    torch.testing.assert_close(pc(X), 2 * before)
    pc.notice = "mine"
    assert not hasattr(model, "notice")


def test_methods_without_gradients_run(pair: tuple[Net, pccompile.PCModule]) -> None:
    model, pc = pair
    torch.testing.assert_close(pc.generate(X), model.generate(X))
    with torch.no_grad():
        torch.testing.assert_close(pc.encode(X), model.encode(X))


@pytest.mark.parametrize("name", ["training_step", "encode"])
def test_a_method_that_would_learn_around_predictive_coding_is_refused(
    pair: tuple[Net, pccompile.PCModule], name: str
) -> None:
    model, pc = pair
    with pytest.raises(pccompile.CompileError, match=rf"Net\.{name} computes with Net itself"):
        getattr(pc, name)(X)
    getattr(model, name)(X)  # the model itself is as before
    pc(X).sum().backward()


def test_the_signature_is_the_models(pair: tuple[Net, pccompile.PCModule]) -> None:
    model, pc = pair
    expected = inspect.signature(model.forward)
    assert inspect.signature(pc) == inspect.signature(pc.forward) == expected
    assert list(expected.parameters) == ["x", "scale"]


def test_copies_ask_their_own_model(pair: tuple[Net, pccompile.PCModule]) -> None:
    model, pc = pair
    for twin in (copy.deepcopy(pc), pickle.loads(pickle.dumps(pc))):
        assert twin.config == model.config
        assert twin.config is not model.config
        torch.testing.assert_close(twin.generate(X), model.generate(X))
