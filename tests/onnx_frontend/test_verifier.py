"""`--verify` of ONNX files: right ones pass in every precision, wrong ones fail, and the report says who is off."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import pccompile
from onnx_frontend.build import model
from pccompile.frontends.onnx import load_onnx
from pccompile.report import reference
from pccompile.report.reference import verify_file, widened

node = helper.make_node
KINDS = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def network(kind, width=24):
    """Convolutions, a normalisation, a branch that is added, attention-like products and a softmax."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)).astype(KINDS[kind])

    nodes = [
        node("Conv", ["x", "k1", "c1"], ["a"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["b"], epsilon=1e-2),
        node("Relu", ["b"], ["c"]),
        node("Conv", ["c", "k2"], ["d"], pads=[1, 1, 1, 1]),
        node("Add", ["c", "d"], ["e"]),
        node("GlobalAveragePool", ["e"], ["f"]),
        node("Flatten", ["f"], ["g"]),
        node("Transpose", ["table"], ["t"], perm=[1, 0]),
        node("MatMul", ["g", "t"], ["h"]),
        node("Softmax", ["h"], ["p"], axis=1),
        node("MatMul", ["p", "table"], ["q"]),
        node("Sub", ["g", "q"], ["r"]),
        node("Gemm", ["r", "w", "v"], ["s"], transB=1),
        node("Tanh", ["s"], ["y"]),
    ]
    weights = {
        "k1": normal(width, 3, 3, 3), "c1": normal(width), "k2": normal(width, width, 3, 3),
        "scale": 1 + 0.1 * normal(width), "shift": normal(width), "mean": 0.1 * normal(width),
        "var": np.abs(normal(width)) + KINDS[kind](0.5), "table": normal(width, width), "w": normal(8, width),
        "v": normal(8),
    }  # fmt: skip
    weights = {k: v.astype(KINDS[kind]) for k, v in weights.items()}
    code = helper.np_dtype_to_tensor_dtype(np.dtype(KINDS[kind]))
    return model(nodes, {"x": ([2, 3, 6, 6], code)}, {"y": ([2, 8], code)}, weights)


def changed_weight(made, name, change):
    for tensor in made.graph.initializer:
        if tensor.name == name:
            array = numpy_helper.to_array(tensor).copy()
            change(array)
            tensor.CopyFrom(numpy_helper.from_array(array, name))


def one_percent_of_one_number(made):
    def change(a):
        place = np.unravel_index(np.abs(a.astype(np.float32)).argmax(), a.shape)
        a[place] = a.dtype.type(float(a[place]) * 1.01)

    changed_weight(made, "w", change)


def one_percent_of_a_kernel(made):
    changed_weight(made, "k2", lambda a: np.multiply(a, a.dtype.type(1.01), out=a))


def without_the_added_branch(made):
    del made.graph.node[4]
    made.graph.node[4].input[0] = "d"


def without_the_bias(made):
    del made.graph.node[12].input[2]


def axes_not_swapped(made):
    made.graph.node[7].attribute[0].ints[:] = [0, 1]


def softmax_along_the_other_axis(made):
    made.graph.node[9].attribute[0].i = 0


def another_epsilon(made):
    made.graph.node[1].attribute[0].f = 1.5e-2


def another_activation(made):
    made.graph.node[13].op_type = "Softsign"


def subtracted_the_other_way(made):
    first, second = made.graph.node[11].input
    made.graph.node[11].input[:] = [second, first]


def statistics_swapped(made):
    made.graph.node[1].input[1], made.graph.node[1].input[4] = "var", "scale"


MUTATIONS = [
    one_percent_of_one_number, one_percent_of_a_kernel, without_the_added_branch, without_the_bias, axes_not_swapped,
    softmax_along_the_other_axis, another_epsilon, another_activation, subtracted_the_other_way, statistics_swapped,
]  # fmt: skip


@pytest.fixture(scope="module")
def compiled():
    """The network of each precision, compiled once."""
    programs = {}

    def get(kind):
        if kind not in programs:
            module = load_onnx(network(kind))
            args = module.example_inputs()
            programs[kind] = pccompile.compile(module, args), args
        return programs[kind]

    return get


def report_on(compiled, kind, made, tmp_path):
    pc, args = compiled(kind)
    onnx.save(made, tmp_path / "made.onnx")
    return verify_file(pc, tmp_path / "made.onnx", args, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_right_files_pass(compiled, kind, tmp_path):
    report = report_on(compiled, kind, network(kind), tmp_path)
    assert report.passed, report
    assert report.forward.tolerance < {"float64": 1e-9, "float32": 1e-4}.get(kind, 0.21)
    if kind.endswith("16"):
        assert any("in float64 the program differs from onnxruntime in float32 by" in n for n in report.notes)


@pytest.mark.quick(18)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_wrong_programs_fail(compiled, kind, mutation, tmp_path):
    """The file says something else than what was compiled, if only by one number in a hundred of one weight."""
    made = network(kind)
    mutation(made)
    onnx.checker.check_model(made)
    report = report_on(compiled, kind, made, tmp_path)
    assert not report.forward.passed, report
    assert report.exit_code == 3
    assert all(p.agrees for p in report.parameters)


def wrong_engine(monkeypatch, size):
    """onnxruntime with an error of its own."""
    run = reference._onnxruntime

    def wrong(source, names, feed):
        return [r + np.asarray(size, r.dtype) for r in run(source, names, feed)]

    monkeypatch.setattr(reference, "_onnxruntime", wrong)


def test_where_onnxruntime_is_off_float64_decides(compiled, tmp_path, monkeypatch):
    wrong_engine(monkeypatch, 1e-3)
    report = report_on(compiled, "float32", network("float32"), tmp_path)
    assert report.passed, report
    assert any(
        "onnxruntime differs from float64 by 0.00" in n and n.endswith("onnxruntime is off") for n in report.notes
    )
    assert any("in float64 the program differs from onnx.reference in float64 by" in n for n in report.notes)


def test_where_both_engines_are_off_the_program_fails(compiled, tmp_path, monkeypatch):
    wrong_engine(monkeypatch, 1e-3)
    made = network("float32")
    one_percent_of_a_kernel(made)
    assert not report_on(compiled, "float32", made, tmp_path).passed


def test_where_nobody_decides_a_loose_tolerance_stands(compiled, tmp_path, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no such operator")

    wrong_engine(monkeypatch, 1e-5)
    monkeypatch.setattr(reference, "_reference", refuse)
    report = report_on(compiled, "float32", network("float32"), tmp_path)
    assert report.passed
    assert "onnx.reference in float64 cannot run the file: no such operator" in report.notes
    wrong_engine(monkeypatch, 1e-3)
    assert not report_on(compiled, "float32", network("float32"), tmp_path).passed


def test_a_reference_that_is_off_is_named(compiled, tmp_path, monkeypatch):
    """Two of three engines agree, the third by far does not."""
    run = reference._reference
    monkeypatch.setattr(reference, "_reference", lambda *a: [r + 1 for r in run(*a)])
    wrong_engine(monkeypatch, 2e-5)
    report = report_on(compiled, "float32", network("float32"), tmp_path)
    assert report.passed, report
    assert any("onnx.reference in float64 differs from both by" in n for n in report.notes)


def test_a_slow_reference_is_given_up(compiled, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "SECONDS", -1.0)
    wrong_engine(monkeypatch, 1e-5)
    report = report_on(compiled, "float32", network("float32"), tmp_path)
    assert report.passed
    assert any("it takes more than" in n for n in report.notes)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_what_is_no_number_fails(compiled, tmp_path, monkeypatch, number):
    wrong_engine(monkeypatch, number)
    monkeypatch.setattr(reference, "_reference", reference._onnxruntime)
    report = report_on(compiled, "float32", network("float32"), tmp_path)
    assert not report.passed
    assert report.exit_code == 3


def test_other_types_and_counts_of_outputs_fail(compiled, tmp_path):
    made = network("float32")
    made.graph.node.append(node("Cast", ["y"], ["y16"], to=TensorProto.FLOAT16))
    made.graph.node[13].output[0] = made.graph.node[14].input[0] = "inner"
    made.graph.node[14].output[0] = "y"
    made.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    report = report_on(compiled, "float32", made, tmp_path)
    assert not report.passed
    assert any("the types of the outputs should be float16" in n for n in report.notes)


def quantised(form, step=0):
    """Three dense layers with 8 bits; `step` is added to one weight of the second."""
    rng = np.random.default_rng(1)
    nodes, weights = [], {}
    if form == "QDQ":
        x = "x"
        for i in range(3):
            q = rng.integers(-127, 128, (16, 16)).astype(np.int8)
            q[3, 5] = np.int8(40 + (step if i == 1 else 0))
            weights |= {f"q{i}": q, f"s{i}": np.float32(0.0041), f"a{i}": np.float32(0.0231), f"z{i}": np.int8(3)}
            weights[f"w{i}z"] = np.int8(0)
            nodes += [
                node("QuantizeLinear", [x, f"a{i}", f"z{i}"], [f"xq{i}"]),
                node("DequantizeLinear", [f"xq{i}", f"a{i}", f"z{i}"], [f"xd{i}"]),
                node("DequantizeLinear", [f"q{i}", f"s{i}", f"w{i}z"], [f"wd{i}"]),
                node("MatMul", [f"xd{i}", f"wd{i}"], [f"m{i}"]),
                node("Tanh", [f"m{i}"], [f"t{i}"]),
            ]
            x = f"t{i}"
    else:
        weights |= {"xs": np.float32(0.031), "xz": np.uint8(121)}
        nodes.append(node("QuantizeLinear", ["x", "xs", "xz"], ["q_0"]))
        for i in range(3):
            q = rng.integers(0, 256, (16, 16)).astype(np.uint8)
            q[3, 5] = np.uint8(180 + (step if i == 1 else 0))
            weights |= {f"w{i}": q, f"ws{i}": np.float32(0.0043), f"wz{i}": np.uint8(128)}
            weights |= {f"ys{i}": np.float32(0.037), f"yz{i}": np.uint8(117)}
            before = ["xs", "xz"] if i == 0 else [f"ys{i - 1}", f"yz{i - 1}"]
            inputs = [f"q_{i}", *before, f"w{i}", f"ws{i}", f"wz{i}", f"ys{i}", f"yz{i}"]
            nodes.append(node("QLinearMatMul", inputs, [f"q_{i + 1}"]))
        nodes.append(node("DequantizeLinear", ["q_3", "ys2", "yz2"], ["t2"]))
    weights["out"] = (rng.standard_normal((16, 4)) / 4).astype(np.float32)
    nodes.append(node("MatMul", ["t2", "out"], ["y"]))
    return model(nodes, {"x": [8, 16]}, {"y": [8, 4]}, weights, opset=17)


@pytest.mark.parametrize("form", ["QDQ", "QLinear"])
def test_eight_bits(form, tmp_path):
    onnx.save(quantised(form), tmp_path / "right.onnx")
    onnx.save(quantised(form, step=2), tmp_path / "wrong.onnx")
    module = load_onnx(tmp_path / "right.onnx")
    x = (torch.randn(8, 16, generator=torch.Generator().manual_seed(3)),)
    pc = pccompile.compile(module, x)
    report = verify_file(pc, tmp_path / "right.onnx", x, 0)
    assert report.passed, report
    report = verify_file(pc, tmp_path / "wrong.onnx", x, 0)
    assert not report.forward.passed, report


@pytest.mark.parametrize("form", ["QDQ", "QLinear"])
def test_a_rounding_that_another_engine_flips_by_one_step(form, tmp_path, monkeypatch):
    """Inputs on the border between two steps: onnxruntime is made to see them on the other side of it."""
    onnx.save(quantised(form), tmp_path / "right.onnx")
    module = load_onnx(tmp_path / "right.onnx")
    scale = 0.0231 if form == "QDQ" else 0.031
    steps = torch.arange(128.0).reshape(8, 16) - 64
    x = (((steps + 0.5 + 2e-5) * np.float32(scale)).float(),)
    pc = pccompile.compile(module, x)
    run = reference._onnxruntime

    def other_side(source, names, feed):
        moved = {**feed, "x": (feed["x"] - 4e-5 * scale).astype(np.float32)}
        moved["x"][1:] = feed["x"][1:]
        return run(source, names, moved)

    monkeypatch.setattr(reference, "_onnxruntime", other_side)
    report = verify_file(pc, tmp_path / "right.onnx", x, 0)
    assert report.passed, report
    assert any("onnxruntime differs from float64 by" in n for n in report.notes)


def test_files_in_wider_numbers_are_valid():
    for kind in ("float16", "bfloat16", "float32"):
        for code in (TensorProto.FLOAT, TensorProto.DOUBLE):
            onnx.checker.check_model(widened(network(kind), code), full_check=True)
    wide = widened(network("float16"), TensorProto.FLOAT)
    onnxruntime.InferenceSession(wide.SerializeToString(), providers=["CPUExecutionProvider"])
