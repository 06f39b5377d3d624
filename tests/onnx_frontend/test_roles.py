"""What learns is decided by use and numbers: formulas stay, what a user trains moves, and names say nothing."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from sklearn.neural_network import MLPClassifier

import pccompile
from onnx_frontend.build import model
from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx import load_onnx
from pccompile.frontends.onnx.formulas import SCALING, written_by_hand

node = helper.make_node
RNG = np.random.default_rng(0)
W = (0.5 * RNG.standard_normal((4, 4))).astype(np.float32)


def learned(nodes, number=None, *, stored="initializer", output="y", name="c", shape=(), kind=np.float32, **more):
    """The names of what learns in a file x → MatMul(w) → h → `nodes` → y, where the number is called `name`."""
    nodes = [node("MatMul", ["x", "w"], ["h"]), *nodes]
    weights = {"w": W.astype(kind), **more}
    if any("v" in n.input for n in nodes):
        weights["v"] = W[:, :1].astype(kind)
    if number is not None:
        value = np.full(shape, number, kind)
        if stored == "initializer":
            weights[name] = value
        else:
            nodes.insert(0, node("Constant", [], [name], value=numpy_helper.from_array(value, "t")))
    code = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    made = model(nodes, {"x": (["n", 4], code)}, {output: (None, code)}, weights)
    return {n for n, _ in load_onnx(made).named_parameters()} - {"w", "v"}


GELU = [node("Div", ["h", "c"], ["a"]), node("Erf", ["a"], ["y"])]
FORMULAS = {
    "1 − p": ([node("Sigmoid", ["h"], ["p"]), node("Sub", ["c", "p"], ["y"])], 1.0),
    "1 + erf": ([node("Erf", ["h"], ["p"]), node("Add", ["p", "c"], ["y"])], 1.0),
    "1 / x": ([node("Exp", ["h"], ["p"]), node("Div", ["c", "p"], ["y"])], 1.0),
    "half": ([node("Mul", ["h", "c"], ["y"])], 0.5),
    "half of it": ([node("Div", ["h", "c"], ["y"])], 2.0),
    "−1": ([node("Mul", ["h", "c"], ["y"])], -1.0),
    "√2 of GELU": (GELU, math.sqrt(2)),
    "0.044715": ([node("Mul", ["h", "c"], ["y"])], 0.044715),
    "√(2/π)": ([node("Mul", ["h", "c"], ["y"])], math.sqrt(2 / math.pi)),
    "√d": ([node("Div", ["h", "c"], ["p"]), node("Softmax", ["p"], ["y"])], math.sqrt(96)),
    "1/√d": ([node("Mul", ["h", "c"], ["p"]), node("Softmax", ["p"], ["y"])], 64**-0.5),
    "d^¼": ([node("Mul", ["h", "c"], ["y"])], 96**-0.25),
    "epsilon": ([node("Mul", ["h", "h"], ["p"]), node("Add", ["p", "c"], ["q"]), node("Sqrt", ["q"], ["y"])], 1e-5),
    "tiny epsilon": ([node("Abs", ["h"], ["p"]), node("Add", ["p", "c"], ["q"]), node("Log", ["q"], ["y"])], 1e-12),
    "1/255": ([node("Mul", ["h", "c"], ["y"])], 1 / 255),
    "3 of hard swish, behind a layer": ([node("Add", ["h", "c"], ["y"])], 3.0),
    "6 of hard swish": ([node("Sigmoid", ["h"], ["p"]), node("Div", ["p", "c"], ["y"])], 6.0),
    "hard sigmoid": ([node("Mul", ["h", "c"], ["y"])], 0.2),
    "a mean over 49": ([node("Mul", ["h", "c"], ["y"])], 1 / 49),
    "a square": ([node("Pow", ["h", "c"], ["y"])], 2.0),
    "six of ReLU6": ([node("Min", ["h", "c"], ["y"])], 6.0),
    "ln 2": ([node("Mul", ["h", "c"], ["y"])], math.log(2)),
    "through a view": ([node("Identity", ["c"], ["k"]), node("Sub", ["k", "h"], ["y"])], 1.0),
    "shared by a formula": ([node("Mul", ["h", "c"], ["p"]), node("Sub", ["c", "p"], ["y"])], 1.0),
}  # fmt: skip
LEARNED = {
    "temperature": ([node("Div", ["h", "c"], ["y"])], 0.07),
    "a larger temperature": ([node("Mul", ["h", "c"], ["y"])], 10.0),
    "CLIP's logit scale": ([node("Exp", ["c"], ["t"]), node("Mul", ["h", "t"], ["y"])], math.log(1 / 0.07)),
    "a trained temperature": ([node("Div", ["h", "c"], ["y"])], 0.0723714382),
    "a factor that starts at 2": ([node("Mul", ["c", "h"], ["y"])], 2.0),
    "a factor that starts at 1": ([node("Mul", ["h", "c"], ["y"])], 1.0),
    "ReZero's gate": ([node("Mul", ["h", "c"], ["p"]), node("Add", ["p", "x"], ["y"])], 0.0),
    "LayerScale of one channel": ([node("Mul", ["h", "c"], ["y"])], 1e-6),
    "slope of PReLU": ([node("PRelu", ["h", "c"], ["y"])], 0.25),
    "bias of a layer one wide": ([node("MatMul", ["h", "v"], ["s"]), node("Add", ["s", "c"], ["y"])], 0.1),
    "offset that starts at 0": ([node("Tanh", ["h"], ["p"]), node("Add", ["p", "c"], ["y"])], 0.0),
    "a trained offset": ([node("Tanh", ["h"], ["p"]), node("Add", ["p", "c"], ["y"])], 0.23561828),
    "a trained exponent": ([node("Abs", ["h"], ["p"]), node("Pow", ["p", "c"], ["y"])], 2.9137628),
    "a trained clipping": ([node("Min", ["h", "c"], ["y"])], 5.8371944),
    "a gate through a sigmoid": ([node("Sigmoid", ["c"], ["g"]), node("Mul", ["h", "g"], ["y"])], 0.5),
}


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("name", FORMULAS)
def test_constants_of_formulas_do_not_learn(name, shape):
    nodes, number = FORMULAS[name]
    assert learned(nodes, number, shape=shape) == set()


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("name", LEARNED)
def test_single_numbers_of_a_model_learn(name, shape):
    nodes, number = LEARNED[name]
    assert learned(nodes, number, shape=shape) == {"c"}


@pytest.mark.parametrize("kind", [np.float16, np.float64])
@pytest.mark.parametrize("name", ["1 − p", "half", "√2 of GELU", "1/√d", "a square", "ln 2"])
def test_constants_of_formulas_in_other_precisions(name, kind):
    nodes, number = FORMULAS[name]
    assert learned(nodes, number, kind=kind) == set()


def test_a_formula_in_double_precision_of_a_single_number():
    """A converter to float64 keeps float32's digits."""
    nodes, _ = FORMULAS["√2 of GELU"]
    assert learned(nodes, float(np.float32(math.sqrt(2))), kind=np.float64) == set()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted({**FORMULAS, **LEARNED})),
    st.text(min_size=1, max_size=12).filter(lambda t: t not in set("xhywpqatkgvs")),
)
def test_names_say_nothing(case, name):
    """Whatever the number is called (`onnx::Mul_3`, `unity`, `alpha`, `layer.weight`), it learns or does not."""
    nodes, number = {**FORMULAS, **LEARNED}[case]
    for called in (name, "onnx::Mul_3", "unity", "net/Const_4:0", "head.temperature", "val_7"):
        renamed = []
        for n in nodes:
            other = type(n)()
            other.CopyFrom(n)
            del other.input[:]
            other.input.extend(called if i == "c" else i for i in n.input)
            renamed.append(other)
        assert len(learned(renamed, number, name=called)) == len(learned(nodes, number))


@pytest.mark.parametrize("case", ["bias behind a layer", "trained scale", "mean colour", "grid", "ones"])
def test_arrays_in_constant_nodes(case):
    """Some exporters write weights as nodes: a bias, or what has digits to the end. Hand-written tables stay."""
    arrays = {
        "bias behind a layer": (np.zeros(4), [node("Add", ["h", "c"], ["y"])], True),
        "trained scale": (RNG.standard_normal(4), [node("Tanh", ["h"], ["p"]), node("Mul", ["p", "c"], ["y"])], True),
        "mean colour": (np.array([0.485, 0.456, 0.406, 0.5]), [node("Sub", ["h", "c"], ["y"])], False),
        "grid": (np.arange(4) + 0.5, [node("Tanh", ["h"], ["p"]), node("Add", ["p", "c"], ["y"])], False),
        "ones": (np.ones(4), [node("Tanh", ["h"], ["p"]), node("Mul", ["p", "c"], ["y"])], False),
    }  # fmt: skip
    array, nodes, learns = arrays[case]
    constant = node("Constant", [], ["c"], value=numpy_helper.from_array(array.astype(np.float32), "t"))
    assert learned([constant, *nodes]) == ({"c"} if learns else set())


def test_arrays_that_are_initializers_learn():
    nodes = [node("Tanh", ["h"], ["p"]), node("Mul", ["p", "c"], ["y"])]
    assert learned(nodes, 1e-6, shape=(4,)) == {"c"}  # LayerScale


def test_single_numbers_in_constant_nodes_do_not_learn():
    assert learned([node("Div", ["h", "c"], ["y"])], 0.0723714, stored="node") == set()
    assert learned([node("PRelu", ["h", "c"], ["y"])], 0.25, stored="node", shape=(1,)) == {"c"}


def test_train_and_freeze_overrule():
    nodes = [node("MatMul", ["x", "fc.w"], ["h"]), node("Mul", ["h", "scale"], ["p"]), node("Add", ["p", "b"], ["y"])]
    weights = {"fc.w": W, "scale": np.float32(0.5), "b": np.zeros(4, np.float32)}
    made = model(nodes, {"x": ["n", 4]}, {"y": ["n", 4]}, weights)
    module = load_onnx(made)
    assert {n for n, _ in module.named_parameters()} == {"fc.w", "b"}
    assert dict(module.formula_constants) == {"scale": 0.5}
    other = load_onnx(made, train=["scale"], freeze=["fc.*"])
    assert {n for n, _ in other.named_parameters()} == {"scale", "b"}
    assert {n for n, _ in other.named_buffers()} == {"fc.w"}
    x = torch.randn(3, 4)
    torch.testing.assert_close(other(x), module(x))
    pccompile.compile(other, (x,))(x).sum().backward()
    assert float(other.get_parameter("scale").grad) == pytest.approx(float((x @ torch.from_numpy(W)).sum()), rel=1e-4)
    with pytest.raises(CompileError, match="train: no constant of the file is called nothing"):
        load_onnx(made, train=["nothing"])
    with pytest.raises(CompileError, match="freeze: no constant of the file is called"):
        load_onnx(made, freeze=["zz*"])


X = RNG.standard_normal((60, 4)).astype(np.float32)


def test_probabilities_of_scikit_learn_still_sum_to_one_after_training():
    from skl2onnx import to_onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        machine = MLPClassifier((5,), max_iter=20).fit(X, X[:, 0] > 0)
        made = to_onnx(machine, X[:1], options={"zipmap": False}, target_opset=18)
    pc = pccompile.compile(made)
    optimizer = torch.optim.Adam(pc.parameters(), lr=0.05)
    x, y = torch.from_numpy(X), torch.from_numpy((X[:, 1] > 0).astype(np.int64))
    for _ in range(10):
        optimizer.zero_grad()
        torch.nn.functional.nll_loss(pc(x)[1].clamp_min(1e-6).log(), y).backward()
        optimizer.step()
    torch.testing.assert_close(pc(x)[1].sum(1), torch.ones(60), rtol=0, atol=1e-5)


def test_few_trained_numbers_look_written_by_hand():
    """The price of the rule: about one number in a hundred, of float32."""
    numbers = np.random.default_rng(0).standard_normal(2000).astype(np.float32)
    assert sum(written_by_hand(n.reshape(1)) for n in numbers) < 60
    assert sum(written_by_hand(n.reshape(1), SCALING) for n in numbers) < 30
    assert not written_by_hand(numbers[:10])
    assert written_by_hand(np.array(TensorProto.FLOAT, np.float32))
