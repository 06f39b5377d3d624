"""Random ONNX models that are valid, from many operators: a chain of nodes that each read what was made before."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

UNARY = [
    "Abs", "Acos", "Asinh", "Atan", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu",
    "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "LogSoftmax", "Mish", "Neg", "Relu", "Round", "Selu",
    "Sigmoid", "Sign", "Sin", "Sinh", "Softmax", "Softplus", "Softsign", "Sqrt", "Tan", "Tanh", "ThresholdedRelu",
    "Hardmax", "IsNaN", "Not", "Size", "Shape", "NonZero", "Dropout", "GlobalAveragePool", "GlobalMaxPool",
    "LpNormalization", "Flatten",
]  # fmt: skip
BINARY = [
    "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mean", "Sum", "PRelu", "Greater", "Less", "Equal", "Mod",
    "BitShift",
]  # fmt: skip
REDUCE = [
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum",
    "ReduceLogSumExp",
]  # fmt: skip
Draw = random.Random


class Model:
    """A graph that grows: `values` holds the floating-point values that nodes may read."""

    def __init__(self, draw: Draw, image: bool) -> None:
        self.draw = draw
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.shape = (2, 3, 6, 6) if image else (2, 4)
        self.value = "x"
        self.count = 0

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def weight(self, *shape: int) -> str:
        array = np.random.default_rng(self.draw.randrange(2**32)).standard_normal(shape).astype(np.float32)
        return self.constant(array, "w")

    def constant(self, array: object, stem: str = "c") -> str:
        name = self.name(stem)
        made = np.asarray(array)
        if self.draw.random() < 0.2:
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(made)))
        else:
            self.weights.append(numpy_helper.from_array(made, name))
        return name

    def node(self, op: str, inputs: list[str], outputs: int = 1, domain: str = "", **attributes: object) -> list[str]:
        names = [self.name("v") for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, domain=domain, **attributes))
        return names

    def put(self, op: str, *inputs: str, domain: str = "", **attributes: object) -> None:
        (self.value,) = self.node(op, [self.value, *inputs], domain=domain, **attributes)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def layer(m: Model) -> None:
    """One or a few nodes of a random kind behind the last value."""
    m.draw.choice(IMAGE if len(m.shape) == 4 else FLAT)(m)


def unary(m: Model) -> None:
    m.put(m.draw.choice(UNARY))


def binary(m: Model) -> None:
    m.put(m.draw.choice(BINARY), m.weight(m.shape[-1]))


def reduced(m: Model) -> None:
    m.put(m.draw.choice(REDUCE), m.constant(ints(-1)), keepdims=m.draw.randrange(2))


def dense(m: Model) -> None:
    if m.draw.random() < 0.5:
        m.put("MatMul", m.weight(m.shape[-1], 3))
        m.shape = (*m.shape[:-1], 3)
    else:
        m.put("Gemm", m.weight(5, m.shape[-1]), m.weight(5), transB=1)
        m.shape = (m.shape[0], 5)


def moved(m: Model) -> None:
    kind = m.draw.randrange(12)
    size = m.shape[-1]
    if kind == 0:
        m.put("Transpose", perm=[1, 0])
        m.put("Transpose", perm=[1, 0])
    elif kind == 1:
        m.put("Reshape", m.constant(ints(-1, size)))
    elif kind == 2:
        m.put("Concat", m.weight(*m.shape), axis=1)
        m.shape = (m.shape[0], 2 * size)
    elif kind == 3:
        m.put("Slice", m.constant(ints(0)), m.constant(ints(2)), m.constant(ints(1)))
        m.shape = (m.shape[0], 2)
    elif kind == 4:
        m.put("Pad", m.constant(ints(0, 1, 0, 1)), mode=m.draw.choice(["constant", "edge", "reflect", "wrap"]))
        m.shape = (m.shape[0], size + 2)
    elif kind == 5:
        m.put("Tile", m.constant(ints(1, 2)))
        m.shape = (m.shape[0], 2 * size)
    elif kind == 6:
        m.put("Expand", m.constant(ints(*m.shape)))
    elif kind == 7:
        m.put("Gather", m.constant(ints(0, 1, 0)), axis=1)
        m.shape = (m.shape[0], 3)
    elif kind == 8:
        m.value = m.node("TopK", [m.value, m.constant(ints(1))], 2, axis=-1)[0]
        m.shape = (m.shape[0], 1)
    elif kind == 9:
        m.put("CumSum", m.constant(np.array(1, dtype=np.int64)))
    elif kind == 10:
        m.value = m.node("Split", [m.value], 2, axis=0, num_outputs=2)[0]
        m.shape = (1, size)
    else:
        m.put("Cast", to=m.draw.choice([1, 10, 11, 7]))
        m.put("Cast", to=1)


def computed(m: Model) -> None:
    """Sizes that the graph computes itself."""
    (shape,) = m.node("Shape", [m.value])
    kind = m.draw.randrange(4)
    if kind == 0:
        (filled,) = m.node("ConstantOfShape", [shape], value=numpy_helper.from_array(np.array([0.5], dtype=np.float32)))
        m.put("Add", filled)
    elif kind == 1:
        zero, one = m.constant(np.array(0, dtype=np.int64)), m.constant(np.array(1, dtype=np.int64))
        (size,) = m.node("Gather", [shape, one])
        (numbers,) = m.node("Range", [zero, size, one])
        (floats,) = m.node("Cast", [numbers], to=1)
        m.put("Mul", floats)
    elif kind == 2:
        m.put("Reshape", shape)
    else:
        indices, depth = m.constant(ints(0, 1)), m.constant(ints(m.shape[-1]))
        (hot,) = m.node("OneHot", [indices, depth, m.constant(np.array([0, 1], dtype=np.float32))])
        if m.shape[0] == 2:
            m.put("Add", hot)


def control(m: Model) -> None:
    info = helper.make_tensor_value_info
    kind = m.draw.randrange(3)
    if kind == 0:
        branches = [
            helper.make_graph([helper.make_node(op, [m.value], [o])], o, [], [info(o, 1, None)])
            for op, o in (("Relu", m.name("b")), ("Neg", m.name("b")))
        ]
        test = m.constant(np.array(m.draw.random() < 0.5))
        (m.value,) = m.node("If", [test], then_branch=branches[0], else_branch=branches[1])
    elif kind == 1:
        names = [m.name("l") for _ in range(5)]
        body = helper.make_graph(
            [helper.make_node("Tanh", [names[2]], [names[3]]), helper.make_node("Identity", [names[1]], [names[4]])],
            "body", [info(names[0], 7, []), info(names[1], 9, []), info(names[2], 1, None)],
            [info(names[4], 9, []), info(names[3], 1, None)],
        )  # fmt: skip
        trips = m.constant(np.array(3, dtype=np.int64))
        (m.value,) = m.node("Loop", [trips, "", m.value], body=body)
    else:
        names = [m.name("s") for _ in range(4)]
        body = helper.make_graph(
            [helper.make_node("Add", names[:2], [names[2]]), helper.make_node("Identity", [names[2]], [names[3]])],
            "body", [info(n, 1, None) for n in names[:2]], [info(n, 1, None) for n in names[2:]],
        )  # fmt: skip
        state = m.weight(m.shape[-1])
        m.value = m.node("Scan", [state, m.value], 2, body=body, num_scan_inputs=1)[1]


def words(m: Model) -> None:
    text = m.constant(np.array(["some", "words"], dtype=object))
    kind = m.draw.randrange(3)
    if kind == 0:
        (text,) = m.node("StringConcat", [text, text])
    if kind < 2:
        (found,) = m.node("RegexFullMatch", [text], pattern=m.draw.choice(["(some)+", ".*", "[a-z]{3,5}"]))
        (scale,) = m.node("Cast", [found], to=1)
        (scale,) = m.node("ReduceSum", [scale], keepdims=0)
    else:
        (scale,) = m.node("TfIdfVectorizer", [text], max_gram_length=2, min_gram_length=1, max_skip_count=1, mode="TF",
                          ngram_counts=[0], ngram_indexes=[0], pool_strings=["some"])  # fmt: skip
    m.put("Mul", scale)


def called(m: Model) -> None:
    """A function of the model's own."""
    if not m.functions:
        inner = [helper.make_node("Tanh", ["a"], ["t"]), helper.make_node("Mul", ["t", "a"], ["b"])]
        m.functions.append(helper.make_function("own", "F", ["a"], ["b"], inner, [helper.make_opsetid("", 20)]))
    m.put("F", domain="own")


def learned(m: Model) -> None:
    size, kind = m.shape[-1], m.draw.randrange(4)
    if kind == 0:
        m.put("Scaler", domain="ai.onnx.ml", offset=[0.5] * size, scale=[2.0] * size)
    elif kind == 1:
        m.put("Normalizer", domain="ai.onnx.ml", norm="L2")
    elif kind == 2:
        m.put("LinearRegressor", domain="ai.onnx.ml", coefficients=[0.5] * size, intercepts=[1.0], targets=1)
        m.shape = (m.shape[0], 1)
    else:
        m.put("TreeEnsembleRegressor", domain="ai.onnx.ml", n_targets=1, nodes_treeids=[0, 0, 0],
              nodes_nodeids=[0, 1, 2], nodes_featureids=[0, 0, 0], nodes_values=[0.5, 0.0, 0.0],
              nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0],
              target_treeids=[0, 0], target_nodeids=[1, 2], target_ids=[0, 0], target_weights=[1.0, 2.0])  # fmt: skip
        m.shape = (m.shape[0], 1)


def recurrent(m: Model) -> None:
    op, gates = m.draw.choice([("LSTM", 4), ("GRU", 3), ("RNN", 1)])
    size = m.shape[-1]
    m.put("Unsqueeze", m.constant(ints(0)))
    w, r = m.weight(1, gates * 3, size), m.weight(1, gates * 3, 3)
    m.value = m.node(op, [m.value, w, r], 1, hidden_size=3, clip=m.draw.choice([0.0, 1.0]))[0]
    m.put("Reshape", m.constant(ints(-1, 3)))
    m.shape = (m.shape[0], 3)


def einsum(m: Model) -> None:
    m.put("Einsum", m.weight(m.shape[-1], 3), equation="ij,jk->ik")
    m.shape = (m.shape[0], 3)


def listed(m: Model) -> None:
    (items,) = m.node("SplitToSequence", [m.value], axis=1)
    (m.value,) = m.node("ConcatFromSequence", [items], axis=1)


def convolved(m: Model) -> None:
    channels = m.shape[1]
    if m.draw.random() < 0.6:
        m.put("Conv", m.weight(4, channels, 3, 3), m.weight(4), pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    else:
        m.put("ConvTranspose", m.weight(channels, 4, 3, 3), pads=[1, 1, 1, 1], strides=[1, 1])
    m.shape = (m.shape[0], 4, *m.shape[2:])


def pooled(m: Model) -> None:
    op = m.draw.choice(["MaxPool", "AveragePool", "LpPool"])
    m.put(op, kernel_shape=[2, 2], strides=[1, 1])
    m.shape = (*m.shape[:2], m.shape[2] - 1, m.shape[3] - 1)
    if m.shape[2] < 3:
        flattened(m)


def normed(m: Model) -> None:
    channels = m.shape[1]
    kind = m.draw.randrange(4)
    scale, shift = m.weight(channels), m.weight(channels)
    if kind == 0:
        m.put("BatchNormalization", scale, shift, m.weight(channels), m.constant(np.ones(channels, np.float32)))
    elif kind == 1:
        m.put("InstanceNormalization", scale, shift)
    elif kind == 2:
        m.put("GroupNormalization", scale, shift, num_groups=1)
    else:
        m.put("LRN", size=3)


def resized(m: Model) -> None:
    if m.shape[2] > 12:
        return flattened(m)
    scales = m.constant(np.array([1, 1, 2, 2], dtype=np.float32))
    m.put("Resize", "", scales, mode=m.draw.choice(["nearest", "linear", "cubic"]))
    m.shape = (*m.shape[:2], 2 * m.shape[2], 2 * m.shape[3])


def flattened(m: Model) -> None:
    m.put("Flatten", axis=1)
    m.shape = (m.shape[0], int(np.prod(m.shape[1:])))


FLAT: list[Callable[[Model], None]] = [
    unary, unary, unary, binary, binary, reduced, dense, dense, dense, moved, moved, moved, computed, control, words,
    called, learned, recurrent, einsum, listed,
]  # fmt: skip
IMAGE: list[Callable[[Model], None]] = [unary, convolved, convolved, pooled, normed, normed, resized, flattened, called]


def valid(draw: Draw) -> onnx.ModelProto:
    """A model of one to eight layers. A few do not fit together, as unary operators may change shapes and types."""
    m = Model(draw, draw.random() < 0.3)
    shape: list[object] = list(m.shape)
    if draw.random() < 0.5:
        shape[0] = "batch"
    for _ in range(draw.randint(1, 8)):
        layer(m)
    dense_end = draw.random() < 0.5 and len(m.shape) == 2
    if dense_end:
        dense(m)
    graph = helper.make_graph(
        m.nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(m.value, TensorProto.FLOAT, None)], m.weights,
    )  # fmt: skip
    opsets = [helper.make_opsetid(d, v) for d, v in (("", 21), ("ai.onnx.ml", 3), ("own", 1))]
    return helper.make_model(graph, opset_imports=opsets, functions=m.functions, ir_version=10)
