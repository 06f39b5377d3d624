"""Numbers for inputs on the command line: --value, --data, --constant, and what learns: --train, --freeze."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_frontend.build import model
from safetensors.numpy import load_file, save_file

import pccompile
from pccompile.cli.user_inputs import parsed
from pccompile.diagnostics import CompileError, UsageError

node = helper.make_node
RNG = np.random.default_rng(0)
INT = TensorProto.INT64


def normal(*shape):
    return (0.4 * RNG.standard_normal(shape)).astype(np.float32)


def branches(rate_shape=()):
    """A voice detector's form: the sampling rate chooses one of two networks of different sizes."""

    def branch(name, kernel):
        nodes = [node("MatMul", ["x", kernel], [f"{name}p"]), node("Tanh", [f"{name}p"], [f"{name}h"]),
                 node("ReduceMean", [f"{name}h"], [f"{name}m"], axes=[1], keepdims=1)]  # fmt: skip
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(f"{name}m", 1, None)])

    nodes = [node("Equal", ["sr", "known"], ["c"]),
             node("If", ["c"], ["m"], then_branch=branch("t", "w16"), else_branch=branch("e", "w8")),
             node("Mul", ["m", "gain"], ["y"])]  # fmt: skip
    weights = {"known": np.full(rate_shape, 16000), "w16": normal(4, 3), "w8": normal(4, 5), "gain": np.float32(0.7)}
    return model(nodes, {"x": ["n", 4], "sr": (list(rate_shape), INT)}, {"y": ["n", 1]}, weights)


@pytest.fixture
def files(folder):
    onnx.save(branches(), folder / "vad.onnx")
    onnx.save(branches((1,)), folder / "vad1.onnx")
    table = [
        node("Gather", ["table", "ids"], ["e"]),
        node("Mul", ["e", "scale"], ["h"]),
        node("MatMul", ["h", "w"], ["y"]),
    ]
    made = model(table, {"ids": (["n", "t"], INT), "scale": ["n", "t", 1]}, {"y": ["n", "t", 2]},
                 {"table": normal(9, 3), "w": normal(3, 2)})  # fmt: skip
    onnx.save(made, folder / "words.onnx")
    return folder


@pytest.mark.parametrize("name", ["vad", "vad1"])
@pytest.mark.parametrize("rate", [16000, 8000])
def test_a_constant_folds_the_branch(files, run, name, rate):
    result = run(f"{name}.onnx", "--constant", f"sr={rate}", "--verify", "-o", "out")
    assert result.code == 0, result.out + result.err
    assert "to onnxruntime" in result.out
    kernel = "w16" if rate == 16000 else "w8"
    assert f"{kernel}  " in result.out
    assert "cond" not in (files / f"out/{name}_pc.py").read_text()
    assert run(f"{name}.onnx", "--constant", f"sr={rate}", "--emit", "code").out.count("sr") == 0


@pytest.mark.parametrize("rate", [16000, 8000])
def test_branches_chosen_by_a_value_verify(files, run, rate):
    result = run("vad.onnx", "--value", f"sr={rate}", "--value", "x=1,2,3,4", "--verify", "--json")
    assert result.code == 0, result.out
    report = json.loads(result.out)
    assert report["forward"]["reference"] == "onnxruntime"


@pytest.mark.parametrize("rate", [16000, 8000])
def test_circuits_take_constants_and_values(files, run, rate):
    values = ("--value", "x=[[0.5,-1,2,0.25]]")
    arguments = ("vad.onnx", "--backend", "netlist", "--constant", f"sr={rate}", *values)
    result = run(*arguments, "--verify")
    assert result.code == 0, result.out + result.err
    result = run(*arguments, "--simulate", "--ticks", "200", "--json")
    assert result.code == 0, result.err
    module = pccompile.load_onnx("vad.onnx", constants={"sr": rate})
    y = module(torch.tensor([[0.5, -1, 2, 0.25]]))
    (found,) = json.loads(result.out)["outputs"].values()
    np.testing.assert_allclose(np.ravel(found), y.detach().numpy().ravel(), rtol=1e-4)


def test_constants_among_the_initializers(files, run):
    """The known rate is changed, and the gain, which then does not learn."""
    result = run("vad.onnx", "--constant", "sr=8000", "--constant", "known=8000", "--constant", "gain=2.5", "--verify")
    assert result.code == 0, result.out
    assert "w16 " in result.out
    assert "gain" not in result.out
    module = pccompile.load_onnx("vad.onnx", constants={"sr": 8000, "known": 8000, "gain": 2.5})
    x = torch.randn(3, 4)
    expected = 2.5 * torch.tanh(x @ module.get_parameter("w16")).mean(1, keepdim=True)
    torch.testing.assert_close(module(x), expected)
    pc = pccompile.compile("vad.onnx", constants={"sr": 8000, "known": 8000, "gain": 2.5})
    torch.testing.assert_close(pc(x), expected)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_data_by_name(files, run, suffix):
    ids, scale = np.array([[8, 7, 0], [1, 2, 3]]), normal(2, 3, 1)
    if suffix == "npz":
        np.savez(files / "in.npz", ids=ids, scale=scale)
    else:
        save_file({"ids": ids, "scale": scale}, files / "in.safetensors")
    result = run("words.onnx", "--data", f"in.{suffix}", "--verify", "--json")
    assert result.code == 0, result.out + result.err
    table = next(p for p in json.loads(result.out)["parameters"] if p["name"] == "table")
    assert table["norm"] > 0
    assert run("words.onnx", "--data", f"in.{suffix}", "--shape", "ids=2,3", "--verify").code == 0


def test_data_without_a_name(files, run):
    np.save(files / "x.npy", normal(5, 3))
    (files / "x.pb").write_bytes(numpy_helper.from_array(normal(5, 3), "x").SerializeToString())
    (files / "no.pb").write_bytes(numpy_helper.from_array(normal(5, 3)).SerializeToString())
    for name in ("x.npy", "x.pb", "no.pb"):
        assert run("model.onnx", "--data", name, "--verify").code == 0
    result = run("words.onnx", "--data", "x.npy")
    assert (result.code, "the tensor has no name; the model's inputs are ids" in result.err) == (2, True)


def test_values_for_modules(folder, run):
    for arguments in (
        ("somemodels:Net", "--value", "x=[[1.0,2,3,4,5,6]]"),
        ("somemodels:Net", "--value", "x=1,2,3,4,5,6:float32", "--shape", "x=1,6"),
        ("somemodels:Net", "--value", "scale=2.5", "--shape", "x=4,6"),
        ("somemodels:Words", "--value", "ids=[[1,2],[6,0]]"),
        ("somemodels:Words", "--value", "ids=[[1,2],[6,0]]:int32"),
        ("somemodels:Keyword", "--value", "gain=2.0", "--shape", "x=4,6"),
    ):
        result = run(*arguments, "--verify")
        assert result.code == 0, (arguments, result.out, result.err)
    np.savez(folder / "net.npz", x=np.ones((2, 6)))
    assert run("somemodels:Net", "--data", "net.npz", "--verify").code == 0
    assert run("somemodels:Net", "--data", "net.npz", "--backend", "netlist", "--verify").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("vad.onnx --value rate=1", 2, "--value: the model has no input rate; its inputs are x, sr"),
        ("vad.onnx --constant rate=1", 1, "there is no input rate to fix; inputs are x, sr"),
        ("vad.onnx --value sr=1.5", 1, "input sr is int64, which cannot hold 1.5"),
        ("vad.onnx --constant sr=0.5", 1, "input sr is int64, which cannot hold 0.5"),
        ("vad.onnx --value x=1,2,3", 1, "input x is float32 [n, 4]; what is given is 3 numbers"),
        ("vad.onnx --value x=[[1,2],[3,4]]", 1, "input x is float32 [n, 4]; what is given is of shape [2, 2]"),
        ("vad.onnx --value sr", 2, "expected name=1,2,3"),
        ("vad.onnx --value =3", 2, "expected name=1,2,3"),
        ("vad.onnx --value sr=fast", 2, "these are no numbers"),
        ("vad.onnx --value x=[[1,2],[3]]", 2, "lists of different lengths"),
        ("vad.onnx --value x=[1,", 2, "these are no numbers"),
        ("vad.onnx --value sr=1 --value sr=2", 2, "sr is given twice"),
        ("vad.onnx --value sr=1:int65", 2, "unknown dtype; one of"),
        ("vad.onnx --constant known=1,2", 1, "input known is int64 []; what is given is 2 numbers"),
        ("vad.onnx --data absent.npz", 1, "absent.npz: No such file"),
        ("vad.onnx --data model.onnx", 2, "expected a file .npz, .npy, .safetensors or .pb"),
        ("vad.onnx --train nothing", 1, "train: no constant of the file is called nothing"),
        ("vad.onnx --freeze nothing", 1, "freeze: no constant of the file is called nothing"),
        ("somemodels:Net --constant x=1", 2, "--constant goes with an .onnx file"),
        ("somemodels:Net --train a", 2, "--train goes with an .onnx file"),
        ("somemodels:Net --value y=1", 2, "the model has no input y; its inputs are x, scale"),
        ("somemodels:Net --value scale=1", 2, "--value: the model also needs x"),
        ("somemodels:Net --value x=1,2 --shape x=3,6", 2, "2 numbers for the sizes [3, 6]"),
    ],
)
def test_what_cannot_be_meant(files, run, arguments, code, message):
    result = run(*arguments.split())
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert "Traceback" not in result.err


def test_names_in_a_file_that_are_no_inputs(files, run):
    np.savez(files / "other.npz", x=normal(1, 4), rate=np.array(1))
    result = run("vad.onnx", "--data", "other.npz")
    assert result.code == 1
    assert "--data: the model has no input rate; its inputs are x, sr" in result.err
    result = run("vad.onnx", "--data", "other.npz", "--value", "x=1,2,3,4")
    assert result.code != 0


def test_train_and_freeze(files, run):
    result = run("vad.onnx", "--constant", "sr=16000", "--freeze", "w*", "--verify", "-o", "out")
    assert result.code == 0, result.out
    assert "w16" not in result.out
    assert "gain" in result.out
    made = branches()
    for tensor in made.graph.initializer:
        if tensor.name == "gain":
            tensor.CopyFrom(numpy_helper.from_array(np.float32(0.5), "gain"))
    onnx.save(made, "half.onnx")
    arguments = ("half.onnx", "--constant", "sr=16000")
    assert "constants of formulas, which do not learn: gain = 0.5" in run(*arguments, "--doctor").out
    assert "gain" not in run(*arguments, "--verify").out
    assert "gain" in run(*arguments, "--verify", "--train", "gain").out
    assert load_file("out/vad_pc.safetensors")["gain"] == np.float32(0.7)


def test_ports_of_a_circuit(folder, run):
    assert run("model.onnx", "--backend", "netlist", "-o", "out").code == 0
    a = run("out/model.pcnet.json", "--simulate", "--value", "x=[[1,2,3],[4,5,6]]", "--json")
    assert a.code == 0, a.err
    y = pccompile.load_onnx("model.onnx")(torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
    (found,) = json.loads(a.out)["outputs"].values()
    np.testing.assert_allclose(found[0], y.detach().numpy(), rtol=1e-5)
    assert "the circuit has no port z" in run("out/model.pcnet.json", "--simulate", "--value", "z=1").err
    assert run("out/model.pcnet.json", "--value", "x=1").code == 2
    assert run("out/model.pcnet.json", "--constant", "x=1").code == 2


def test_numbers_as_they_are_spelled():
    found = parsed("--value", ["a=1,2", "b=0.5", "c=[[1,2.5]]", "d=true", "e=-3", "f=[true,false]", "g=h=7", "i=1e3"])
    assert {k: v.dtype.kind for k, v in found.items()} == {
        "a": "i", "b": "f", "c": "f", "d": "b", "e": "i", "f": "b", "g=h": "i", "i": "f",
    }  # fmt: skip
    assert found["b"].shape == ()
    assert found["a"].shape == (2,)
    for text in ("a=" + "[" * 5000, "a=1,,2", "a=", "a=[]x", 'a=["1"]', "a={}"):
        with pytest.raises(UsageError):
            parsed("--value", [text])


def test_constants_in_the_interface(files):
    with pytest.raises(CompileError, match="constants go with an ONNX file"):
        pccompile.compile(torch.nn.Linear(2, 2), (torch.ones(1, 2),), constants={"x": 1})
    pc = pccompile.compile("vad.onnx", constants={"sr": torch.tensor(16000)})
    assert list(pc(torch.ones(2, 4)).shape) == [2, 1]
