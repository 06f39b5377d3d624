"""Files that contradict themselves: one line that says where, exit code 1, and no traceback."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from pccompile.backends.netlist.chip import parse
from pccompile.cli import main
from pccompile.diagnostics import CompileError
from pccompile.pipeline import compile_netlist


@pytest.mark.parametrize(
    "value",
    ["!!timestamp x", "!!int abc", "!!float {}", "!!binary x", "!!set 3", "!!omap x", "!!pairs x", "!!python/name:os.x",
     "2026-99-99", "!!bool maybe", "!!null []", "!!seq x", "!!map x", "9" * 5000],
)  # fmt: skip
@pytest.mark.parametrize("place", ["name: {}", "name: a\nenergy:\n  synapse: {}", "name: a\ncores: {{value: {}}}"])
def test_chips_whose_tags_and_values_do_not_go_together(place: str, value: str) -> None:
    with pytest.raises(CompileError) as error:
        parse(place.format(value).encode(), "chip.yaml")
    assert "chip.yaml" in str(error.value)


def value(name: str, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape or None)


def model(*nodes: onnx.NodeProto, **weights: np.ndarray) -> onnx.ModelProto:
    stored = [numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()]
    graph = helper.make_graph(list(nodes), "g", [value("x", 2, 4)], [value("y")], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8)


STEP = helper.make_graph(
    [helper.make_node("Add", ["s", "e"], ["t"]), helper.make_node("Identity", ["t"], ["u"])],
    "b", [value("s", 4), value("e", 4)], [value("t", 4), value("u", 4)],
)  # fmt: skip
WRONG = {
    "a matrix that is a vector": model(helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), w=np.ones(3)),
    "a matrix that is a number": model(helper.make_node("Gemm", ["x", "w"], ["y"]), w=np.array(2.0)),
    "a kernel that is a vector": model(helper.make_node("Conv", ["x", "w"], ["y"]), w=np.ones(4)),
    "a transposed kernel that is a vector": model(helper.make_node("ConvTranspose", ["x", "w"], ["y"]), w=np.ones(4)),
} | {
    f"{count} scanned inputs": model(
        helper.make_node("Scan", ["w", "x"], ["v", "y"], body=STEP, num_scan_inputs=count), w=np.ones(4)
    )
    for count in (-1, 0, 3, 2**31 - 1, 2**62)
}


@pytest.mark.parametrize("kind", WRONG)
def test_operators_whose_inputs_do_not_go_together(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    onnx.save(WRONG[kind], tmp_path / "m.onnx")
    assert main([str(tmp_path / "m.onnx"), "--doctor"]) in (0, 1)
    assert main([str(tmp_path / "m.onnx"), "-o", str(tmp_path / "out")]) == 1
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_circuit_without_a_phase_of_settling(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path, _ = compile_netlist(nn.Linear(2, 1).double(), (torch.ones(1, 2).double(),), name="m").save(tmp_path, "m")
    record = json.loads(path.read_text())
    record["phases"] = [p for p in record["phases"] if p["name"] != "settle"]
    (tmp_path / "n.pcnet.json").write_text(json.dumps({**record, "generator": "somebody"}))
    assert main([str(tmp_path / "n.pcnet.json"), "--simulate"]) == 0
    assert "1 tick of settling" in capsys.readouterr().out
