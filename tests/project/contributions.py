"""Uses what the diffs of CONTRIBUTING.md add; run in a tree that has them, it prints what went wrong, by heading."""

from __future__ import annotations

import json
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from netlist.naive import Naive
from onnx import TensorProto, helper
from torch import Tensor, nn

import pccompile
from pccompile.backends.netlist import Netlist
from pccompile.backends.netlist.export import available, exporter


class Call(nn.Module):
    """A linear layer, then a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.function = nn.Linear(3, 3, dtype=torch.float64), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.fc(x))


def gradients(module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    weight = torch.linspace(-1, 1, 9, dtype=torch.float64).view(3, 3)
    return torch.autograd.grad((module(x) * weight).sum(), list(module.parameters()))


def agree(function: Callable[[Tensor], Tensor], family: str) -> None:
    """The gradients of a model that calls `function`, by a rule of that family, are autograd's."""
    x, model = torch.randn(3, 3, dtype=torch.float64), Call(function)
    pc = pccompile.compile(model, (x,))
    assert family in pc.compiled.pc.vertices[-1].how.values()
    torch.testing.assert_close(gradients(pc, x), gradients(model, x))


def elementwise() -> None:
    agree(lambda y: torch.ldexp(y, torch.tanh(y)), "elementwise")


def linear() -> None:
    agree(lambda y: torch.rot90(y, 1, (0, 1)), "linear")


def folded() -> None:
    stages: list[str] = []
    x = torch.randn(3, 3, dtype=torch.float64)
    model = Call(lambda y: torch.tanh(y.neg().neg().neg()))
    pc = pccompile.compile(model, (x,), hook=lambda stage, result, seconds: stages.append(stage))
    assert stages.index("canonicalise") + 1 == stages.index("fold-negations")
    assert [n.op for n in pc.compiled.graph.nodes].count("aten.neg.default") == 1
    torch.testing.assert_close(gradients(pc, x), gradients(model, x))


def decayed() -> None:
    x, y = torch.randn(3, 3, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    found = []
    for settings in (
        {"algorithm": "decayed", "decay": 0.0},
        {"algorithm": "strict"},
        {"algorithm": "decayed", "decay": 0.5},
    ):
        torch.manual_seed(0)
        model: Any = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
        pccompile.compile(model, (x,), loss=nn.MSELoss(reduction="sum"), **settings).loss(x, target=y).backward()
        found.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found[0][0], found[2][0])


def onnx_operator() -> None:
    node = helper.make_node("Inverse", ["x"], ["y"], domain="com.microsoft", name="inverse")
    ends = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, [2, 3, 3]) for name in "xy"]
    graph = helper.make_graph([node], "inverted", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    file = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    x = (torch.randn(2, 3, 3, dtype=torch.float64) + 4 * torch.eye(3, dtype=torch.float64)).requires_grad_()
    sent = torch.randn(2, 3, 3, dtype=torch.float64)
    found = torch.autograd.grad(pccompile.compile(file, (x,))(x), x, sent)
    inverse = torch.linalg.inv(x.detach()).mT
    torch.testing.assert_close(found, (-inverse @ sent @ inverse,))


def circuit() -> Netlist:
    x = torch.randn(1, 3, dtype=torch.float64)
    return pccompile.compile(nn.Linear(3, 3).double(), (x,), backend="netlist")


def reverse() -> None:
    """As with targets in the opposite order, also synapse by synapse, and in the simulator that follows the page."""
    net = circuit()
    (wire,) = (p for p in net.spec.projections if p.pre.endswith(".t"))
    projections = tuple(msgspec.structs.replace(p, op="reverse") if p is wire else p for p in net.spec.projections)
    turned = replace(net, spec=msgspec.structs.replace(net.spec, projections=projections))
    x, target = torch.randn(1, 3, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    given = turned.presentation(x, target)
    expected = net.simulate(x, target.flip(1), ticks=8).states[wire.target].ravel()
    for made in (turned, turned.flatten()):
        found = made.simulate(x, target, ticks=8).states[wire.target].ravel()
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
    simulator = turned.simulator(given)
    with tempfile.TemporaryDirectory() as folder:
        naive = Naive(turned.save(Path(folder) / "out")[0])
    for name, states in given.items():
        naive.state[name] = np.reshape(states, (1, -1)).tolist()
    for _ in range(4):
        naive.tick("settle")
        simulator.run([("settle", 1)])
    for name, states in simulator.states.items():
        np.testing.assert_allclose(naive.state[name], states.flatten(1), rtol=1e-12, atol=1e-14)


def graphviz() -> None:
    assert "graphviz" in available()
    net = circuit()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):  # what it wrote, it may overwrite
            (path,) = exporter("graphviz").emit(net, Path(folder))
        text = path.read_text(encoding="utf-8")
    assert text.count(" -> ") == len(net.spec.projections)


CHECKS: dict[str, Callable[[], None]] = {
    "An elementwise operation": elementwise,
    "A linear operation": linear,
    "A pass": folded,
    "An algorithm": decayed,
    "An ONNX operator": onnx_operator,
    "An operation of a netlist's projections": reverse,
    "An exporter": graphviz,
}


def wrong(check: Callable[[], None]) -> str:
    """The traceback of a check that fails, else nothing."""
    try:
        check()
    except Exception:
        return traceback.format_exc()
    return ""


if __name__ == "__main__":
    print(json.dumps({heading: wrong(check) for heading, check in CHECKS.items()}))
