"""Files that other tools write: every operator set, scikit-learn's converter, old weights, quantised networks."""

from __future__ import annotations

import io
import logging
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, version_converter
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR
from torch import nn

import pccompile
from onnx_frontend.build import model
from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx import load_onnx

node = helper.make_node
RNG = np.random.default_rng(0)


def normal(*shape):
    return (0.5 * RNG.standard_normal(shape)).astype(np.float32)


def run(made, **feed):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(made.SerializeToString(), options).run(None, feed)


def small_network():
    """A network of operators whose attributes became inputs, or which were renamed, as operator set 7 had them."""
    nodes = [
        node("Pad", ["x"], ["padded"], pads=[0, 0, 1, 1, 0, 0, 1, 1]),
        node("Conv", ["padded", "kernel", "shift"], ["conv"]),
        node("BatchNormalization", ["conv", "scale", "offset", "mean", "variance"], ["normal"]),
        node("Clip", ["normal"], ["clipped"], min=-1.0, max=2.0),
        node("MaxPool", ["clipped"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Upsample", ["pooled"], ["large"], scales=[1.0, 1.0, 2.0, 2.0]),
        node("Slice", ["large"], ["part"], starts=[0, 1], ends=[4, 5], axes=[2, 3]),
        node("AveragePool", ["part"], ["means"], kernel_shape=[2, 2]),
        node("Split", ["means"], ["left", "right"], axis=1),
        node("Sum", ["left", "right"], ["both"]),
        node("ReduceMean", ["both"], ["rows"], axes=[3], keepdims=0),
        node("Unsqueeze", ["rows"], ["more"], axes=[1]),
        node("Squeeze", ["more"], ["less"], axes=[1]),
        node("Dropout", ["less"], ["kept"]),
        node("Transpose", ["kept"], ["sequence"], perm=[2, 0, 1]),
        node("LSTM", ["sequence", "w", "r"], ["", "last"], hidden_size=4),
        node("Reshape", ["last", "shape"], ["flat"]),
        node("Gemm", ["flat", "matrix", "bias"], ["linear"], transB=1),
        node("PRelu", ["linear", "slope"], ["bent"]),
        node("ReduceSum", ["bent"], ["total"], axes=[1], keepdims=1),
        node("Sub", ["bent", "total"], ["scores"]),
        node("LogSoftmax", ["scores"], ["y"], axis=1),
    ]
    weights = {
        "kernel": normal(4, 2, 3, 3),
        "shift": normal(4),
        "scale": 1 + normal(4),
        "offset": normal(4),
        "mean": normal(4),
        "variance": 0.5 + np.abs(normal(4)),
        "w": normal(1, 16, 2),
        "r": normal(1, 16, 4),
        "shape": np.array([-1, 4]),
        "matrix": normal(5, 4),
        "bias": normal(5),
        "slope": normal(5),
    }
    return model(nodes, {"x": [2, 2, 6, 6]}, {"y": [2, 5]}, weights, opset=7)


def gradients(made, *inputs):
    """The outputs of the compiled model, and the gradients of the sum of their squares."""
    module = load_onnx(made)
    pc = pccompile.compile(module, inputs)
    y = pc(*inputs)
    y.square().sum().backward()
    return y.detach().numpy(), {n: p.grad for n, p in module.named_parameters()}


def test_every_operator_set():
    made, x = small_network(), normal(2, 2, 6, 6)
    _, wanted = gradients(made, torch.from_numpy(x))
    assert set(wanted) == {"kernel", "shift", "scale", "offset", "w", "r", "matrix", "bias", "slope"}
    for version in range(7, onnx.defs.onnx_opset_version() + 1):
        converted = version_converter.convert_version(made, version)
        assert converted.opset_import[0].version == version
        y, found = gradients(converted, torch.from_numpy(x))
        np.testing.assert_allclose(y, run(converted, x=x)[0], atol=1e-5)
        assert set(found) == set(wanted)
        assert all(torch.allclose(found[n], wanted[n], rtol=1e-4, atol=1e-5) for n in wanted), version


def test_weights_among_the_inputs():
    """Up to version 3 of the format, initializers had to be inputs as well."""
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "b"], ["y"])]
    weights = {"w": normal(3, 2), "b": normal(2)}
    made = model(nodes, {"x": ["n", 3], "w": [3, 2], "b": [2]}, {"y": ["n", 2]}, weights, opset=8)
    made.ir_version = 3
    x = normal(4, 3)
    y, found = gradients(made, torch.from_numpy(x))
    np.testing.assert_allclose(y, x @ weights["w"] + weights["b"], atol=1e-6)
    np.testing.assert_allclose(found["b"], 2 * y.sum(0), rtol=1e-5)
    assert set(found) == {"w", "b"}


def test_sizes_that_vary_along_several_axes():
    nodes = [
        node("Conv", ["x", "w"], ["h"], pads=[1, 1, 1, 1]),
        node("Relu", ["h"], ["a"]),
        node("GlobalAveragePool", ["a"], ["p"]),
        node("Flatten", ["p"], ["y"]),
    ]
    made = model(nodes, {"x": ["n", 3, "height", "width"]}, {"y": ["n", 2]}, {"w": normal(2, 3, 3, 3)})
    pc = pccompile.compile(made)
    for shape in ((1, 3, 5, 7), (3, 3, 8, 4)):
        x = normal(*shape)
        np.testing.assert_allclose(pc(torch.from_numpy(x)).detach().numpy(), run(made, x=x)[0], atol=1e-5)


X = RNG.standard_normal((60, 4))
CLASSES = (X[:, 0] + X[:, 1] ** 2 > 0.5).astype(int) + (X[:, 2] > 1)
NUMBERS = X @ np.array([1, 2, -1, 0.5]) + X[:, 0] ** 2
MACHINES = {
    "logistic": (LogisticRegression(), CLASSES),
    "scaled": (make_pipeline(StandardScaler(), LogisticRegression()), CLASSES),
    "classes by a perceptron": (MLPClassifier(hidden_layer_sizes=(8,), max_iter=30, activation="tanh"), CLASSES),
    "numbers by a perceptron": (MLPRegressor(hidden_layer_sizes=(8,), max_iter=30, activation="logistic"), NUMBERS),
    "support vectors": (SVR(), NUMBERS),
}


def converted(machine, target):
    """The fitted machine as an ONNX model, and what it computes: numbers, or the probabilities of classes."""
    from skl2onnx import to_onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        machine.fit(X, target)
        options = {"zipmap": False} if target is CLASSES else None
        made = to_onnx(machine, X[:1].astype(np.float32), options=options, target_opset=18)
    return made, (machine.predict_proba if target is CLASSES else machine.predict)


@pytest.mark.parametrize("name", MACHINES)
def test_gradients_of_what_scikit_learn_fits(name):
    made, predict = converted(*MACHINES[name])
    module = load_onnx(made, dtype=torch.float64)
    points = np.random.default_rng(1).standard_normal((3, 4))
    x = torch.from_numpy(points).requires_grad_()
    outputs = pccompile.compile(module, (x,))(x)
    y = outputs[1] if isinstance(outputs, tuple) else outputs
    np.testing.assert_allclose(y.detach().numpy().reshape(predict(points).shape), predict(points), rtol=1e-4, atol=1e-5)
    weights = np.random.default_rng(2).standard_normal(predict(points).shape)
    (found,) = torch.autograd.grad((y.reshape(weights.shape) * torch.from_numpy(weights)).sum(), x)
    for place in np.ndindex(points.shape):
        step = np.zeros_like(points)
        step[place] = 1e-5
        slope = ((predict(points + step) - predict(points - step)) * weights).sum() / 2e-5
        assert float(found[place]) == pytest.approx(slope, rel=1e-3, abs=1e-4)


def test_trees_have_no_gradient():
    made, predict = converted(RandomForestClassifier(3, max_depth=3), CLASSES)
    x = torch.from_numpy(X.astype(np.float32))
    np.testing.assert_allclose(load_onnx(made)(x)[1].numpy(), predict(X), atol=1e-5)
    with pytest.raises(CompileError, match=r"the derivative is 0 behind le at .TreeEnsembleClassifier"):
        pccompile.compile(load_onnx(made), (x.requires_grad_(),))


def quantised(tmp_path, form):
    """A convolutional network after onnxruntime's quantiser, and an input."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static

    class Samples(CalibrationDataReader):
        left = 4

        def get_next(self):
            self.left -= 1
            return {"x": normal(2, 3, 8, 8)} if self.left >= 0 else None

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 5))
    x, buffer = torch.randn(2, 3, 8, 8), io.BytesIO()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(network.eval(), (x,), buffer, dynamo=False, opset_version=17, input_names=["x"])
            plain, path = onnx.load_from_string(buffer.getvalue()), str(tmp_path / "quantised.onnx")
            if form == "dynamic":
                quantize_dynamic(plain, path)
            else:
                quantize_static(plain, path, Samples(), quant_format=QuantFormat[form])
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(path), x


def test_rounding_has_a_derivative_of_zero(tmp_path):
    """Nothing is sent through QuantizeLinear: not silently something else, as a straight-through estimate would be."""
    made, x = quantised(tmp_path, "QDQ")
    np.testing.assert_allclose(load_onnx(made)(x).numpy(), run(made, x=x.numpy())[0], atol=1e-5)
    with pytest.raises(CompileError, match="the model has no parameter that learns"):
        pccompile.compile(made, (x,))
    with pytest.raises(CompileError, match=r"the derivative is 0 behind .* at"):
        pccompile.compile(made, (x.requires_grad_(),))


def test_scales_of_whole_numbers_learn(tmp_path):
    made, x = quantised(tmp_path, "dynamic")
    pc = pccompile.compile(made, (x,))
    y = pc(x)
    np.testing.assert_allclose(y.detach().numpy(), run(made, x=x.numpy())[0], atol=1e-5)
    assert "Round" in str(pc.summary())
    assert "has a derivative of zero" in str(pc.summary())
    y.sum().backward()
    assert torch.equal(pc.get_parameter("4.bias").grad, torch.full((5,), 2.0))


def test_what_stands_for_quantised_layers_is_refused_by_name(tmp_path):
    made, _ = quantised(tmp_path, "QOperator")
    with pytest.raises(CompileError, match=r"com.microsoft.QGemm .*\n.*quantised arithmetic has no gradient"):
        load_onnx(made)


def test_the_derivative_by_a_scale():
    """What DequantizeLinear multiplies with is differentiable."""
    kinds = {"q": ([2, 3], TensorProto.INT8), "s": []}
    made = model([node("DequantizeLinear", ["q", "s"], ["y"])], kinds, {"y": [2, 3]}, opset=19)
    q, s = torch.tensor([[1, -2, 3], [4, 5, -6]], dtype=torch.int8), torch.tensor(0.5, requires_grad=True)
    pccompile.compile(made, (q, s))(q, s).sum().backward()
    assert s.grad == 5
