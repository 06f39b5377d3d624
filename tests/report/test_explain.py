"""Pages for people."""

import io

import pytest
import torch
from torch import nn

import pccompile
from pccompile.report.tables import Page, Table, number, show


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x):
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.layer2, self.out = Block(), Block(), nn.Linear(2, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.spare = nn.Linear(2, 2)

    def forward(self, x):
        h = self.layer2(self.layer1(x)).mean((2, 3))
        return self.frozen(self.out(h)) + torch.round(self.out(h))


@pytest.fixture(scope="module")
def pc():
    return pccompile.compile(Net(), (torch.randn(2, 2, 5, 5),))


def test_a_module_path(pc) -> None:
    text = str(pc.explain("layer2.conv1"))
    for part in ("vertex layer2_conv1", "test_explain.py:", "torch.relu(self.conv2(torch.relu(self.conv1(x))) + x)",
                 "layer2.conv1.weight (parameter)", "children    layer2_relu", "Δ layer2.conv1.weight = ε ⋆ x",
                 "aten.convolution.default: multilinear", "# predict", "prediction_layer2_conv1 = ",
                 "convolution_backward("):  # fmt: skip
        assert part in text, part


def test_everything_below(pc) -> None:
    text = str(pc.explain("layer2"))
    assert "layer2_conv1" in text
    assert "layer1_conv1" not in text
    assert "multilinear" in text


def test_all(pc) -> None:
    text = str(pc.explain())
    assert all(v.name in text for v in pc.graph.vertices)
    assert f"{len(pc.graph.vertices)} vertices; rules: " in text


def test_every_vertex(pc) -> None:
    strict = pccompile.compile(Net(), (torch.randn(2, 2, 5, 5),), algorithm="strict")
    relaxed = pccompile.compile(Net(), (torch.randn(2, 2, 5, 5),), algorithm="fixed-prediction", lowering="relax")
    for compiled in (pc, strict, relaxed):
        for vertex in compiled.graph.vertices:
            text = str(compiled.explain(vertex.name))
            assert "# predict" in text, text
            assert f"prediction_{vertex.name} = " in text or "(" in text
            if vertex.name not in compiled.graph.clamped:
                assert f"error_{vertex.name}" in text or f'"{vertex.name}": ' in text, text


def test_a_rule_goes_only_through_its_own_operations() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    text = str(pccompile.compile(model, (torch.randn(2, 3),), algorithm="strict").explain("2"))
    rules = {line.split(" = ")[0].split("Δ ")[1]: line.split(" = ")[1] for line in text.splitlines() if " Δ " in line}
    assert set(rules) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert "Wᵀ" not in rules["1.weight"]
    assert "xᵀ" not in rules["1.weight"]


def test_near_names(pc) -> None:
    with pytest.raises(pccompile.CompileError, match=r"did you mean layer1\.conv1"):
        pc.explain("layer1.covn1")
    with pytest.raises(pccompile.CompileError, match="without a name, all vertices are listed"):
        pc.explain("§§§")


def test_summary(pc) -> None:
    text = str(pc.summary())
    for part in (
        "algorithm    exact",
        "vertices",
        "longest path",
        "parameters",
        "rules",
        "spare.weight",
        "round",
        "frozen.weight",
    ):
        assert part in text, part


def test_tables() -> None:
    table = Table(("name", ">size"), (("a\x1b[31m", "1"), ("bb", "1000")))
    assert str(table) == "name       size\na\\x1b[31m     1\nbb         1000"
    plain, terminal = io.StringIO(), io.StringIO()
    terminal.isatty = lambda: True
    page = Page(("first [bold]line[/bold]", table))
    show(page, plain)
    show(page, terminal)
    assert plain.getvalue() == f"{page}\n"
    assert "first [bold]line[/bold]" in terminal.getvalue()
    assert "\x1b[31m" not in terminal.getvalue()
    assert [number(x) for x in (0, 3.14159e-7, 0.5, float("nan"), float("inf"))] == ["0", "3.1e-07", "0.5", "–", "inf"]


def test_what_a_weight_learns_is_no_feedback() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    pc = pccompile.compile(model, (torch.randn(2, 3),), feedback="random", check=False)
    text = str(pc.explain("2"))
    assert "Δ 2.weight = ε xᵀ" in text
    assert "Bᵀ ε" in text  # what is sent to the hidden value
