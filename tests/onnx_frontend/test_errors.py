"""Whatever is wrong with a file becomes one clear line each, all at once."""

from __future__ import annotations

import contextlib
import os
import random

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from onnx_frontend.build import model, perceptron, value
from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx import load_onnx, unsupported

node = helper.make_node


def problems(source, **options) -> list[str]:
    with pytest.raises(CompileError) as caught:
        load_onnx(source, **options)
    lines = [str(p) for p in caught.value.problems]
    assert all(
        "\n" not in p.what and "Traceback" not in line for p, line in zip(caught.value.problems, lines, strict=True)
    )
    return lines


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "not an ONNX model"),
        (b"hello world, this is text\n", "not an ONNX model"),
        (perceptron().SerializeToString()[:-40], "not an ONNX model"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "holds no graph"),
        (b"PK\x03\x04" + b"x" * 100, "not an ONNX model"),
    ],
)
def test_files_that_are_no_models(tmp_path, content, said):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert said in problems(path)[0]
    assert said in problems(content)[0]
    assert unsupported(path)


def test_absent_files_and_folders(tmp_path):
    assert "cannot read" in problems(tmp_path / "absent.onnx")[0]
    assert "is not a file" in problems(tmp_path)[0]
    assert "cannot read" in problems("nul\0name.onnx")[0]


def test_every_truncation_is_an_error_or_a_model():
    content = perceptron().SerializeToString()
    for cut in range(0, len(content), 7):
        with contextlib.suppress(CompileError):
            load_onnx(content[:cut])


def test_unsupported_operators_are_listed_together():
    nodes = [
        node("DictVectorizer", ["x"], ["s"], name="/text/first", domain="ai.onnx.ml"),
        node("DictVectorizer", ["s"], ["s2"], name="/text/second", domain="ai.onnx.ml"),
        node("Mystery", ["x"], ["y"], name="/mystery", domain="my.own"),
    ]
    opsets = [helper.make_opsetid("my.own", 1), helper.make_opsetid("ai.onnx.ml", 3)]
    made = model(nodes, {"x": [1, 2, 3]}, {"y": None}, extra_opsets=opsets)
    found = problems(made)
    assert len(found) == 2
    assert "no rule for ai.onnx.ml.DictVectorizer (nodes /text/first, /text/second; reads x)" in found[0]
    assert "hint:" in found[0]
    assert "my.own.Mystery" in found[1]
    assert [str(p) for p in unsupported(made)] == found


def test_structure_is_checked_all_at_once():
    nodes = [
        node("Relu", ["x"], ["a"], name="first"),
        node("Relu", ["x"], ["a"], name="second"),
        node("Add", ["a", "nowhere"], ["b"], name="third"),
        node("Add", ["d", "a"], ["c"], name="loop1"),
        node("Relu", ["c"], ["d"], name="loop2"),
    ]
    found = "\n".join(problems(model(nodes, {"x": [2]}, {"y": [2]})))
    assert "make the value a" in found
    assert "nowhere, which nothing makes" in found
    assert "in a circle: loop1, loop2" in found
    assert "output y is not made" in found


def test_nodes_out_of_order_are_sorted():
    nodes = [node("Relu", ["a"], ["y"], name="late"), node("Neg", ["x"], ["a"], name="early")]
    y = load_onnx(model(nodes, {"x": [2]}, {"y": [2]}))(torch.tensor([1.0, -2.0]))
    assert y.tolist() == [0.0, 2.0]


def test_unknown_versions():
    assert (
        "version 999 is unknown" in problems(model([node("Relu", ["x"], ["y"])], {"x": [2]}, {"y": [2]}, opset=999))[0]
    )
    made = perceptron()
    del made.opset_import[:]
    assert "does not say which version" in problems(made)[0]
    foreign = model([node("Odd", ["x"], ["y"], domain="odd")], {"x": [2]}, {"y": [2]})
    assert "does not import it" in problems(foreign)[0]


def test_recursive_functions():
    body = helper.make_function(
        "own", "F", ["a"], ["b"], [node("F", ["a"], ["b"], domain="own")], [helper.make_opsetid("own", 1)]
    )
    made = model(
        [node("F", ["x"], ["y"], domain="own")],
        {"x": [2]},
        {"y": [2]},
        functions=[body],
        extra_opsets=[helper.make_opsetid("own", 1)],
    )
    assert "call themselves: F" in problems(made)[0]


def external(tmp_path, **entries):
    """A model whose weight w of 24 bytes lies outside it, described by `entries`."""
    made = model(
        [node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 2]}, {"y": ["n", 3]}, {"w": np.zeros((2, 3), np.float32)}
    )
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in entries.items():
        tensor.external_data.add(key=key, value=text)
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    onnx.save(made, folder / "m.onnx")
    return folder / "m.onnx"


def test_external_data(tmp_path):
    path = external(tmp_path, location="w.bin", offset="8", length="24")
    weights = np.arange(8, dtype=np.float32)
    (path.parent / "w.bin").write_bytes(weights.tobytes())
    module = load_onnx(path)
    assert module.get_parameter("w").flatten().tolist() == weights[2:].tolist()


@pytest.mark.parametrize(
    "entries, said",
    [
        ({"location": "absent.bin"}, "which is absent"),
        ({"location": "../secret.bin"}, "outside the model's folder"),
        ({"location": "/etc/passwd"}, "outside the model's folder"),
        ({"location": "link.bin"}, "outside the model's folder"),
        ({"location": "."}, "which is absent"),
        ({"location": ""}, "no usable external file"),
        ({"location": "a\0b"}, "no usable external file"),
        ({"location": "x" * 5000}, "no usable external file"),
        ({"location": "w.bin", "offset": "16"}, "which has 24"),
        ({"location": "w.bin", "offset": "-8"}, "not a number"),
        ({"location": "w.bin", "offset": "1e3"}, "not a number"),
        ({"location": "w.bin", "length": "4"}, "its external data says 4"),
        ({"location": "w.bin", "length": "999999999999"}, "its external data says"),
    ],
)
def test_external_data_that_lies(tmp_path, entries, said):
    path = external(tmp_path, **entries)
    (tmp_path / "secret.bin").write_bytes(b"\0" * 24)
    (path.parent / "w.bin").write_bytes(b"\0" * 24)
    os.symlink(tmp_path / "secret.bin", path.parent / "link.bin")
    assert said in problems(path)[0]


def test_external_data_of_a_model_without_a_folder(tmp_path):
    path = external(tmp_path, location="w.bin")
    assert "not read from a folder" in problems(path.read_bytes())[0]


def test_weights_that_do_not_fill_their_shape():
    made = perceptron()
    made.graph.initializer[0].dims[0] = 10**15
    made.graph.initializer[1].dims[0] = -5
    found = problems(made)
    assert "should have" in found[0]
    assert "negative size" in found[1]


def test_wrong_node_arguments():
    made = model(
        [node("Relu", ["x", "x"], ["y"], name="/r"), node("Conv", ["x"], ["z"], name="/c")], {"x": [2]}, {"y": [2]}
    )
    found = problems(made)
    assert len(found) == 2
    assert "/r" in found[0]
    assert "/c" in found[1]


def test_wrong_inputs_at_call_time():
    module = load_onnx(perceptron())
    cases = [
        ((), "input x is missing: float32 [batch, 3]"),
        ((torch.zeros(2, 4),), "input x should be float32 [batch, 3], it is float32 [2, 4]"),
        ((torch.zeros(3),), "it is float32 [3]"),
        ((torch.zeros(2, 3, dtype=torch.int64),), "it is int64 [2, 3]"),
        (([1, 2],), "it is a list"),
        ((torch.zeros(2, 3), torch.zeros(2, 3)), "takes 1 inputs, 2 are given"),
    ]
    for inputs, said in cases:
        with pytest.raises(CompileError, match="error") as caught:
            module(*inputs)
        assert said in str(caught.value)
    with pytest.raises(CompileError, match="not one of the model"):
        module(x=torch.zeros(2, 3), z=torch.zeros(1))


def test_a_failing_operator_names_its_node():
    made = model(
        [node("MatMul", ["x", "w"], ["y"], name="/head/MatMul")],
        {"x": None},
        {"y": None},
        {"w": np.zeros((4, 3), np.float32)},
    )
    with pytest.raises(CompileError, match=r"MatMul of float32 \[2, 5\], float32 \[4, 3\] fails.*/head/MatMul"):
        load_onnx(made)(torch.zeros(2, 5))


def test_a_shape_that_depends_on_the_data_is_refused_when_traced():
    made = model(
        [node("Reshape", ["x", "s"], ["y"], name="/view")], {"x": ["n", 4], "s": ([2], TensorProto.INT64)}, {"y": None}
    )
    module = load_onnx(made)
    inputs = torch.zeros(2, 4), torch.tensor([4, 2])
    assert module(*inputs).shape == (4, 2)
    with pytest.raises(CompileError, match="depends on the data") as caught:
        torch.export.export(module, inputs, strict=False)
    assert "constants=" in str(caught.value)
    fixed = load_onnx(made, constants={"s": [-1, 2]})
    assert torch.export.export(fixed, inputs[:1], strict=False).module()(inputs[0]).shape == (4, 2)


def test_a_bomb_is_not_unpacked():
    nodes = [node("ConstantOfShape", ["s"], ["w"], name="/bomb"), node("MatMul", ["x", "w"], ["y"])]
    made = model(nodes, {"x": ["n", 2]}, {"y": None}, {"s": np.array([2**40, 2**20])})
    module = load_onnx(made)
    with pytest.raises(CompileError, match="/bomb"):
        module(torch.zeros(1, 2))


def test_damaged_bytes_are_an_error_or_a_model():
    content, generator = perceptron().SerializeToString(), random.Random(0)
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(generator.randint(1, 4)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        with contextlib.suppress(CompileError):
            load_onnx(bytes(damaged)).example_inputs()


def _attributes_of_another_kind():
    make, text = helper.make_node, "ONE"
    inside = helper.make_graph([make("Softmax", ["x"], ["z"], axis=text)], "inside", [], [value("z", None)])
    return {
        "LinearRegressor": make("LinearRegressor", ["x"], ["y"], domain="ai.onnx.ml", coefficients=[1.0], targets=text),
        "Scaler": make("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[1, 2], scale=[1.0]),
        "SVMRegressor": make("SVMRegressor", ["x"], ["y"], domain="ai.onnx.ml", coefficients=[1.0], n_supports=1.5),
        "ConstantOfShape": make("ConstantOfShape", ["x"], ["y"], value=1.0),
        "Softmax": make("If", ["c"], ["y"], then_branch=inside, else_branch=inside),
        "Loop": make("Loop", ["n", "c"], ["y"], body=3),
        "LayerNormalization": make("LayerNormalization", ["x", "x"], ["y"], epsilon="small"),
    }


@pytest.mark.parametrize("op_type", _attributes_of_another_kind())
def test_attributes_of_another_kind_are_named(op_type):
    inputs = {"x": ["N", 1], "c": ([], TensorProto.BOOL), "n": ([], TensorProto.INT64)}
    made = model([_attributes_of_another_kind()[op_type]], inputs, {"y": None}, opset=17)
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    with pytest.raises(CompileError, match=rf"attribute \w+ of {op_type} is \w+, and must be \w+"):
        load_onnx(made)
