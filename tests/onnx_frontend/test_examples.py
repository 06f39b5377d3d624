"""Example inputs: symbols agree, indices fit, the smallest sizes that run are taken, and names are no hints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnx_frontend.build import model
from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx import load_onnx

node = helper.make_node
INT = TensorProto.INT64
RNG = np.random.default_rng(0)


def normal(*shape):
    return (0.3 * RNG.standard_normal(shape)).astype(np.float32)


def examples(nodes, inputs, weights=None, **more):
    """The example inputs by name, the model having been run on them."""
    made = model(nodes, inputs, {next(o for o in reversed(nodes[-1].output) if o): None}, weights, **more)
    made.graph.output[0].ClearField("type")
    module = load_onnx(made)
    drawn = module.example_inputs()
    module(*drawn)
    return dict(zip((t.name for t in module.input_types), drawn, strict=True))


def shapes(drawn):
    return {n: list(t.shape) for n, t in drawn.items()}


def test_symbols_of_one_name_agree():
    nodes = [node("MatMul", ["a", "b"], ["c"]), node("Add", ["c", "d"], ["y"])]
    found = examples(nodes, {"a": ["n", "k"], "b": ["k", "m"], "d": ["m"]})
    assert found["a"].shape[1] == found["b"].shape[0]
    assert found["b"].shape[1] == found["d"].shape[0]
    assert found["a"].shape[0] == 2


def test_symbols_that_are_sums_of_others():
    nodes = [node("Concat", ["past", "x"], ["k"], axis=1), node("Add", ["k", "mask"], ["y"])]
    inputs = {"past": ["batch", "old", 4], "x": ["batch", "new", 4], "mask": ["batch", "old + new", 1]}
    found = examples(nodes, inputs)
    assert found["mask"].shape[1] == found["past"].shape[1] + found["x"].shape[1]


@pytest.mark.parametrize("name", ["x", "audio", "input_audio_features", "wave", "image", "mask", "input_length"])
def test_names_are_no_hints(name):
    """An input of frames gets few of them, whatever it is called."""
    nodes = [node("Squeeze", [name, "one"], ["s"]), node("Transpose", ["s"], ["t"], perm=[1, 0, 2]),
             node("GRU", ["t", "w", "r"], ["", "y"], hidden_size=4, direction="bidirectional")]  # fmt: skip
    weights = {"one": np.array([1]), "w": normal(2, 12, 257), "r": normal(2, 12, 4)}
    found = examples(nodes, {name: ["batch", 1, "frames", 257]}, weights)
    assert shapes(found) == {name: [2, 1, 8, 257]}
    assert found[name].std() > 0.5


@pytest.mark.parametrize(
    ("layers", "smallest"), [([(3, 1)], 8), ([(3, 1), (3, 2), (3, 2)], 9), ([(16, 16)], 16), ([(7, 2), (5, 2)], 15)]
)
def test_the_smallest_sizes_that_run(layers, smallest):
    """Convolutions without padding, patches."""
    nodes, weights, x = [], {}, "x"
    for i, (kernel, stride) in enumerate(layers):
        weights[f"k{i}"] = normal(2, 2, kernel, kernel)
        nodes.append(node("Conv", [x, f"k{i}"], [f"h{i}"], strides=[stride, stride]))
        x = f"h{i}"
    (found,) = examples(nodes, {"x": ["n", 2, "height", "width"]}, weights).values()
    assert list(found.shape[:2]) == [2, 2]
    assert smallest <= found.shape[2] <= smallest * 1.2


@pytest.mark.parametrize("shape", [None, ["?", "?"], ["n", "features"]])
def test_weights_say_the_sizes_of_what_they_meet(shape):
    nodes = [node("Gemm", ["x", "w", "b"], ["y"], transB=1)]
    found = examples(nodes, {"x": (shape, TensorProto.FLOAT)}, {"w": normal(3, 301), "b": normal(3)})
    assert shapes(found) == {"x": [2, 301]}


def test_weights_behind_operators_that_keep_a_shape():
    nodes = [node("Abs", ["x"], ["a"]), node("Sub", ["a", "mean"], ["b"]), node("MatMul", ["b", "w"], ["y"])]
    found = examples(nodes, {"x": ["n", "time", "mels"]}, {"mean": normal(77), "w": normal(77, 4)})
    assert shapes(found) == {"x": [2, 8, 77]}


def test_channels_and_ranks_of_convolutions():
    nodes = [node("Conv", ["x", "k"], ["y"], group=2, pads=[1, 1, 1, 1])]
    found = examples(nodes, {"x": (None, TensorProto.FLOAT)}, {"k": normal(4, 3, 3, 3)})
    assert shapes(found) == {"x": [2, 6, 8, 8]}


def test_sizes_that_a_reshape_names():
    nodes = [node("Reshape", ["x", "s"], ["h"]), node("MatMul", ["h", "w"], ["y"])]
    found = examples(nodes, {"x": ["n", "pixels"]}, {"s": np.array([-1, 1, 28, 29]), "w": normal(29, 3)})
    assert found["x"].numel() % (28 * 29) == 0


READERS = {
    "Gather": ([node("Gather", ["table", "i"], ["y"])], (5, 3), ["n", "t"]),
    "Gather along another axis": ([node("Gather", ["table", "i"], ["y"], axis=1)], (9, 4), ["n", "t"]),
    "behind a cast": ([node("Cast", ["i"], ["j"], to=6), node("Gather", ["table", "j"], ["y"])], (4, 3), ["n"]),
    "behind an offset": ([node("Add", ["i", "two"], ["j"]), node("Gather", ["table", "j"], ["y"])], (5, 3), ["n", "t"]),
    "GatherElements": ([node("GatherElements", ["table", "i"], ["y"], axis=1)], (6, 2), [3, 2]),
    "GatherND": ([node("GatherND", ["table", "i"], ["y"])], (6, 3), ["n", 2]),
    "OneHot": ([node("OneHot", ["i", "four", "values"], ["h"]), node("MatMul", ["h", "table"], ["y"])], (4, 3), ["n"]),
    "ScatterND": ([node("ScatterND", ["table", "i", "rows"], ["y"])], (6, 3), [2, 1]),
}


@pytest.mark.parametrize("name", READERS)
def test_indices_fit_what_they_point_into(name):
    nodes, table, shape = READERS[name]
    weights = {"two": np.array(2), "four": np.array(4), "values": np.array([0, 1], np.float32), "rows": normal(2, 3)}
    used = {i for n in nodes for i in n.input}
    weights = {k: v for k, v in weights.items() if k in used} | {"table": normal(*table)}
    (found,) = examples(nodes, {"i": (shape, INT)}, weights).values()
    assert found.dtype is torch.int64
    assert int(found.min()) >= 0
    assert found.max() > 0 or found.numel() < 4


def test_lengths_are_those_of_the_sequences():
    nodes = [node("LSTM", ["x", "w", "r", "", "n"], ["", "y"], hidden_size=3)]
    weights = {"w": normal(1, 12, 4), "r": normal(1, 12, 3)}
    found = examples(nodes, {"x": ["time", "batch", 4], "n": (["batch"], TensorProto.INT32)}, weights)
    assert found["n"].tolist() == [found["x"].shape[0]] * found["x"].shape[1]


def attention(mask_nodes, weights=None):
    scores = [node("MatMul", ["x", "k"], ["s"]), *mask_nodes, node("Softmax", ["m"], ["y"], axis=-1)]
    return scores, {"k": normal(3, 5)} | (weights or {})


def test_masks_of_whole_numbers_hide_nothing():
    nodes, weights = attention(
        [node("Cast", ["mask"], ["f"], to=1), node("Sub", ["unit", "f"], ["g"]), node("Mul", ["g", "low"], ["a"]),
         node("Add", ["s", "a"], ["m"])], {"unit": np.float32(1), "low": np.float32(-1e9)}
    )  # fmt: skip
    found = examples(nodes, {"x": ["n", 3], "mask": (["n", 5], INT)}, weights)
    assert found["mask"].min() == 1
    assert found["x"].std() > 0.5


def test_masks_of_floating_point_numbers_hide_nothing():
    nodes, weights = attention(
        [node("Sub", ["unit", "mask"], ["g"]), node("Mul", ["g", "low"], ["a"]), node("Add", ["s", "a"], ["m"])],
        {"unit": np.float32(1), "low": np.float32(-1e9)},
    )
    found = examples(nodes, {"x": ["n", 3], "mask": ["n", 5]}, weights)
    assert found["mask"].min() == 1


@pytest.mark.parametrize("hides", [True, False])
def test_boolean_masks_leave_something_to_see(hides):
    """True hides what it marks in one model and shows it in another: all rows must have finite probabilities."""
    chosen = ["low", "s"] if hides else ["s", "low"]
    nodes, weights = attention([node("Where", ["mask", *chosen], ["m"])], {"low": np.float32(-np.inf)})
    found = examples(nodes, {"x": ["n", 3], "mask": (["n", 5], TensorProto.BOOL)}, weights)
    visible = ~found["mask"] if hides else found["mask"]
    assert bool(visible.any(1).all())


def branching():
    def branch(name, weight):
        nodes = [node("MatMul", ["x", weight], [name])]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, 1, None)])

    nodes = [node("Equal", ["sr", "known"], ["c"]),
             node("If", ["c"], ["y"], then_branch=branch("t", "w1"), else_branch=branch("e", "w2"))]  # fmt: skip
    return nodes, {"known": np.array(16000), "w1": normal(4, 3), "w2": normal(4, 3)}


def test_what_a_branch_asks_for_is_what_it_compares_with():
    nodes, weights = branching()
    found = examples(nodes, {"x": ["n", 4], "sr": ([], INT)}, weights)
    assert int(found["sr"]) == 16000


def test_sizes_among_the_inputs():
    nodes = [node("Concat", ["one", "k"], ["s"], axis=0), node("Expand", ["x", "s"], ["y"])]
    found = examples(nodes, {"x": ["n", 1], "k": ([1], INT)}, {"one": np.array([1])})
    assert int(found["k"]) >= 1


def test_values_that_are_given_are_used():
    nodes = [node("Gather", ["table", "i"], ["e"]), node("Mul", ["e", "scale"], ["y"])]
    made = model(nodes, {"i": (["n", "t"], INT), "scale": ["n", "t", 1]}, {"y": None}, {"table": normal(9, 3)})
    made.graph.output[0].ClearField("type")
    module = load_onnx(made)
    i = torch.tensor([[8, 7, 6, 5]])
    first, second = module.example_inputs(values={"i": i})
    assert torch.equal(first, i)
    assert list(second.shape) == [1, 4, 1]
    assert list(module.example_inputs({"i": [3, 5]})[1].shape) == [3, 5, 1]
    with pytest.raises(CompileError, match="there is no input j"):
        module.example_inputs(values={"j": i})


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_names_of_inputs_and_symbols_change_nothing(data):
    words = st.sampled_from(["audio", "x", "mask", "ids", "length", "err", "value", "y1", "image", "sr", "positions"])
    a, b = data.draw(st.lists(words, min_size=2, max_size=2, unique=True))
    nodes = [node("Gather", ["table", a], ["e"]), node("Mul", ["e", b], ["y"])]
    found = examples(nodes, {a: (["p", "q"], INT), b: ["p", "q", 3]}, {"table": normal(9, 3)})
    plain = [node("Gather", ["table", "i"], ["e"]), node("Mul", ["e", "j"], ["y"])]
    expected = examples(plain, {"i": (["p", "q"], INT), "j": ["p", "q", 3]}, {"table": normal(9, 3)})
    assert all(torch.equal(found[n], expected[m]) for n, m in ((a, "i"), (b, "j")))


ML = "ai.onnx.ml"
LEARNED = {
    "linear classifier": ("LinearClassifier", {"coefficients": normal(33).tolist(), "intercepts": normal(3).tolist(),
                                               "classlabels_ints": [0, 1, 2]}, 11),
    "two classes, one row": ("LinearClassifier", {"coefficients": normal(11).tolist(), "intercepts": [0.1],
                                                  "classlabels_ints": [0, 1]}, 11),
    "linear regressor": ("LinearRegressor", {"coefficients": normal(34).tolist(), "targets": 2}, 17),
    "support vectors": ("SVMRegressor", {"coefficients": normal(3).tolist(), "rho": [0.1], "n_supports": 3,
                                         "support_vectors": normal(39).tolist(), "kernel_type": "RBF",
                                         "kernel_params": [0.1, 0.0, 0.0]}, 13),
    "linear support vectors": ("SVMRegressor", {"coefficients": normal(9).tolist(), "rho": [0.1]}, 9),
    "pairs of classes": ("SVMClassifier", {"coefficients": normal(4).tolist(), "rho": [0.1],
                                           "vectors_per_class": [2, 2],
                                           "support_vectors": normal(28).tolist(), "classlabels_ints": [0, 1],
                                           "kernel_type": "LINEAR"}, 7),
    "scaler": ("Scaler", {"offset": normal(15).tolist(), "scale": [2.0]}, 15),
    "imputer": ("Imputer", {"imputed_value_floats": normal(19).tolist()}, 19),
}  # fmt: skip
BEFORE = {
    "": [],
    "Cast": [node("Cast", ["x"], ["s"], to=1)],
    "Normalizer": [node("Normalizer", ["x"], ["s"], domain=ML)],
    "Scaler": [node("Scaler", ["x"], ["s"], domain=ML, offset=[0.5], scale=[2.0])],
}
DOMAIN = {"extra_opsets": [helper.make_opsetid(ML, 3)]}


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize(("operator", "numbers", "columns"), LEARNED.values(), ids=LEARNED)
@pytest.mark.parametrize("shape", [["n", "k"], [None, None], None], ids=str)
def test_the_numbers_of_a_learned_model_fix_its_columns(operator, numbers, columns, shape, before):
    outputs = ["label", "y"] if "Classifier" in operator else ["y"]
    first = BEFORE[before]
    last = node(operator, ["s" if first else "x"], outputs, domain=ML, **numbers)
    found = examples([*first, last], {"x": shape}, **DOMAIN)
    assert shapes(found) == {"x": [2, columns]}


def test_each_part_of_a_feature_vector_has_its_columns():
    nodes = [node("FeatureVectorizer", ["a", "b"], ["y"], domain=ML, inputdimensions=[12, 5])]
    found = examples(nodes, {"a": ["n", None], "b": ["n", None]}, **DOMAIN)
    assert shapes(found) == {"a": [2, 12], "b": [2, 5]}


def test_columns_that_contradict_the_numbers_are_named():
    operator, numbers, _ = LEARNED["linear classifier"]
    nodes = [node(operator, ["x"], ["label", "y"], domain=ML, name="head", **numbers)]
    with pytest.raises(
        CompileError, match="input x is declared with 2 columns, and LinearClassifier has numbers for 11"
    ):
        examples(nodes, {"x": [3, 2]}, **DOMAIN)
