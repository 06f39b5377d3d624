"""Operators of com.microsoft: outputs against onnxruntime, gradients against its central differences."""

from __future__ import annotations

import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

import pccompile
from onnx_frontend.build import model
from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx import load_onnx

RNG = np.random.default_rng(0)
BATCH, TIME, HEADS, SIZE = 2, 4, 2, 16
WIDTH = HEADS * SIZE


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def whole(*numbers, kind=np.int32):
    return np.array(numbers, kind)


def angles(count=16, pairs=SIZE // 2):
    turn = np.outer(np.arange(count), 0.5 ** np.arange(pairs)).astype(np.float32)
    return np.cos(turn), np.sin(turn)


X, SKIP = normal(BATCH, TIME, WIDTH), normal(BATCH, TIME, WIDTH)
SCALE, SHIFT, BIAS = normal(WIDTH), normal(WIDTH), normal(WIDTH)
Q, K, V = normal(BATCH, TIME, WIDTH), normal(BATCH, 5, WIDTH), normal(BATCH, 5, WIDTH)
JOINT, JOINT_BIAS = normal(WIDTH, 3 * WIDTH), normal(3 * WIDTH)
PAST = normal(BATCH, HEADS, 3, SIZE)
COS, SIN = angles()
IDS = whole([1, 4, 2, 0], [3, 3, 1, 2])
HELD = {"num_heads": HEADS}
GROUPS = {"num_heads": 2 * HEADS, "kv_num_heads": HEADS}
MANY = normal(BATCH, TIME, 2 * WIDTH)
RAW = whole([1, 1, 1, 0], [1, 1, 0, 0])
PREFIX = whole(3, 5), np.array(6, np.int32)

CASES = {
    "gelu": ("Gelu", [X], {}),
    "fast gelu": ("FastGelu", [X], {}),
    "fast gelu with bias": ("FastGelu", [X, BIAS], {}),
    "quick gelu": ("QuickGelu", [X], {"alpha": 1.5}),
    "bias gelu": ("BiasGelu", [X, BIAS], {}),
    "product, transposed": (
        "FusedMatMul",
        [normal(2, 3, 4), normal(2, 5, 3)],
        {"transA": 1, "transB": 1, "alpha": 0.5},
    ),
    "product, batches turned": ("FusedMatMul", [normal(3, 2, 4), normal(2, 4, 5)], {"transBatchA": 1}),
    "product, all turned": ("FusedMatMul", [normal(3, 2, 5, 4), normal(2, 5, 3, 6)], {"transBatchA": 1, "transA": 1}),
    "gemm": ("FusedGemm", [normal(3, 4), normal(5, 4), normal(5)], {"transB": 1, "activation": "Relu"}),
    "gemm, leaky": ("FusedGemm", [normal(3, 4), normal(4, 5)], {"activation": "LeakyRelu", "activation_alpha": 0.2}),
    "convolution": ("FusedConv", [normal(2, 3, 6, 6), normal(4, 3, 3, 3), normal(4)], {"activation": "Relu"}),
    "convolution, clipped": (
        "FusedConv",
        [normal(2, 3, 6, 6), normal(4, 3, 3, 3)],
        {"activation": "Clip", "activation_params": [-1.0, 1.0]},
    ),
    "convolution, hard": (
        "FusedConv",
        [normal(2, 3, 6, 6), normal(4, 3, 3, 3)],
        {"activation": "HardSigmoid", "activation_params": [0.2, 0.5]},
    ),
    "convolution, residual": (
        "FusedConv",
        [normal(2, 3, 6, 6), normal(4, 3, 3, 3), normal(4), normal(2, 4, 4, 4)],
        {"activation": "Relu"},
    ),
    "root mean square": ("SimplifiedLayerNormalization", [X, SCALE], {"axis": -1, "domain": ""}),
    "in an old operator set": ("LayerNormalization", [X, SCALE, SHIFT], {"axis": -1, "domain": "", "opset": 13}),
    "skip": ("SkipLayerNormalization", [X, SKIP, SCALE, SHIFT, BIAS], {"epsilon": 1e-5, "outputs": 4}),
    "skip, plain": ("SkipLayerNormalization", [X, SKIP, SCALE], {}),
    "skip, simplified": ("SkipSimplifiedLayerNormalization", [X, SKIP, SCALE, BIAS], {"epsilon": 1e-5, "outputs": 4}),
    "embedding": (
        "EmbedLayerNormalization",
        [IDS, whole([0, 0, 1, 1], [0, 1, 1, 1]), normal(5, 8), normal(4, 8), normal(2, 8), normal(8), normal(8), RAW],
        {"epsilon": 1e-5, "outputs": 3},
    ),
    "embedding, plain": (
        "EmbedLayerNormalization",
        [IDS, None, normal(5, 8), normal(4, 8), None, normal(8), normal(8)],
        {"outputs": 2},
    ),
    "attention": ("Attention", [X, JOINT, JOINT_BIAS], HELD),
    "attention, raw mask": ("Attention", [X, JOINT, JOINT_BIAS, RAW], HELD),
    "attention, ends": ("Attention", [X, JOINT, JOINT_BIAS, whole(4, 2)], HELD),
    "attention, starts": ("Attention", [X, JOINT, JOINT_BIAS, whole(4, 3, 1, 0)], HELD),
    "attention, full mask": (
        "Attention",
        [X, JOINT, JOINT_BIAS, np.tril(np.ones((BATCH, TIME, TIME), np.int32))],
        HELD,
    ),
    "attention, causal": ("Attention", [X, JOINT, JOINT_BIAS], dict(unidirectional=1, scale=0.3, **HELD)),
    "attention, sizes": ("Attention", [X, normal(WIDTH, 72), normal(72)], dict(qkv_hidden_sizes=[32, 32, 8], **HELD)),
    "attention, cache": (
        "Attention",
        [X, JOINT, JOINT_BIAS, None, np.stack([PAST, PAST[::-1]])],
        dict(unidirectional=1, outputs=2, **HELD),
    ),
    "heads": ("MultiHeadAttention", [Q, K, V], HELD),
    "heads, bias": ("MultiHeadAttention", [Q, K, V, normal(3 * WIDTH)], HELD),
    "heads, ends": ("MultiHeadAttention", [Q, K, V, None, whole(5, 2)], HELD),
    "heads, mask": ("MultiHeadAttention", [Q, K, V, None, whole([1, 1, 1, 1, 0], [1, 0, 0, 0, 0])], HELD),
    "heads, added": ("MultiHeadAttention", [Q, K, V, None, None, normal(BATCH, HEADS, TIME, 5)], HELD),
    "heads, causal": ("MultiHeadAttention", [Q, X, SKIP], dict(unidirectional=1, scale=0.2, **HELD)),
    "heads, split keys": (
        "MultiHeadAttention",
        [Q, normal(BATCH, HEADS, 5, SIZE), normal(BATCH, HEADS, 5, SIZE)],
        HELD,
    ),
    "heads, cache": ("MultiHeadAttention", [Q, K, V, None, None, None, PAST, PAST], dict(outputs=3, **HELD)),
    "turned": ("RotaryEmbedding", [X, whole([0, 1, 2, 3], [4, 5, 6, 7], kind=np.int64), COS, SIN], {}),
    "turned from": ("RotaryEmbedding", [X, whole(3, kind=np.int64), COS, SIN], {"interleaved": 1}),
    "turned by heads": ("RotaryEmbedding", [normal(BATCH, HEADS, TIME, SIZE), whole(0, kind=np.int64), COS, SIN], {}),
    "turned in part": (
        "RotaryEmbedding",
        [X, whole(0, kind=np.int64), *angles(16, 4)],
        {"rotary_embedding_dim": 8, "num_heads": HEADS},
    ),
    "groups, prompt": (
        "GroupQueryAttention",
        [MANY, X, SKIP, None, None, whole(3, 3), np.array(TIME, np.int32)],
        dict(outputs=3, **GROUPS),
    ),
    "groups, turned": (
        "GroupQueryAttention",
        [MANY, X, SKIP, None, None, whole(3, 3), np.array(TIME, np.int32), COS, SIN],
        dict(do_rotary=1, outputs=3, **GROUPS),
    ),
    "groups, packed": (
        "GroupQueryAttention",
        [np.concatenate([MANY, X, SKIP], -1), None, None, None, None, whole(3, 3), np.array(TIME, np.int32)],
        dict(softcap=2.0, scale=0.3, outputs=3, **GROUPS),
    ),
    "groups, window": (
        "GroupQueryAttention",
        [MANY, X, SKIP, None, None, whole(3, 3), np.array(TIME, np.int32)],
        dict(local_window_size=2, outputs=3, **GROUPS),
    ),
    "groups, one more": (
        "GroupQueryAttention",
        [
            MANY[:, :1],
            X[:, :1],
            SKIP[:, :1],
            normal(BATCH, HEADS, 5, SIZE),
            normal(BATCH, HEADS, 5, SIZE),
            *PREFIX,
            COS,
            SIN,
        ],
        dict(do_rotary=1, rotary_interleaved=1, outputs=3, **GROUPS),
    ),
}


def built(op_type, arrays, options):
    """The model of one node, and its inputs by name."""
    options = dict(options)
    domain, count = options.pop("domain", "com.microsoft"), options.pop("outputs", 1)
    opset = options.pop("opset", 17)
    names = ["" if a is None else f"i{i}" for i, a in enumerate(arrays)]
    skipped = {
        ("SkipLayerNormalization", 4): ["o0", "", "", "o3"],
        ("SkipSimplifiedLayerNormalization", 4): ["o0", "", "", "o3"],
    }
    outputs = skipped.get((op_type, count), [f"o{i}" for i in range(count)])
    feed = {n: a for n, a in zip(names, arrays, strict=True) if n}
    kinds = {n: (list(a.shape), helper.np_dtype_to_tensor_dtype(a.dtype)) for n, a in feed.items()}
    results = {
        o: (None, TensorProto.INT32 if (op_type, o) == ("EmbedLayerNormalization", "o1") else TensorProto.FLOAT)
        for o in outputs
        if o
    }
    node = helper.make_node(op_type, names, outputs, domain=domain, **options)
    return model([node], kinds, results, opset=opset, extra_opsets=[helper.make_opsetid("com.microsoft", 1)]), feed


def session_of(made):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(made.SerializeToString(), options)


@pytest.mark.parametrize("name", CASES)
def test_like_onnxruntime(name):
    made, feed = built(*CASES[name])
    session = session_of(made)
    expected = session.run(None, feed)
    fixed = {n: feed[n] for n, t in zip(feed, feed.values(), strict=True) if t.ndim == 0}
    module = load_onnx(made, constants=fixed, dtype=torch.float64)
    inputs = {}
    for entry in module.input_types:
        tensor = torch.from_numpy(feed[entry.name])
        inputs[entry.name] = tensor.double().requires_grad_() if tensor.is_floating_point() else tensor
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pc = pccompile.compile(module, tuple(inputs.values()))
    found = pc(*inputs.values())
    found = found if isinstance(found, tuple) else (found,)
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got.detach().numpy(), wanted, rtol=2e-4, atol=2e-5)
    weights = [RNG.standard_normal(o.shape) for o in expected]
    total = sum((f * torch.from_numpy(w)).sum() for f, w in zip(found, weights, strict=True) if f.is_floating_point())
    floats = {n: t for n, t in inputs.items() if t.requires_grad}
    gradients = dict(zip(floats, torch.autograd.grad(total, list(floats.values()), allow_unused=True), strict=True))

    def at(moved):
        results = session.run(None, feed | moved)
        return sum(
            (r.astype(np.float64) * w).sum() for r, w in zip(results, weights, strict=True) if r.dtype.kind == "f"
        )

    for label, gradient in gradients.items():
        direction = RNG.standard_normal(feed[label].shape).astype(np.float32)
        direction /= np.linalg.norm(direction)
        step = np.float32(2e-2)
        slope = (at({label: feed[label] + step * direction}) - at({label: feed[label] - step * direction})) / (2 * step)
        assert gradient is not None
        own = float((gradient.numpy() * direction).sum())
        assert own == pytest.approx(slope, rel=0.02, abs=0.02 * float(gradient.norm()) + 2e-3), label


def test_statistics_that_onnxruntime_leaves_out_are_refused():
    node = helper.make_node("SkipLayerNormalization", ["x", "s", "g"], ["y", "m"], domain="com.microsoft")
    shapes = {"x": [2, 4], "s": [2, 4], "g": [4]}
    made = model([node], shapes, {"y": [2, 4], "m": [2, 1]}, extra_opsets=[helper.make_opsetid("com.microsoft", 1)])
    module = load_onnx(made)
    with pytest.raises(CompileError, match="statistics of SkipLayerNormalization"):
        module(torch.zeros(2, 4), torch.zeros(2, 4), torch.ones(4))
