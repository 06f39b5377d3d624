"""Quantised arithmetic compared with onnxruntime, and gradients through networks with quantised weights."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from onnx import helper

import pccompile
from onnx_frontend.build import model
from onnx_frontend.runtime import agree
from pccompile.frontends.onnx import load_onnx

RNG = np.random.default_rng(0)
node = helper.make_node


def whole(dtype, *shape):
    info = np.iinfo(dtype)
    return RNG.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def scale(*shape):
    return np.asarray(RNG.uniform(0.01, 0.1, shape), dtype=np.float32)


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_products_of_integers(dtype):
    a, b = whole(dtype, 2, 5, 7), whole(dtype, 7, 3)
    agree("MatMulInteger", [a, b, whole(dtype), whole(dtype)])
    agree("QLinearMatMul", [a, scale(), whole(dtype), b, scale(), whole(dtype), np.float32(3.0), whole(dtype)], atol=1)


def test_convolutions_of_integers():
    x, w = whole(np.uint8, 2, 4, 6, 5), whole(np.uint8, 6, 2, 3, 3)
    form = {"pads": [1, 0, 1, 2], "strides": [2, 1], "group": 2}
    agree("ConvInteger", [x, w, whole(np.uint8), whole(np.uint8)], **form)
    kernel = np.int8(w // 2 - 64)
    inputs = [x, scale(), whole(np.uint8), kernel, scale(6), np.zeros(6, np.int8), np.float32(3.0), whole(np.uint8)]
    bias = RNG.integers(-1000, 1000, 6).astype(np.int32)
    agree("QLinearConv", [*inputs, bias], atol=1, **form)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
def test_rounding_to_integers(dtype):
    x = 10 * draw(3, 4, 5)
    agree("QuantizeLinear", [x, scale(), whole(dtype)], version=21)
    agree("QuantizeLinear", [x, scale(4), whole(dtype, 4)], version=21, axis=1)
    agree("DequantizeLinear", [whole(dtype, 3, 4), scale(3), whole(dtype, 3)], version=21, axis=0)
    agree("DequantizeLinear", [whole(dtype, 3, 8), scale(3, 4), whole(dtype, 3, 4)], version=21, axis=1, block_size=2)
    agree("DynamicQuantizeLinear", [x], outputs=3)


def test_gradients_through_weights_of_four_bits():
    """Only the bias learns; its gradient is that of the network with its weights written out."""
    stored = RNG.integers(-8, 8, (6, 4)).astype(ml_dtypes.int4)
    factor, bias = scale(3, 4), draw(4)
    nodes = [
        node("DequantizeLinear", ["w", "scale"], ["weight"], axis=0, block_size=2),
        node("MatMul", ["x", "weight"], ["a"]),
        node("Add", ["a", "bias"], ["b"]),
        node("Tanh", ["b"], ["y"]),
    ]
    weights = {"w": stored, "scale": factor, "bias": bias}
    made = load_onnx(model(nodes, {"x": ["n", 6]}, {"y": ["n", 4]}, weights, opset=21))
    assert [name for name, _ in made.named_parameters()] == ["bias"]
    x = torch.from_numpy(draw(5, 6))
    pc = pccompile.compile(made, (x,))
    y = pc(x)
    dense = torch.from_numpy(stored.astype(np.float32) * np.repeat(factor, 2, 0))
    free = torch.from_numpy(bias).requires_grad_()
    expected = torch.tanh(x @ dense + free)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(made.get_parameter("bias").grad, free.grad)
