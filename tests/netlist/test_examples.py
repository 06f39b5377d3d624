"""The examples do what they print."""

import re
import runpy
import shutil
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "netlist"


def test_a_module_to_nengo(capsys) -> None:
    pytest.importorskip("nengo", reason="Nengo is not installed: pip install 'pccompile[nengo]'")
    path = FOLDER / "to_nengo.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    differences = [float(n) for n in re.findall(r"by ([\d.e+-]+)\n", printed)]
    assert len(differences) == 4
    assert max(differences) < 1e-6
    assert float(re.findall(r", ([\d.e+-]+) after 300", printed)[0]) < 1e-6


@pytest.mark.skipif(shutil.which("iverilog") is None, reason="iverilog is not installed")
def test_a_module_to_verilog(capsys, monkeypatch, tmp_path: Path) -> None:
    path = FOLDER / "to_verilog.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
    monkeypatch.setattr("sys.argv", ["to_verilog.py", str(tmp_path)])
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    assert "PASS: 1600 ticks" in printed
    losses = [float(n) for n in re.findall(r"= ([\d.]+)\n", printed)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-3 * losses[0]
