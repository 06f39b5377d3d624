"""Standard output and error that are closed, full, or of few characters; names that are long; folders that are none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx_frontend.build import perceptron

from cli.limited import limited

COMMAND = f"{sys.executable} -m pccompile.cli"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(perceptron(), "m.onnx")
    onnx.save(perceptron("größe→"), "ü.onnx")
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", str(root))
    return tmp_path


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, encoding="utf-8",
                          errors="replace", env={**os.environ, **environment}, timeout=300, check=False)  # fmt: skip


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    "line, codes",
    [
        (f"{COMMAND} m.onnx --emit code | true", (141,)),
        pytest.param(f"{COMMAND} --help | true", (0, 141), marks=pytest.mark.slow),
        (f"{COMMAND} m.onnx --emit code > /dev/full", (1,)),
        pytest.param(f"{COMMAND} absent.onnx 2> /dev/full", (1,), marks=pytest.mark.slow),
        pytest.param(f"{COMMAND} m.onnx --emit code >&-", (0,), marks=pytest.mark.slow),
        (f"{COMMAND} absent.onnx 2>&-", (1,)),
        (f"{COMMAND} m.onnx -o out >&- 2>&-", (0,)),
    ],
)
def test_nobody_listens(line: str, codes: tuple[int, ...], place: Path) -> None:
    result = shell(line)
    assert result.returncode in codes, result
    assert "Traceback" not in result.stdout + result.stderr
    assert "Exception ignored" not in result.stderr


ASCII = ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})


@pytest.mark.quick(1)
@pytest.mark.parametrize("environment", ASCII)
@pytest.mark.parametrize("arguments", ["'ü.onnx' --explain", pytest.param("'☃.onnx'", marks=pytest.mark.slow)])
def test_few_characters(arguments: str, environment: dict[str, str], place: Path) -> None:
    result = shell(f"{COMMAND} {arguments}", **environment)
    assert result.returncode == (1 if "☃" in arguments else 0), result
    assert "Traceback" not in result.stderr
    assert "internal error" not in result.stderr


NAME = "n" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        (f"{NAME}.onnx",), (f"{NAME}.pt2", "--trust-code"), (f"{NAME}.pcnet.json",), (f"{NAME}:{NAME}",),
        ("m.onnx", "-o", NAME), ("m.onnx", "-o", f"{'a/' * 3000}"), ("m.onnx", "--dump-dir", NAME),
        ("m.onnx", "--data", f"{NAME}.npz"), ("m.onnx", "--backend", "netlist", "--chip", f"{NAME}.yaml"),
        ("m.onnx", "--backend", "netlist", "--chip", "loihi1", "--report", f"{NAME}.html"),
        ("m.onnx", "--backend", "netlist", "-o", NAME), ("m.onnx", "--budget", NAME),
        ("m.onnx", "--shape", f"{NAME}=1"),
        ("m.onnx", "-o", "m.onnx"), ("m.onnx", "-o", "m.onnx/x"), ("m.onnx", "-o", "/proc/x"), ("m.onnx", "-o", "\0"),
        ("m.onnx", "--dump-dir", "m.onnx"), ("m.onnx", "--dump-dir", "\0"), ("\0.onnx",), ("\udcff.onnx",),
    ],
)  # fmt: skip
def test_names_that_no_system_takes(arguments: tuple[str, ...], place: Path) -> None:
    ending = limited(*arguments)
    assert ending.code in (1, 2), ending
    assert "Traceback" not in ending.said
    assert "error: " in ending.said
    assert sorted(p.name for p in place.iterdir() if p.name.startswith(".pccompile")) == []


@pytest.mark.parametrize("backend", ["torch", "netlist"])
def test_a_long_name_of_the_files_is_shortened(backend: str, place: Path) -> None:
    assert limited("m.onnx", "--name", NAME, "-o", "out", "--backend", backend).code == 0
    assert len(list((place / "out").iterdir())) == 2


def test_an_edited_file_needs_force(place: Path) -> None:
    assert limited("m.onnx", "-o", "out").code == 0
    assert limited("m.onnx", "-o", "out").code == 0
    with (place / "out" / "m_pc.py").open("a") as file:
        file.write("# mine\n")
    refused = limited("m.onnx", "-o", "out")
    assert refused.code == 1
    assert "--force" in refused.said
    assert limited("m.onnx", "-o", "out", "--force").code == 0
    assert "# mine" not in (place / "out" / "m_pc.py").read_text()
