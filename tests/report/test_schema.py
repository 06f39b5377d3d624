"""The schema of reports as JSON: what reports give is valid, what is wrong in any place is not."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import onnx
import pytest
from algorithms.nets import problem
from jsonschema import Draft202012Validator
from onnx_frontend.build import perceptron

import pccompile
from pccompile.cli import main

SCHEMA = json.loads((files("pccompile.report") / "reports.schema.json").read_text(encoding="utf-8"))


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{name}"})


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a value: every field, and the first items of lists."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*at, key))


def damaged(value: Any, at: tuple[Any, ...], how: str) -> Any:
    """A copy that is wrong there."""
    found = copy.deepcopy(value)
    inside = found
    for key in at[:-1]:
        inside = inside[key]
    here = inside[at[-1]] if at else found
    if how == "a field too many" and isinstance(here, dict):
        here["unheard_of"] = object
    elif how == "another type" and at:
        inside[at[-1]] = {"unheard": {"of": {}}}
    elif how == "a field too few" and at and isinstance(at[-1], str):
        del inside[at[-1]]
    else:
        return None
    return found


def check(name: str, value: Any) -> None:
    """Valid as it is; not with a field of another type, or with one more."""
    by = validator(name)
    by.validate(value)
    for at in places(value):
        for how in ("a field too many", "another type"):
            wrong = damaged(value, at, how)
            assert wrong is None or not by.is_valid(wrong), (name, at, how)
    required = {**SCHEMA["$defs"][name]}.get("required", ())
    assert not any(by.is_valid(damaged(value, (key,), "a field too few")) for key in required)


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert all("description" in of for name, of in SCHEMA["$defs"].items() if name != "number")


def test_reports_in_python() -> None:
    p = problem("chain")
    pc, other = p.compile("strict", steps=3), p.compile("exact")
    found = pc.analyse(p.x, target=p.target, kinds=("spectrum", "regime"))
    check("analysis", json.loads(found.json()))
    check("verify", json.loads(pccompile.verify(other, p.x, target=p.target).json()))
    check("locality", json.loads(pc.locality().json()))
    check("cost", json.loads(pc.cost(p.x).json()))
    check("diff", json.loads(pccompile.compare_models(pc, other).json()))
    curves = {"loss": [(0, 2.0), (1, 1.0)]}
    runs = [{"loss": [(0, 1.0), (1, last)]} for last in (0.3, 0.2, 0.4)]
    check("watch", json.loads(json.dumps(curves)))
    check("watch_against", json.loads(pccompile.compare_runs([curves] * 3, runs).json()))


NET = ("algorithms.nets:chain", "--shape", "input=2,5")
STRICT = (*NET, "--algorithm", "strict", "--steps", "3")
REPORTS = {
    "spectrum": ("analysis", *STRICT, "--spectrum"),
    "regime": ("analysis", *STRICT, "--regime"),
    "convergence": ("analysis", *STRICT, "--convergence"),
    "asynchronous": ("analysis", *STRICT, "--asynchronous"),
    "law": ("verify", *NET, "--algorithm", "fixed-prediction", "--verify"),
    "strict": ("verify", *STRICT, "--verify"),
    "cost": ("cost", *STRICT, "--cost"),
    "locality": ("locality", *NET, "--algorithm", "error-optimization", "--certify-locality"),
    "circuit": ("verify_circuit", *NET, "--backend", "netlist", "--verify"),
    "simulate": ("simulate", *NET, "--backend", "netlist", "--simulate", "--learn", "--ticks", "3", "--bits", "8:12"),
    "costs": ("resources", *NET, "--backend", "netlist"),
    "placement": ("resources", *NET, "--backend", "netlist", "--chip", "loihi1"),
    "doctor": ("doctor", *NET, "--doctor"),
    "diff": ("diff", "diff", *STRICT, "--beside", "exact"),
    "circuits": ("diff", "diff", *NET, "algorithms.nets:chain", "--backend", "netlist"),
}


@pytest.mark.slow
@pytest.mark.parametrize("report", REPORTS)
def test_reports_of_the_command_line(report: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, *arguments = REPORTS[report]
    assert main([*arguments, "--json", "--quiet"]) in (0, 3)
    check(name, json.loads(capsys.readouterr().out))


def test_a_doctor_that_finds_something(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = perceptron()
    model.graph.node[0].op_type = "Blend"
    onnx.save(model, tmp_path / "bad.onnx")
    assert main([str(tmp_path / "bad.onnx"), "--doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    check("doctor", found)
    assert "Blend" in found["problems"][0]["what"]


def test_json_is_all_that_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    circuit = (*NET, "--backend", "netlist", "--json")
    for more in (["-o", str(tmp_path)], ["--export", "nir"], ["--explore", str(tmp_path / "page.html")]):
        assert main([*circuit, *more]) == 2
        assert "--json goes with" in capsys.readouterr().err


def test_a_log_and_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs = []
    for i in range(3):
        logs.append(str(tmp_path / f"{i}.jsonl"))
        Path(logs[-1]).write_text("".join(f'{{"step": {s}, "loss": {1 / (s + i + 1)}}}\n' for s in range(4)))
    assert main(["watch", logs[0], "--json"]) == 0
    check("watch", json.loads(capsys.readouterr().out))
    assert main(["watch", *logs, "--against", *reversed(logs), "--json"]) == 0
    check("watch_against", json.loads(capsys.readouterr().out))
