"""If on an input: the chosen branch runs and learns, whatever tensors the branches make of numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import pccompile
from onnx_frontend.build import model
from pccompile.frontends.onnx import load_onnx
from pccompile.report.reference import verify_file

node = helper.make_node
RNG = np.random.default_rng(0)
GRID = RNG.standard_normal(4).astype(np.float32)


def constant(name, array):
    return node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(array), name))


def reflected(p):
    return [node("Pad", ["x", "pads"], [f"{p}q"], mode="reflect"), node("MatMul", [f"{p}q", f"{p}w"], [f"{p}y"])], 8


def shifted(p):
    """A grid in a Constant node, which does not learn."""
    table = [constant(f"{p}g", np.array([0.5, 1.5, 2.5, 3.5], np.float32)), node("Add", ["x", f"{p}g"], [f"{p}q"])]
    return [*table, node("MatMul", [f"{p}q", f"{p}w"], [f"{p}y"])], 4


def plain(p):
    return [node("MatMul", ["x", f"{p}w"], [f"{p}q"]), node("Tanh", [f"{p}q"], [f"{p}y"])], 4


def nested(p):
    inner = [helper.make_graph(part(f"{p}{q}")[0], q, [], [helper.make_tensor_value_info(f"{p}{q}y", 1, None)])
             for q, part in (("a", reflected), ("b", shifted))]  # fmt: skip
    condition = [node("ReduceSum", ["x"], [f"{p}s"], keepdims=0), node("Greater", [f"{p}s", "zero"], [f"{p}c"])]
    return [*condition, node("If", [f"{p}c"], [f"{p}y"], then_branch=inner[0], else_branch=inner[1])], None


BRANCHES = {"reflected": reflected, "shifted": shifted, "plain": plain, "nested": nested}


def chosen_by_rate(yes, no):
    """A file in which the sampling rate chooses a branch."""
    weights = {"rate": np.array(16000), "pads": np.array([0, 2, 0, 2]), "zero": np.float32(0)}
    graphs = []
    for p, part in (("t", yes), ("e", no)):
        nodes, width = BRANCHES[part](p)
        if width is None:
            weights |= {f"{p}aw": RNG.standard_normal((8, 3)).astype(np.float32)}
            weights |= {f"{p}bw": RNG.standard_normal((4, 3)).astype(np.float32)}
        else:
            weights[f"{p}w"] = RNG.standard_normal((width, 3)).astype(np.float32)
        graphs.append(helper.make_graph(nodes, p, [], [helper.make_tensor_value_info(f"{p}y", 1, None)]))
    nodes = [
        node("Equal", ["sr", "rate"], ["c"]),
        node("If", ["c"], ["y"], then_branch=graphs[0], else_branch=graphs[1]),
    ]
    used = {i for g in graphs for n in g.node for i in n.input} | {i for n in nodes for i in n.input}
    used |= {
        i for g in graphs for n in g.node for a in n.attribute if a.HasField("g") for m in a.g.node for i in m.input
    }
    weights = {k: v for k, v in weights.items() if k in used}
    return model(nodes, {"x": ["n", 4], "sr": ([], TensorProto.INT64)}, {"y": ["n", 3]}, weights, opset=18)


PAIRS = [
    ("reflected", "shifted"),
    ("plain", "reflected"),
    ("shifted", "plain"),
    ("nested", "plain"),
    ("reflected", "nested"),
]


@pytest.mark.quick(3)
@pytest.mark.parametrize(("yes", "no"), PAIRS, ids="/".join)
def test_only_the_chosen_branch_learns(yes, no, tmp_path):
    made = chosen_by_rate(yes, no)
    onnx.save(made, tmp_path / "made.onnx")
    module, eager = load_onnx(made), load_onnx(made)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    pc = pccompile.compile(module, (x, torch.tensor(16000)))
    for rate in (16000, 8000):
        for inputs in (x, -x):
            pc.zero_grad()
            eager.zero_grad()
            y, expected = pc(inputs, torch.tensor(rate)), eager(inputs, torch.tensor(rate))
            torch.testing.assert_close(y, expected)
            y.square().sum().backward()
            expected.square().sum().backward()
            for name, parameter in eager.named_parameters():
                found = module.get_parameter(name).grad
                assert (found is None) == (parameter.grad is None), name
                if found is not None:
                    torch.testing.assert_close(found, parameter.grad)
        report = verify_file(pc, tmp_path / "made.onnx", (x, torch.tensor(rate)), 0)
        assert report.passed, report
        assert sum(p.note == "none in either" for p in report.parameters) >= 1


@pytest.mark.parametrize("stored", ["initializer", "node"])
def test_branches_may_use_the_same_names(stored, tmp_path):
    """In one branch c is the 1 of 1 − p, in the other one a factor; w is another matrix, w_2 a third."""
    arrays = {"t": RNG.standard_normal((4, 3)), "e": RNG.standard_normal((4, 3)), "third": RNG.standard_normal((3, 3))}
    arrays = {k: v.astype(np.float32) for k, v in arrays.items()}

    def branch(name, last):
        nodes = [node("MatMul", ["x", "w"], ["h"]), node("Sigmoid", ["h"], ["p"]), last]
        own = [numpy_helper.from_array(arrays[name], "w"), numpy_helper.from_array(np.float32(1), "c")]
        if stored == "node":
            nodes, own = [constant("w", arrays[name]), *nodes], own[1:]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info("o", 1, None)], own)

    yes, no = branch("t", node("Sub", ["c", "p"], ["o"])), branch("e", node("Mul", ["p", "c"], ["o"]))
    nodes = [node("If", ["b"], ["i"], then_branch=yes, else_branch=no), node("MatMul", ["i", "w_2"], ["y"])]
    made = model(nodes, {"x": ["n", 4], "b": ([], TensorProto.BOOL)}, {"y": ["n", 3]}, {"w_2": arrays["third"]})
    onnx.save(made, tmp_path / "made.onnx")
    module = load_onnx(made)
    assert set(module.parameter_names) == {"w", "w_2", "w_3", "c"}
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    pc = pccompile.compile(module, (x, torch.tensor(True)))
    for chosen in (True, False):
        p = torch.sigmoid(x @ torch.from_numpy(arrays["t" if chosen else "e"]))
        expected = (1 - p if chosen else p) @ torch.from_numpy(arrays["third"])
        torch.testing.assert_close(pc(x, torch.tensor(chosen)), expected)
        assert verify_file(pc, tmp_path / "made.onnx", (x, torch.tensor(chosen)), 0).passed
