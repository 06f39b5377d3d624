"""The text of each family of errors, with its exit code."""

import os
from pathlib import Path

import onnx
import pytest
from onnx_frontend.build import perceptron

FAMILIES = {
    "no_such_file": (1, "absent.onnx"),
    "not_onnx": (1, "text.onnx"),
    "unsupported_operators": (1, "bad.onnx"),
    "no_such_module": (1, "absent_module:make"),
    "no_such_attribute": (1, "somemodels:makes"),
    "import_fails": (1, "broken:make"),
    "factory_raises": (1, "somemodels:fails"),
    "factory_exits": (1, "somemodels:leaves"),
    "factory_returns": (1, "somemodels:number"),
    "not_callable": (1, "somemodels:value"),
    "shapes_do_not_fit": (1, "somemodels:Net", "--shape", "x=4,7"),
    "onnx_shapes_do_not_fit": (1, "model.onnx", "--shape", "x=4,7"),
    "rate_diverges": (2, "model.onnx", "--algorithm", "fixed-prediction", "--rate", "3"),
    "unknown_vertex": (1, "model.onnx", "--explain", "fc1.Gem"),
    "not_ours": (1, "model.onnx", "-o", "taken"),
    "not_our_tensors": (1, "model.onnx", "-o", "taken2"),
    "output_is_a_file": (1, "model.onnx", "-o", "somemodels.py"),
    "no_model": (2, "somemodels.py"),
    "unknown_input": (2, "somemodels:Net", "--shape", "y=4,6"),
    "unknown_onnx_input": (2, "model.onnx", "--shape", "y=4,6"),
    "missing_input": (2, "somemodels:Net", "--shape", "scale=4,6"),
    "no_inputs": (2, "somemodels:Net"),
    "twice": (2, "somemodels:Net", "--shape", "x=4,6", "--shape", "x=4,6"),
    "bad_shape": (2, "somemodels:Net", "--shape", "x=4,-6"),
    "bad_dtype": (2, "somemodels:Net", "--shape", "x=4,6:float"),
    "other_dtype": (2, "model.onnx", "--shape", "x=4,3:int64"),
    "too_large": (2, "somemodels:Net", "--shape", "x=99999,99999,99999"),
    "unknown_algorithm": (2, "model.onnx", "--algorithm", "backprop"),
    "unknown_setting": (2, "model.onnx", "--steps", "3"),
    "unknown_pass": (2, "model.onnx", "--print-after", "inline"),
    "json_alone": (2, "model.onnx", "--json"),
    "loss_needed": (2, "model.onnx", "--algorithm", "strict", "--loss", "none"),
}


@pytest.fixture
def files(folder: Path) -> Path:
    (folder / "text.onnx").write_text("this is no model")
    (folder / "taken").mkdir()
    (folder / "taken" / "model_pc.py").write_text("# somebody's work\n")
    (folder / "taken2").mkdir()
    (folder / "taken2" / "model_pc.safetensors").write_text("somebody's work\n")
    model = perceptron()
    model.graph.node[0].op_type, model.graph.node[1].op_type = "Blend", "NotAnOperator"
    onnx.save(model, folder / "bad.onnx")
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {str(p): p.read_bytes() for p in files}


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family, run, files, golden) -> None:
    code, *arguments = FAMILIES[family]
    before = snapshot(files)
    result = run(*arguments)
    talk = result.err.replace("talk while importing\n", "").replace(str(files), "…")
    assert result.out == ""
    assert "Traceback" not in talk
    assert "\x1b" not in talk
    golden(f"$ pccompile {' '.join(arguments)}\n{talk}exit code {result.code}\n", ".txt")
    assert result.code == code
    assert snapshot(files) == before


@pytest.mark.parametrize(
    "arguments",
    ["model.onnx --backend jax", "model.onnx --steps -1", "model.onnx --rate nan", "", "a b", "model.onnx --nonsense",
     "model.onnx --steps 3 --tolerance 0.1", "model.onnx --verify --doctor"],
)  # fmt: skip
def test_usage(arguments, run) -> None:
    result = run(*arguments.split())
    assert (result.code, result.out) == (2, "")
    assert "error:" in result.err


def test_the_path_of_the_example_is_written_where_it_is_asked_for(run) -> None:
    refused = run("somemodels:Branches", "--shape", "x=2,6", "-o", "out")
    assert "--capture path takes the path of the example inputs" in refused.err
    result = run("somemodels:Branches", "--shape", "x=2,6", "-o", "out", "--capture", "path", "--verify")
    assert result.code == 0
    assert "class OtherPath" in Path("out/Branches_pc.py").read_text()
    assert run("somemodels:Branches", "--backend", "netlist", "--capture", "path").code == 2


def test_export_refusal(run) -> None:
    result = run("somemodels:Branches", "--shape", "x=2,6", "-o", "out")
    assert result.code == 1
    lines = result.err.replace("talk while importing\n", "").splitlines()
    assert "torch.export cannot capture Branches" in lines[0]
    assert lines[-1] == "somemodels:Branches: 1 error, nothing written"
    assert not os.path.exists("out")
