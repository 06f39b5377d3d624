"""timm's own model files, with random weights, against eager torch.

timm imports torchvision, whose wheels fit one build of torch. Where it is absent, a stand-in takes its place: models
need none of it but the name of a norm with frozen statistics, which they compare layers with; all else is of images.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.models import distance, gradients

import pccompile

pytestmark = pytest.mark.slow
ABSENT = ("", ".ops", ".ops.misc", ".transforms", ".transforms.functional", ".datasets", ".models")
"""The modules of torchvision that are stood in for; there is none for features by torch.fx, which timm does without."""
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "mobilenetv3_small_050": {},
    "convnext_atto": {},
    "regnetx_002": {},
    "vit_tiny_patch16_224": {"img_size": 32},
    "mixer_s32_224": {"img_size": 32, "num_classes": 5},
    "ghostnet_050": {},
}


class Named(type):
    """A class whose attributes are such classes."""

    def __getattr__(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return Named(name, (), {})


class StandIn(types.ModuleType):
    """A module in which every name is an empty class."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return Named(name, (), {})


@pytest.fixture(scope="module")
def timm() -> Iterator[Any]:
    before = set(sys.modules)
    try:
        import torchvision  # noqa: F401
    except ImportError:
        for part in ABSENT:
            module = StandIn(f"torchvision{part}")
            module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
            sys.modules[module.__name__] = module
    yield pytest.importorskip("timm")
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("timm", "torchvision"):
            del sys.modules[name]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_agrees_with_eager(timm: Any, name: str, training: bool) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, **{"num_classes": 7, **ARCHITECTURES[name]}).double()
    model.train(training)
    x, y = torch.randn(3, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 3, 1])
    states = {k: b.clone() for k, b in model.named_buffers()}
    torch.manual_seed(1)  # some have dropout
    expected = gradients(model, F.cross_entropy(model(x), y))
    moved = {k: b.clone() for k, b in model.named_buffers()}
    model.load_state_dict(states, strict=False)
    pc = pccompile.compile(model, (x,))
    torch.manual_seed(1)
    found = gradients(pc, F.cross_entropy(pc(x), y))
    assert len(expected) > 20
    assert distance(found, expected) < 1e-8
    for path, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, moved[path])
