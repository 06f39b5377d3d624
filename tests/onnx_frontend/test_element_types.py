"""Text, numbers of few bits and wide unsigned integers: what torch does not compute with."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import pccompile
import pccompile.onnx_backend as backend
from onnx_frontend.build import model, perceptron
from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx import load_onnx
from pccompile.frontends.onnx.boundary import from_numpy, to_numpy
from pccompile.frontends.onnx.low_precision import narrowed

node = helper.make_node
WORDS = np.array([["b", "ä"], ["", "b"]], dtype=object)


@pytest.mark.parametrize(
    "made, expected",
    [
        (node("Transpose", ["x"], ["y"]), WORDS.T),
        (node("Concat", ["x", "x"], ["y"], axis=1), np.concatenate([WORDS, WORDS], axis=1)),
        (node("Flatten", ["x"], ["y"], axis=0), WORDS.reshape(1, 4)),
        (node("Equal", ["x", "x"], ["y"]), WORDS == WORDS),
        (node("Shape", ["x"], ["y"]), np.array([2, 2])),
        (node("Unique", ["x"], ["y"]), np.array(["", "b", "ä"], dtype=object)),
    ],
)
def test_operators_that_do_not_read_letters_work_on_text(made, expected):
    (y,) = backend.run_node(made, [WORDS])
    assert y.dtype == expected.dtype
    assert y.tolist() == expected.tolist()


def test_text_is_padded_with_empty_strings():
    (y,) = backend.run_node(node("Pad", ["x", "pads"], ["y"]), [WORDS[0], np.array([1, 1])])
    assert y.tolist() == ["", "b", "ä", ""]


def test_operators_on_text_that_onnx_does_not_define_are_refused():
    made = model([node("Neg", ["x"], ["y"], name="/neg")], {"x": (["n"], TensorProto.STRING)}, {"y": None})
    with pytest.raises(CompileError, match=r"Neg does not take text \[2\].*/neg"):
        load_onnx(made)(WORDS[0])


def test_a_model_with_text_is_not_compiled():
    made = model([node("Cast", ["x"], ["y"], to=1)], {"x": (["n"], TensorProto.STRING)}, {"y": ["n"]})
    assert load_onnx(made)(np.array(["1.5", "-INF"])).tolist() == [1.5, -np.inf]
    with pytest.raises(CompileError, match="input x is string, which carries no gradient"):
        pccompile.compile(made)


def test_wrong_values_for_such_inputs():
    text = load_onnx(model([node("Identity", ["x"], ["y"])], {"x": (["n"], TensorProto.STRING)}, {"y": None}))
    small = load_onnx(model([node("Identity", ["x"], ["y"])], {"x": ([2], TensorProto.INT4)}, {"y": None}, opset=21))
    for module, value, said in (
        (text, torch.zeros(2), r"should be string \[n\]; it is a Tensor"),
        (text, WORDS, r"it is text \[2, 2\]"),
        (small, torch.zeros(2), r"should be int4 \[2\]; it is a Tensor"),
        (small, from_numpy(np.zeros(2, helper.tensor_dtype_to_np_dtype(TensorProto.UINT4))), r"it is uint4 \[2\]"),
    ):
        with pytest.raises(CompileError, match=said):
            module(value)


FLOATS = (
    *np.ldexp(np.float32([1, 1.0625, 1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 1.9375]), np.arange(-20, 20)[:, None]).flat,
    *(0.0, -0.0, 464.0, 465.0, 1e30, np.inf, -np.inf, np.nan),
)


@pytest.mark.parametrize("name", ["FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT4E2M1"])
def test_rounding_to_few_bits_is_what_ml_dtypes_does(name):
    code = TensorProto.DataType.Value(name)
    x = np.array([*FLOATS, *(-f for f in FLOATS)], dtype=np.float32)
    with np.errstate(all="ignore"):
        expected = x.astype(helper.tensor_dtype_to_np_dtype(code)).astype(np.float32)
    assert np.array_equal(narrowed(torch.from_numpy(x), code, saturate=False).tensor.numpy(), expected, equal_nan=True)


@pytest.mark.parametrize("mode", ["up", "down", "nearest"])
def test_rounding_to_powers_of_two_is_what_onnx_does(mode):
    x = np.array([*FLOATS, 2.0**-130, 2.0**-127, 3.3e38], dtype=np.float32)
    for saturate in (True, False):
        expected = onnx.numpy_helper.to_float8e8m0(x, saturate, mode).astype(np.float32)
        got = narrowed(torch.from_numpy(x), TensorProto.FLOAT8E8M0, saturate, mode).tensor.numpy()
        assert np.array_equal(got, expected, equal_nan=True)


@pytest.mark.parametrize("name", ["INT4", "UINT4", "INT2", "UINT2", "FLOAT8E5M2", "FLOAT4E2M1"])
def test_constants_of_few_bits(name):
    dtype = helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(name))
    stored = np.array([[1, 0, 1], [0, 1, 1]]).astype(dtype)
    made = model(
        [node("Transpose", ["w"], ["t"]), node("Cast", ["t"], ["s"], to=1), node("Mul", ["x", "s"], ["y"])],
        {"x": [3, 2]},
        {"y": [3, 2], "t": None},
        {"w": stored},
        opset=25,
    )
    y, t = load_onnx(made)(torch.full((3, 2), 2.0))
    assert y.tolist() == (2 * stored.T.astype(np.float32)).tolist()
    assert to_numpy(t).dtype == dtype
    assert to_numpy(t).tolist() == stored.T.tolist()


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_wide_unsigned_integers_wrap_as_numpy_has_it(bits):
    dtype = np.dtype(f"uint{bits}")
    a, b = np.array([0, 1, 200, 2**15], dtype), np.array([1, 3, 7, 2], dtype)
    for op_type, function in (("Add", np.add), ("Sub", np.subtract), ("Mul", np.multiply), ("Greater", np.greater)):
        (y,) = backend.run_node(node(op_type, ["a", "b"], ["y"]), [a, b])
        assert y.dtype == function(a, b).dtype
        assert y.tolist() == function(a, b).tolist()


def test_uint64_that_does_not_fit_int64_is_right_or_refused():
    a = np.array([2**64 - 1, 2**63], dtype=np.uint64)
    assert backend.run_node(node("Add", ["a", "a"], ["y"]), [a])[0].tolist() == (a + a).tolist()
    with pytest.raises(CompileError, match="Max of uint64, which is or may be beyond"):
        backend.run_node(node("Max", ["a", "a"], ["y"]), [a])


def test_unread_text_does_no_harm():
    made = perceptron()
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(["a", "b"], dtype=object), "words"))
    assert load_onnx(made)(torch.zeros(2, 3)).shape == (2, 2)
