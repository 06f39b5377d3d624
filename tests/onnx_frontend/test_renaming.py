"""ONNX values under any other names: the same outputs and gradients, under every algorithm and as a circuit."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers.renaming import words
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper
from torch import Tensor

import pccompile
from onnx_frontend.build import model
from pccompile.frontends.onnx import load_onnx

node = helper.make_node
EXTRA = (
    "#const.0",
    "#index.0",
    "#index.1",
    "#weights.0",
    "#drawn.x",
    "input x",
    "a.b",
    "a",
    "x.v",
    "",
    " ",
    "é",
    "e\u0301",
)
ALGORITHMS: dict[str, dict[str, Any]] = {
    "exact": {"algorithm": "exact"},
    "closed form": {"algorithm": "fixed-prediction", "steps": 3, "rate": 0.5, "lowering": "closed-form"},
    "relaxed": {"algorithm": "fixed-prediction", "steps": 3, "rate": 0.5, "lowering": "relax"},
    "strict": {"algorithm": "strict", "steps": 2, "outside_loss": "linearise"},
}
SETTINGS = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}


def network() -> onnx.ModelProto:
    """Two outputs, one of which is read on, an initializer that is read twice, and a constant."""
    rng = np.random.default_rng(0)
    nodes = [
        node("Gemm", ["x", "w", "b"], ["a"], name="first", transB=1),
        node("Tanh", ["a"], ["h"], name="act"),
        node("Mul", ["h", "s"], ["m"], name="scale"),
        node("Add", ["m", "c"], ["t"], name="shift"),
        node("Gemm", ["t", "w", "b"], ["r"], name="second", transB=1),
        node("Sigmoid", ["r"], ["y"], name="last"),
    ]
    weights = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in (("w", (3, 3)), ("b", 3), ("s", 3), ("c", 3))
    }
    return model(nodes, {"x": [4, 3]}, {"m": [4, 3], "y": [4, 3]}, weights)


def gradients(proto: onnx.ModelProto, **options: Any) -> tuple[list[Tensor], str]:
    """Outputs and gradients, those of the parameters in the order of the initializers; and the generated file."""
    module = load_onnx(proto)
    x = torch.linspace(-1, 1, 12).reshape(4, 3).requires_grad_()
    pc = pccompile.compile(module, (x,), **options)
    m, y = pc(x)
    (m.sin().sum() + y.square().sum()).backward()
    assert x.grad is not None
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    return [m.detach(), y.detach(), x.grad, *sorted(grads, key=lambda g: float(g.flatten()[0]))], pc.source


@functools.cache
def expected(algorithm: str) -> tuple[list[Tensor], tuple[str, ...]]:
    found, source = gradients(network(), **ALGORITHMS[algorithm])
    return found, (*words(source, ("w", "b", "s", "c", "a", "h", "m", "t", "r", "y", "x", "first", "act")), *EXTRA * 4)


def renamed(proto: onnx.ModelProto, pool: tuple[str, ...], seed: int) -> onnx.ModelProto:
    """Every value and node of a model under a name of the pool, two never under one."""
    draw = np.random.default_rng(seed)
    names = iter(dict.fromkeys(n for n in (pool[i] for i in draw.permutation(len(pool))) if n))
    new: dict[str, str] = {}

    def name(old: str) -> str:
        if old not in new:
            new[old] = next(names)
        return new[old]

    graph = proto.graph
    for entry in (*graph.input, *graph.output, *graph.initializer):
        entry.name = name(entry.name)
    for n in graph.node:
        n.input[:] = [name(i) if i else i for i in n.input]
        n.output[:] = [name(o) for o in n.output]
        n.name = pool[int(draw.integers(len(pool)))]
    return proto


@settings(max_examples=16, **SETTINGS)
@given(st.sampled_from(sorted(ALGORITHMS)), st.integers(0, 2**31))
def test_names_of_values_change_no_number(algorithm: str, seed: int) -> None:
    check(algorithm, seed)


@pytest.mark.slow
@settings(max_examples=200, **SETTINGS)
@given(st.sampled_from(sorted(ALGORITHMS)), st.integers(0, 2**31))
def test_names_of_values_change_no_number_often(algorithm: str, seed: int) -> None:
    check(algorithm, seed)


def check(algorithm: str, seed: int) -> None:
    right, pool = expected(algorithm)
    proto = renamed(network(), pool, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, _ = gradients(proto, **ALGORITHMS[algorithm])
    assert len(found) == len(right)
    for mine, theirs in zip(found, right, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6), [i.name for i in proto.graph.initializer]


TABLES = ("#const.0", "#index.0", "#index.1", "#weights.0", "#weights.1", "#drawn.x", "W", "#flat.0", "#split.0")


def circuit(names: dict[str, str]) -> onnx.ModelProto:
    """A circuit with a table of places, a constant, and weights that are synapses."""
    rng = np.random.default_rng(0)
    nodes = [
        node("MatMul", ["x", names["w"]], ["a"], name="first"),
        node("Transpose", ["a"], ["at"], name="turn", perm=[1, 0]),
        node("Mul", ["at", names["s"]], ["b"], name="scale"),
        node("ReduceSum", ["b"], ["c"], name="sum", keepdims=1),
        node("Tanh", ["c"], ["y"], name="last"),
    ]
    weights = {
        names["w"]: rng.standard_normal((3, 3)).astype(np.float32),
        names["s"]: np.array([[1.5], [2.5], [3.5]], np.float32),
    }
    return model(nodes, {"x": [1, 3]}, {"y": [1, 1]}, weights, opset=13)


@pytest.mark.parametrize("second", ["S", "#const.0", "#index.0"])
@pytest.mark.parametrize("first", TABLES)
def test_the_tables_of_a_circuit_are_not_the_parameters_of_the_model(first: str, second: str, tmp_path: Any) -> None:
    if first == second:
        first = "#const.1"
    proto, plain = (circuit({"w": w, "s": s}) for w, s in ((first, second), ("w", "s")))
    x, target = torch.full((1, 3), 0.1), torch.zeros(1, 1)
    net, reference = (pccompile.compile(p, (x,), backend="netlist") for p in (proto, plain))
    paths = {t.path for t in net.spec.tensors.values() if t.path}
    assert first in paths
    found, right = (n.simulate(x, target, ticks=20, learn=True) for n in (net, reference))
    np.testing.assert_allclose(found.params[first], right.params["w"])
    np.testing.assert_allclose(*(next(iter(r.outputs.values())) for r in (found, right)))
    net.save(tmp_path, "net")
    again = type(net).load(tmp_path / "net.pcnet.json").flatten().simulate(x, target, ticks=20)
    np.testing.assert_allclose(*(next(iter(r.outputs.values())).reshape(-1) for r in (again, right)))
