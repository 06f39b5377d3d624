"""`pccompile diff`, `pccompile explain` by pattern, and what shells complete by."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
import torch
from torch import nn

import pccompile
from pccompile import CompileError
from pccompile.cli import main

MODEL = ("somemodels:Net", "--shape", "x=4,6")


def test_a_model_is_equal_to_itself(run) -> None:
    found = json.loads(run("diff", *MODEL, "--json").out)
    assert (found["equal"], found["changes"], found["same"]) == (True, [], {"vertex": 4, "parameter": 4})
    assert not any(found["texts"].values())
    assert "generated code: equal" in run("diff", *MODEL).out


def test_two_algorithms(run) -> None:
    shown = run("diff", *MODEL, "--beside", "strict").out
    assert "somemodels:Net exact" in shown
    assert "  + error       ε = v − v̂, Δv = η (" in shown
    assert "+      value[add] = value + rate * force" in shown
    found = json.loads(run("diff", *MODEL, "--beside", "strict", "--steps", "7", "--json").out)
    (add,) = (c for c in found["changes"] if c["name"] == "add")
    assert add["first"]["error"] != add["second"]["error"]
    alike = run("diff", "--beside", "strict", *MODEL, "--algorithm", "strict", "--energy", "huber:1", "somemodels:Net")
    assert "generated code: equal" in alike.out
    assert any("steps=7" in line for line in found["texts"]["generated code"])


def test_two_models(run, folder) -> None:
    refused = run("diff", "somemodels:Net", "model.onnx", "--shape", "x=4,6", "--json")
    assert (refused.code, "input x should be float32 [batch, 3]" in refused.err) == (1, True)
    result = run("diff", "somemodels:Net", "somemodels:Words", "--shape", "x=4,6", "--shape", "ids=2,3:int64", "--json")
    found = json.loads(result.out)
    assert found["names"] == ["somemodels:Net", "somemodels:Words"]
    assert {c["name"] for c in found["changes"] if c["first"] is None} >= {"table.weight", "out.bias"}
    assert found["sizes"]["parameters"] == [4, 3]
    values = ("--value", "x=0.5", "--value", "ids=1,2,3", "--shape", "x=4,6", "--shape", "ids=1,3:int64")
    assert run("diff", "somemodels:Net", *values, "somemodels:Words", "--json").code == 0
    assert "no input z" in run("diff", "somemodels:Net", "somemodels:Words", *values, "--value", "z=1").err
    shapes = ("--shape", "x=4,6", "--shape", "ids=2,3:int64", "--shape", "y=4,6")
    wrong = run("diff", "somemodels:Net", "somemodels:Words", *shapes)
    assert (wrong.code, "the model has no input y; its inputs are ids, scale, x" in wrong.err) == (2, True)


def test_two_circuits(run, folder) -> None:
    assert run("model.onnx", "--backend", "netlist", "-o", ".").code == 0
    assert run("model.pcnet.json", "--apply", "untie", "-o", ".", "--name", "untied").code == 0
    found = json.loads(run("diff", "model.pcnet.json", "untied.pcnet.json", "--json").out)
    assert not found["equal"]
    assert any(c["kind"] == "tensor" and c["first"] is None for c in found["changes"])
    assert found["sizes"]["parameters"][1] > found["sizes"]["parameters"][0]
    assert json.loads(run("diff", "model.pcnet.json", "model.onnx", "--json").out)["equal"]  # built as it was


def test_models_in_python() -> None:
    def compiled(*layers: nn.Module) -> pccompile.PCModule:
        return pccompile.compile(nn.Sequential(*layers), (torch.ones(2, 3),), check=False)

    torch.manual_seed(0)
    layer, other = nn.Linear(3, 3), nn.Linear(3, 3)
    found = pccompile.compare_models(compiled(layer, nn.Tanh()), compiled(layer, nn.ReLU()), ("tanh", "relu"))
    assert [c.name for c in found.changes if c.first and c.second] == ["n0", "n1"]
    assert found.same["parameter"] == 2
    assert "tanh" in str(found)
    assert not pccompile.compare_models(compiled(layer), compiled(other)).same["parameter"]
    circuit = pccompile.compile(nn.Sequential(layer), (torch.ones(2, 3),), backend="netlist")
    with pytest.raises(CompileError, match="no parts in common"):
        pccompile.compare_models(circuit, compiled(layer))


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    "pattern, vertices",
    [("a", ["a"]), ("?", ["a", "b"]), ("[ab]", ["a", "b"]), ("/^t.*h$/", ["tanh"]), ("t*", ["tanh"])],
)
def test_a_pattern(run, pattern: str, vertices: list[str]) -> None:
    shown = run("explain", "somemodels:Net", pattern, "--shape", "x=4,6").out
    heads = [line.split()[1] for line in shown.splitlines() if line.startswith(("vertex ", "output "))]
    assert heads == vertices
    assert run("explain", "--shape", "x=4,6", "somemodels:Net", "--seed", "0", pattern).out == shown
    assert run(*MODEL, "--explain", pattern).out == shown


def test_a_pattern_that_fits_nothing(run) -> None:
    for pattern, words in (("z*", "there is no vertex z*"), ("/(/", "/(/ is no regular expression")):
        result = run("explain", "somemodels:Net", pattern, "--shape", "x=4,6")
        assert (result.code, words in result.err) == (1, True), result.err
    assert "vertex" in run("explain", *MODEL).out.splitlines()[0]


COMPLETE = """
source {script}
try() {{
  COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
  function=$(complete -p pccompile | sed 's/.*-F \\([^ ]*\\).*/\\1/')
  $function pccompile "${{@: -1}}" "${{@: -2:1}}"; echo "${{COMPREPLY[*]}}"
}}
try pccompile --alg
try pccompile model.onnx --algorithm st
try pccompile model.onnx --stepper a
try pccompile wat
try pccompile mod
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes(run, folder) -> None:
    script = folder / "completion.bash"
    script.write_text(run("--print-completion", "bash").out)
    done = subprocess.run(
        ["bash", "-c", COMPLETE.format(script=script)], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["--algorithm", "strict", "adam adaptive", "watch", "model.onnx"]


def test_other_shells_get_all_options(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("zsh", "fish"):
        assert main(["--print-completion", shell]) == 0
        script = capsys.readouterr().out
        assert all(name in script for name in ("certify-locality", "error-optimization", "burn-in", "explain"))
