"""Each report about inference as a picture, from Python and from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from algorithms.nets import problem

from pccompile import CompileError
from pccompile.cli import main

PNG = b"\x89PNG"


@pytest.mark.slow
def test_every_report_is_drawn(tmp_path: Path) -> None:
    p = problem("chain")
    pc, path = p.compile("strict", steps=3), tmp_path / "picture.png"
    for kind in ("spectrum", "regime", "convergence", "asynchronous"):
        pc.analyse(p.x, target=p.target, kinds=(kind,)).plot(path)
        assert path.read_bytes().startswith(PNG)
        path.unlink()
    for report in (pc.locality(), pc.cost(p.x)):
        assert report.plot()._repr_png_().startswith(PNG)


def test_a_picture_shows_one_report(tmp_path: Path) -> None:
    p = problem("chain")
    both = p.compile("strict", steps=3).analyse(p.x, target=p.target)
    with pytest.raises(CompileError, match="a picture shows one report, and 2 were measured"):
        both.plot(tmp_path / "picture.png")
    with pytest.raises(CompileError, match="cannot draw"):
        both.regime.plot(tmp_path / "absent" / "picture.png")


def test_the_command_line_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cost.png"
    how = ["algorithms.nets:chain", "--shape", "input=4,5", "--cost"]
    assert main([*how, "--plot", str(path)]) == 0
    assert "cost of one step of exact" in capsys.readouterr().out
    assert path.read_bytes().startswith(PNG)
    assert main([*how, "--plot", str(tmp_path / "cost.txt")]) == 2
    assert main([*how[:-1], "--plot", str(path)]) == 2
