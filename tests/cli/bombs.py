"""Small ONNX files that ask for too much, or are wrong in a way that once went unnoticed: a name and a model each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper, numpy_helper

N = helper.make_node
HUGE = 10**12


def array(name: str, values: object, dtype: object = np.int64) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def model(nodes, weights=(), functions=(), domains=(), sizes=(2, 4), kind=T.FLOAT, opset=21, **more) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes), "g", [helper.make_tensor_value_info("x", kind, sizes)],
        [helper.make_tensor_value_info("y", T.FLOAT, None)], list(weights), **more,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)


def scaled(nodes, result: str, weights=(), code: int = 1) -> onnx.ModelProto:
    """A model whose output is its input times the sum of `result`."""
    tail = [
        N("Cast", [result], ["f"], to=code),
        N("ReduceSum", ["f"], ["r"], keepdims=0),
        N("Mul", ["x", "r"], ["y"]),
    ]
    return model([*nodes, *tail], weights)


def doubled(op: str, count: int, start: onnx.TensorProto, **attributes: object) -> onnx.ModelProto:
    nodes = [N(op, [f"c{i}"] * 2, [f"c{i + 1}"], **attributes) for i in range(count)]
    return scaled(nodes, f"c{count}", [start])


def strings(op: str, pattern: str = "b", count: int = 0, start: str = "a" * 40) -> onnx.ModelProto:
    nodes = [N(op, [f"c{i}"] * 2, [f"c{i + 1}"]) for i in range(count)]
    match = N("RegexFullMatch", [f"c{count}"], ["m"], pattern=pattern)
    return scaled([*nodes, match], "m", [numpy_helper.from_array(np.array([start], dtype=object), "c0")])


def body(nodes, state: int = 1) -> onnx.GraphProto:
    info = helper.make_tensor_value_info
    return helper.make_graph(
        [*nodes, N("Identity", ["going"], ["on"])], "body",
        [info("i", T.INT64, []), info("going", T.BOOL, []), *(info(f"s{k}", T.FLOAT, None) for k in range(state))],
        [info("on", T.BOOL, []), *(info(f"t{k}", T.FLOAT, None) for k in range(state))],
    )  # fmt: skip


def looped(trips: int, nodes=None, condition: str = "") -> onnx.ModelProto:
    inner = body(nodes or [N("Tanh", ["s0"], ["t0"])])
    return model([N("Loop", ["trips", condition, "x"], ["y"], body=inner)],
                 [array("trips", trips), array("true", True, np.bool_)])  # fmt: skip


def nested_loops(depth: int) -> onnx.ModelProto:
    nodes = [N("Tanh", ["s0"], ["t0"])]
    for level in range(depth):
        inner = body(nodes)
        renamed = helper.make_graph(inner.node, f"b{level}", inner.input, inner.output)
        nodes = [N("Loop", ["trips", "", "s0"], ["t0"], body=renamed)]
    nodes[0].input[2], nodes[0].output[0] = "x", "y"
    return model(nodes, [array("trips", 300)])


def functions(count: int, calls: Callable[[int], list[str]]) -> onnx.ModelProto:
    own = helper.make_opsetid("own", 1)
    made = []
    for i in range(count):
        steps, value = [], "a"
        for k, name in enumerate(calls(i)):
            steps.append(N(name, [value], [f"t{k}"], domain="" if name == "Relu" else "own"))
            value = f"t{k}"
        steps[-1].output[0] = "b"
        made.append(helper.make_function("own", f"F{i}", ["a"], ["b"], steps, [helper.make_opsetid("", 21), own]))
    return model([N("F0", ["x"], ["y"], domain="own")], functions=made, domains=["own"])


def altered(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    """A small sound model, changed in its place."""
    weight = array("w", np.ones((4, 3)), np.float32)
    changed = model([N("MatMul", ["x", "w"], ["h"]), N("Relu", ["h"], ["y"])], [weight])
    change(changed)
    return changed


def external(location: str, **entries: str) -> onnx.ModelProto:
    def change(m: onnx.ModelProto) -> None:
        weight = m.graph.initializer[0]
        weight.ClearField("raw_data")
        weight.data_location = T.EXTERNAL
        for key, value in {"location": location, **entries}.items():
            weight.external_data.add(key=key, value=value)

    return altered(change)


def sizes(*dims: int) -> Callable[[onnx.ModelProto], object]:
    def change(m: onnx.ModelProto) -> None:
        m.graph.initializer[0].dims[:] = dims

    return change


def image(node: onnx.NodeProto, *weights: onnx.TensorProto) -> onnx.ModelProto:
    return model([node], weights, sizes=(1, 1, 4, 4))


def kernel(width: int, dtype: object = np.float32) -> onnx.TensorProto:
    return array("w", np.ones((1, 1, width, width)), dtype)


def tree(**more: object) -> onnx.ModelProto:
    given = {"n_targets": 1, "nodes_treeids": [0], "nodes_nodeids": [0], "nodes_featureids": [0],
                 "nodes_values": [0.0], "nodes_modes": ["LEAF"], "nodes_truenodeids": [0], "nodes_falsenodeids": [0],
                 "target_treeids": [0],
                 "target_nodeids": [0], "target_ids": [0], "target_weights": [1.0]}  # fmt: skip
    return model([N("TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", **{**given, **more})],
                 domains=["ai.onnx.ml"])  # fmt: skip


def tokens(**more: object) -> onnx.ModelProto:
    given = {"max_gram_length": 2, "min_gram_length": 1, "max_skip_count": 1, "mode": "TF", "ngram_counts": [0],
                 "ngram_indexes": [0], "pool_int64s": [1]}  # fmt: skip
    return scaled([N("TfIdfVectorizer", ["i"], ["t"], **{**given, **more})], "t", [array("i", [1, 2])])


FLOATS = array("f0", [0.5], np.float32)
BOMBS: dict[str, Callable[[], onnx.ModelProto]] = {
    "strings": lambda: strings("StringConcat", count=28),
    "strings of strings": lambda: strings("StringConcat", count=60, start="a"),
    "a thousand repetitions": lambda: strings("", pattern="((((a{1000}){1000}){1000}){1000})"),
    "concat": lambda: doubled("Concat", 31, array("c0", [1]), axis=0),
    "concat of floats": lambda: doubled("Concat", 40, array("c0", [1], np.float32), axis=0),
    "add with broadcasting": lambda: scaled(
        [N("Expand", ["c", "a"], ["l"]), N("Expand", ["c", "b"], ["k"]), N("Add", ["l", "k"], ["z"])],
        "z", [FLOATS, array("c", [1.0], np.float32), array("a", [10**6, 1]), array("b", [1, 10**6])]),
    "expand and sum": lambda: scaled([N("Expand", ["f0", "s"], ["z"])], "z", [FLOATS, array("s", [HUGE])]),
    "tile": lambda: scaled([N("Tile", ["f0", "s"], ["z"])], "z", [FLOATS, array("s", [HUGE])]),
    "tile in steps": lambda: scaled(
        [N("Tile", [f"f{i}", "s"], [f"f{i + 1}"]) for i in range(9)], "f9", [FLOATS, array("s", [100])]),
    "constant of shape": lambda: scaled([N("ConstantOfShape", ["s"], ["z"])], "z", [array("s", [HUGE])]),
    "weights of shapes": lambda: model(
        [N("ConstantOfShape", ["s"], ["w"]), N("MatMul", ["x", "w"], ["h"]), N("ReduceSum", ["h"], ["y"])],
        [array("s", [4, 2**27])]),
    "range": lambda: scaled([N("Range", ["a", "b", "c"], ["z"])], "z",
                            [array("a", 0), array("b", HUGE), array("c", 1)]),
    "range of floats": lambda: scaled([N("Range", ["a", "b", "c"], ["z"])], "z",
                                      [array(n, v, np.float32) for n, v in (("a", 0), ("b", 1e12), ("c", 0.5))]),
    "one-hot": lambda: scaled([N("OneHot", ["i", "d", "v"], ["z"])], "z",
                              [array("i", [0]), array("d", [HUGE]), array("v", [0, 1], np.float32)]),
    "eye": lambda: scaled([N("Expand", ["f0", "s"], ["e"]), N("EyeLike", ["e"], ["z"])], "z",
                          [FLOATS, array("s", [10**6, 10**6])]),
    "pad": lambda: image(N("Pad", ["x", "p"], ["y"]), array("p", [0, 0, 0, 0, 0, 0, HUGE, 0])),
    "pad with edges": lambda: image(N("Pad", ["x", "p"], ["y"], mode="edge"), array("p", [0] * 7 + [HUGE])),
    "pad with reflections": lambda: image(N("Pad", ["x", "p"], ["y"], mode="reflect"), array("p", [0] * 7 + [10**9])),
    "resize": lambda: image(N("Resize", ["x", "", "s"], ["y"], mode="linear"), array("s", [1, 1, 1e9, 1], np.float32)),
    "resize of both": lambda: image(N("Resize", ["x", "", "s"], ["y"]), array("s", [1, 1, 1e5, 1e5], np.float32)),
    "resize without aliases": lambda: image(
        N("Resize", ["x", "", "s"], ["y"], mode="cubic", antialias=1), array("s", [1, 1, 1e-9, 1], np.float32)),
    "resize with a rule": lambda: image(
        N("Resize", ["x", "", "s"], ["y"], mode="cubic", coordinate_transformation_mode="half_pixel_symmetric"),
        array("s", [1, 1, 1e8, 1], np.float32)),
    "upsample": lambda: model([N("Upsample", ["x", "s"], ["y"])], [array("s", [1, 1, 1e6, 1e6], np.float32)],
                              sizes=(1, 1, 4, 4), opset=9),
    "random normal": lambda: scaled([N("RandomNormal", [], ["z"], shape=[10**6, 10**6])], "z"),
    "random uniform": lambda: scaled([N("RandomUniform", [], ["z"], shape=[2**40])], "z"),
    "window": lambda: scaled([N("HannWindow", ["s"], ["z"])], "z", [array("s", HUGE)]),
    "mel weights": lambda: scaled(
        [N("MelWeightMatrix", ["a", "b", "c", "l", "h"], ["z"])], "z",
        [array("a", 10**6), array("b", 10**6), array("c", 8000), array("l", 0.0, np.float32),
         array("h", 4000.0, np.float32)]),
    "multinomial": lambda: model([N("Multinomial", ["x"], ["m"], sample_size=2**40), N("Cast", ["m"], ["y"], to=1)]),
    "einsum": lambda: scaled([N("Expand", ["f0", "s"], ["e"]), N("Einsum", ["e"] * 4, ["z"], equation="a,b,c,d->abcd")],
                             "z", [FLOATS, array("s", [1000])]),
    "matrix products": lambda: scaled(
        [N("Expand", ["f0", "s"], ["m0"]), *(N("MatMul", [f"m{i}"] * 2, [f"m{i + 1}"]) for i in range(30))], "m30",
        [FLOATS, array("s", [4000, 4000])]),
    "many elements": lambda: scaled(
        [N("Expand", ["f0", "s"], ["m0"]), *(N("Exp", [f"m{i}"], [f"m{i + 1}"]) for i in range(900))], "m900",
        [FLOATS, array("s", [10**7])]),
    "split into pieces": lambda: scaled(
        [N("ConstantOfShape", ["s"], ["z"]), N("SplitToSequence", ["z"], ["q"]), N("SequenceLength", ["q"], ["l"])],
        "l", [array("s", [10**8])]),
    "split of a number": lambda: scaled([N("Split", ["s"], ["z", "a"], num_outputs=HUGE)], "z", [array("s", [1, 2])]),
    "non-zero": lambda: scaled([N("Expand", ["f0", "s"], ["e"]), N("NonZero", ["e"], ["z"])], "z",
                               [FLOATS, array("s", [5, 10**8])]),
    "power": lambda: scaled([N("Pow", ["a", "b"], ["z"])], "z", [array("a", 2**62), array("b", 2**62)]),
    "power tower": lambda: scaled([N("Pow", [f"a{i}"] * 2, [f"a{i + 1}"]) for i in range(20)], "a20", [array("a0", 9)]),
    "depth to space": lambda: image(N("DepthToSpace", ["x"], ["y"], blocksize=2**31)),
    "transposed convolution": lambda: image(
        N("ConvTranspose", ["x", "w"], ["y"], strides=[10**6, 10**6]), array("w", np.ones((1, 1, 2, 2)), np.float32)),
    "output shape": lambda: image(
        N("ConvTranspose", ["x", "w"], ["y"], output_shape=[10**6, 10**6]),
        array("w", np.ones((1, 1, 2, 2)), np.float32)),
    "unpool": lambda: image(N("MaxUnpool", ["x", "i", "s"], ["y"], kernel_shape=[2, 2]),
                            array("i", np.zeros((1, 1, 4, 4))), array("s", [1, 1, 10**6, 10**6])),
    "fourier": lambda: image(N("DFT", ["x", "n"], ["y"], axis=2), array("n", HUGE)),
    "affine grid": lambda: scaled([N("AffineGrid", ["t", "s"], ["z"])], "z",
                                  [array("t", np.ones((1, 2, 3)), np.float32), array("s", [1, 1, 10**6, 10**6])]),
    "loop": lambda: looped(HUGE),
    "loop that might end": lambda: looped(2**62, condition="true"),
    "loop without a number": lambda: model(
        [N("Loop", ["", "true", "x"], ["y"], body=body([N("Tanh", ["s0"], ["t0"])]))], [array("true", True, np.bool_)]),
    "loop that doubles": lambda: looped(60, [N("Concat", ["s0", "s0"], ["t0"], axis=0)]),
    "loops in loops": lambda: nested_loops(4),
    "scan": lambda: model(
        [N("ConstantOfShape", ["s"], ["z"]),
         N("Scan", ["x", "z"], ["y", "q"], num_scan_inputs=1, body=helper.make_graph(
            [N("Add", ["a", "b"], ["c"]), N("Identity", ["b"], ["d"])], "b",
            [helper.make_tensor_value_info(n, T.FLOAT, None) for n in "ab"],
            [helper.make_tensor_value_info(n, T.FLOAT, None) for n in "cd"]))], [array("s", [10**6])]),
    "recurrent steps": lambda: model(
        [N("ConstantOfShape", ["s"], ["z"]), N("GRU", ["z", "w", "r"], ["q"], hidden_size=1),
         N("ReduceSum", ["q"], ["k"], keepdims=0), N("Mul", ["x", "k"], ["y"])],
        [array("s", [10**6, 1, 1]), array("w", np.ones((1, 3, 1)), np.float32),
         array("r", np.ones((1, 3, 1)), np.float32)]),
    "functions twice": lambda: functions(30, lambda i: [f"F{i + 1}"] * 2 if i < 29 else ["Relu"]),
    "functions ten times": lambda: functions(12, lambda i: [f"F{i + 1}"] * 10 if i < 11 else ["Relu"]),
    "functions deep": lambda: functions(3000, lambda i: [f"F{i + 1}"] if i < 2999 else ["Relu"]),
    "a function that calls itself": lambda: functions(1, lambda i: ["F0"]),
    "functions in a circle": lambda: functions(5, lambda i: [f"F{(i + 1) % 5}"]),
    "skipping": lambda: tokens(max_skip_count=2**40, ngram_indexes=[2**40]),
    "long grams": lambda: tokens(max_gram_length=2**40, ngram_indexes=[2**33]),
    "grams before the pool": lambda: tokens(ngram_counts=[-(2**63)]),
    "grams before one another": lambda: tokens(ngram_counts=[0, 2**62, -(2**62), 2**62]),
    "grams beyond the pool": lambda: tokens(ngram_counts=[2**62]),
    "a kernel larger than its weights": lambda: image(
        N("Conv", ["x", "w"], ["y"], kernel_shape=[HUGE, 3], pads=[1] * 4), kernel(3)),
    "a transposed kernel larger than its weights": lambda: image(
        N("ConvTranspose", ["x", "w"], ["y"], kernel_shape=[3, HUGE]), kernel(3)),
    "an integer kernel larger than its weights": lambda: model(
        [N("ConvInteger", ["x", "w"], ["i"], kernel_shape=[HUGE, 3]), N("Cast", ["i"], ["y"], to=T.FLOAT)],
        [kernel(3, np.uint8)], sizes=(1, 1, 4, 4), kind=T.UINT8),
    "targets": lambda: tree(n_targets=2**40),
    "input": lambda: model([N("Relu", ["x"], ["y"])], sizes=(2**20, 2**20)),
    "input of sizes that vary": lambda: model([N("Relu", ["x"], ["y"])], sizes=(2**31, "n")),
    "input of many axes": lambda: model([N("Relu", ["x"], ["y"])], sizes=(3,) * 60),
}  # fmt: skip
"""What asks for too much, or for what does not exist, and must come to one line and exit code 1."""

WRONG: dict[str, Callable[[], onnx.ModelProto]] = {
    "no gradient of anything": lambda: model(
        [N("Gradient", ["x"], ["y"], domain="ai.onnx.preview.training")], domains=["ai.onnx.preview.training"]),
    "format version": lambda: altered(lambda m: setattr(m, "ir_version", 2**40)),
    "negative format version": lambda: altered(lambda m: setattr(m, "ir_version", -1)),
    "operator set version": lambda: altered(lambda m: setattr(m.opset_import[0], "version", 2**63 - 1)),
    "negative operator set": lambda: altered(lambda m: setattr(m.opset_import[0], "version", -5)),
    "negative sizes": lambda: altered(sizes(-4, -3)),
    "sizes that overflow": lambda: altered(sizes(2**62, 2**62)),
    "more numbers than bytes": lambda: altered(sizes(2**20, 2**20)),
    "fewer numbers than bytes": lambda: altered(sizes(1, 1)),
    "outside": lambda: external("../../../etc/passwd"),
    "absolute": lambda: external("/dev/zero"),
    "an external device": lambda: external("device"),
    "an external pipe": lambda: external("pipe"),
    "offset": lambda: external("data", offset=str(2**62)),
    "no number": lambda: external("data", offset="x" * 5000),
    "length": lambda: external("data", length=str(HUGE)),
    "circle": lambda: model([N("Add", ["x", "b"], ["a"]), N("Add", ["x", "a"], ["b"]), N("Relu", ["b"], ["y"])]),
    "twice": lambda: model([N("Relu", ["x"], ["y"]), N("Tanh", ["x"], ["y"])]),
    "itself": lambda: model([N("Add", ["y", "x"], ["y"])]),
    "nothing makes it": lambda: model([N("Add", ["z", "x"], ["y"])]),
    "sparse": lambda: model(
        [N("MatMul", ["x", "w"], ["y"])],
        sparse_initializer=[helper.make_sparse_tensor(array("w", [1.0], np.float32), array("", [10**9]), [4, 4])]),
    "an attribute of another type": lambda: altered(
        lambda m: m.graph.node.append(N("Softmax", ["y"], ["z"], axis="last"))),
    "a graph for a number": lambda: altered(
        lambda m: m.graph.node.append(N("Softmax", ["y"], ["z"], axis=helper.make_graph([], "g", [], [])))),
    "no such attribute": lambda: altered(lambda m: m.graph.node.append(N("Softmax", ["y"], ["z"], axle=1))),
    "no body": lambda: model([N("Loop", ["", "", "x"], ["y"])]),
    "no branches": lambda: model([N("If", ["c"], ["y"])], [array("c", True, np.bool_)]),
    "an unknown element type": lambda: altered(lambda m: setattr(m.graph.initializer[0], "data_type", 99)),
    "unknown type of an input": lambda: model([N("Relu", ["x"], ["y"])], kind=77),
    "no output": lambda: altered(lambda m: m.graph.ClearField("output")),
    "trees in a circle": lambda: tree(nodes_modes=["BRANCH_LEQ"]),
    "votes of nobody": lambda: tree(target_nodeids=[7]),
}  # fmt: skip
"""What is malformed."""
