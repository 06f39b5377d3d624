"""Each report about inference as a picture, from Python and from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from algorithms.nets import problem
from torch import Tensor, nn

import pccompile
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


def test_a_regime_is_drawn_by_layer() -> None:
    p = problem("chain")
    report = p.compile("strict", steps=3).analyse(p.x, target=p.target, kinds=("spectrum", "regime"))
    cosines, ratios = report.regime.plot().axes
    (first, _, _) = cosines.lines
    assert list(first.get_ydata()) == [layer.cosine_to_backprop for layer in report.regime.layers]
    assert [t.get_text() for t in ratios.get_xticklabels()] == [layer.name for layer in report.regime.layers]
    joined = {p.name.rpartition(".")[0] for p in report.regime.parameters}
    assert {layer.name for layer in report.regime.layers} == joined
    eigenvalues, rates = report.spectrum.plot().axes
    assert [bar.get_width() for bar in eigenvalues.patches] == [m.value for m in report.spectrum.quantities.values()]
    assert len(rates.patches) == len(report.spectrum.rates)


def test_layers_are_in_the_order_of_the_graph() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(5, 2), nn.Linear(4, 5)
            self.gain = nn.Parameter(torch.ones(5))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.first(x)) * self.gain)

    torch.manual_seed(0)
    model, x, y = Backwards().double(), torch.randn(3, 4).double(), torch.randn(3, 2).double()
    pc = pccompile.compile(model, (x,), algorithm="strict", steps=5, loss=lambda o, t: (o - t).square().sum())
    layers = pc.analyse((x,), target=y, kinds=("regime",)).regime.layers
    assert [layer.name for layer in layers] == ["first", "gain", "last"]
    pc.loss(x, target=y).backward()
    found = torch.cat([p.grad.flatten() for p in model.first.parameters()])
    wanted = torch.autograd.grad((model(x) - y).square().sum(), list(model.first.parameters()))
    other = torch.cat([g.flatten() for g in wanted])
    assert layers[0].cosine_to_backprop == pytest.approx(torch.cosine_similarity(found, other, 0).item())
    assert layers[0].ratio_to_backprop == pytest.approx((found.norm() / other.norm()).item())


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
