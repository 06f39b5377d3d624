"""Detection, text, images and optimisers: what the ONNX project's own cases leave out."""

from __future__ import annotations

import io

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import helper

import pccompile
import pccompile.onnx_backend as backend
from onnx_frontend.build import model
from onnx_frontend.runtime import agree
from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx import load_onnx

RNG = np.random.default_rng(0)
node = helper.make_node


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("centred", [0, 1])
def test_suppression_of_overlapping_boxes(centred):
    boxes, scores = RNG.random((2, 40, 4), dtype=np.float32), RNG.random((2, 3, 40), dtype=np.float32)
    inputs = [boxes, scores, np.array([7]), np.float32([0.2]), np.float32([0.3])]
    agree("NonMaxSuppression", inputs, center_point_box=centred)
    agree("NonMaxSuppression", inputs[:4])


@pytest.mark.parametrize("ratio, how, frame", [(0, "avg", "half_pixel"), (2, "avg", "output_half_pixel")])
def test_pooling_of_regions(ratio, how, frame):
    corner, size = 6 * RNG.random((5, 2), dtype=np.float32) - 1, 9 * RNG.random((5, 2), dtype=np.float32)
    rois, batch = np.concatenate([corner, corner + size], 1), np.array([0, 1, 1, 0, 1])
    form = {"output_height": 3, "output_width": 2, "spatial_scale": 0.7}
    agree(
        "RoiAlign",
        [draw(2, 3, 8, 9), rois, batch],
        mode=how,
        sampling_ratio=ratio,
        coordinate_transformation_mode=frame,
        **form,
    )


def test_regions_can_be_traced_where_their_sampling_is_fixed():
    made = model(
        [node("RoiAlign", ["x", "rois", "batch"], ["y"], sampling_ratio=2, output_height=2, output_width=2)],
        {"x": [1, 2, 6, 6], "rois": ["n", 4], "batch": (["n"], onnx.TensorProto.INT64)},
        {"y": None},
        opset=20,
    )
    module = load_onnx(made)
    inputs = torch.randn(1, 2, 6, 6), torch.tensor([[0.0, 0, 3, 3], [1, 2, 5, 5]]), torch.zeros(2, dtype=torch.int64)
    program = torch.export.export(module, inputs, strict=False)
    torch.testing.assert_close(program.module()(*inputs), module(*inputs))


@pytest.mark.parametrize("mode", ["TF", "IDF", "TFIDF"])
def test_weights_of_n_grams(mode):
    words = ["a", "b", "c"]
    form = {"ngram_counts": [0, 3], "ngram_indexes": [0, 2, 1, 4, 3], "min_gram_length": 1, "max_gram_length": 2}
    pool = {"pool_strings": [*words, "a", "b", "b", "c"], "max_skip_count": 1, "weights": [0.5, 2.0, 1.0, 3.0, 0.25]}
    agree("TfIdfVectorizer", [RNG.choice(words, (4, 9)).astype(object)], mode=mode, **form, **pool)


def test_patches_in_one_and_three_dimensions():
    x = draw(2, 6, 4)
    (y,) = backend.run_node(node("Col2Im", ["x", "i", "b"], ["y"], strides=[2]), [x, np.array([9]), np.array([3])])
    flat = F.fold(torch.from_numpy(x), (1, 9), (1, 3), stride=(1, 2))
    assert np.allclose(y, flat.squeeze(2).numpy())
    x = draw(1, 8, 27)
    (y,) = backend.run_node(node("Col2Im", ["x", "i", "b"], ["y"]), [x, np.array([4, 4, 4]), np.array([2, 2, 2])])
    image = torch.zeros(1, 1, 4, 4, 4, requires_grad=True)
    patches = image.unfold(2, 2, 1).unfold(3, 2, 1).unfold(4, 2, 1).flatten(5).flatten(2, 4).squeeze(1).transpose(1, 2)
    (expected,) = torch.autograd.grad(patches, image, torch.from_numpy(x))
    assert np.allclose(y, expected.numpy(), atol=1e-6)


def test_images_that_are_none():
    with pytest.raises(CompileError, match="the image cannot be decoded"):
        backend.run_node(node("ImageDecoder", ["x"], ["y"]), [np.zeros(10, np.uint8)])


def test_images():
    image = pytest.importorskip("PIL.Image")
    pixels = RNG.integers(0, 256, (4, 5, 3)).astype(np.uint8)
    file = io.BytesIO()
    image.fromarray(pixels).save(file, "png")
    data = np.frombuffer(file.getvalue(), np.uint8)
    for layout, expected in (("RGB", pixels), ("BGR", pixels[:, :, ::-1])):
        (y,) = backend.run_node(node("ImageDecoder", ["x"], ["y"], pixel_format=layout), [data])
        assert np.array_equal(y, expected)


def derivative():
    """y = a² b, its derivatives with respect to a and b, and the derivative of the first with respect to a."""
    training = "ai.onnx.preview.training"
    nodes = [
        node("Mul", ["a", "a"], ["c"]),
        node("Mul", ["c", "b"], ["y"]),
        node("Gradient", ["a", "b"], ["da", "db"], domain=training, xs=["a", "b"], y="y"),
        node("Gradient", ["a"], ["daa"], domain=training, xs=["a"], zs=["b"], y="da"),
    ]
    nodes[3].input.append("b")
    return model(
        nodes,
        {"a": [2], "b": [2]},
        {n: [2] for n in ("y", "da", "db", "daa")},
        extra_opsets=[helper.make_opsetid(training, 1)],
    )


def test_derivatives_within_a_graph():
    a, b = np.float32([1, 2]), np.float32([3, 5])
    y, da, db, daa = backend.run_model(derivative(), [a, b])
    for got, expected in ((y, a * a * b), (da, 2 * a * b), (db, a * a), (daa, 2 * b)):
        assert np.allclose(got, expected)


def test_derivatives_within_a_graph_are_differentiable_but_not_traced():
    module = load_onnx(derivative())
    a, b = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([3.0, 5.0])
    module(a, b)[1].sum().backward()
    assert torch.equal(a.grad, 2 * b)
    with pytest.raises(CompileError, match="Gradient takes derivatives inside the model"):
        torch.export.export(module, (torch.ones(2), torch.ones(2)), strict=False)


@pytest.mark.parametrize("name, states", [("Adagrad", 1), ("Adam", 2), ("Momentum", 1)])
def test_steps_of_optimisers_are_those_of_torch(name, states):
    """From zero states; torch's Adam counts its first step as 1."""
    x, g, rate, count = draw(4), draw(4), 0.1, int(name == "Adam")
    free = torch.from_numpy(x.copy()).requires_grad_()
    free.grad = torch.from_numpy(g)
    parameters = {"Adagrad": {"eps": 1e-6}, "Adam": {"eps": 1e-8}, "Momentum": {"momentum": 0.9}}[name]
    {"Adagrad": torch.optim.Adagrad, "Adam": torch.optim.Adam, "Momentum": torch.optim.SGD}[name](
        [free], lr=rate, **parameters
    ).step()
    attributes = {
        "Adagrad": {"epsilon": 1e-6},
        "Adam": {"alpha": 0.9, "beta": 0.999, "epsilon": 1e-8},
        "Momentum": {"alpha": 0.9, "beta": 1.0, "mode": "standard", "norm_coefficient": 0.0},
    }[name]
    inputs = [np.float32(rate), np.int64(count), x, g, *[np.zeros(4, np.float32)] * states]
    made = node(
        name,
        [f"i{i}" for i in range(len(inputs))],
        [f"o{i}" for i in range(1 + states)],
        domain="ai.onnx.preview.training",
        **attributes,
    )
    assert np.allclose(backend.run_node(made, inputs)[0], free.detach().numpy(), atol=1e-5)


def test_gradients_of_moved_taps():
    """Places between pixels, some outside of the image: finite differences in float64."""
    made = model(
        [node("DeformConv", ["x", "w", "offset", "b", "mask"], ["y"], kernel_shape=[2, 2], pads=[1, 0, 1, 0])],
        {"x": [1, 2, 3, 4], "w": [3, 2, 2, 2], "offset": [1, 8, 4, 3], "b": [3], "mask": [1, 4, 4, 3]},
        {"y": [1, 3, 4, 3]},
        opset=19,
    )
    module = load_onnx(made, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(t.shape, dtype=torch.float64, generator=generator).requires_grad_() for t in module.input_types
    ]
    assert torch.autograd.gradcheck(module, inputs)
    pc = pccompile.compile(module, tuple(inputs))
    expected = torch.autograd.grad(module(*inputs).square().sum(), inputs)
    found = torch.autograd.grad(pc(*inputs).square().sum(), inputs)
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted)
