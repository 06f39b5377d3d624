"""The graph of vertices in other languages, and reports as notebooks show them."""

import re

import pytest
import torch
from torch import nn

import pccompile


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return x + self.outer(torch.tanh(self.inner(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(3, 3), Block(), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.block(self.stem(x)))


@pytest.fixture(scope="module")
def pc():
    return pccompile.compile(Net(), (torch.randn(2, 3),), check=False)


@pytest.mark.parametrize("language", ["dot", "mermaid"])
def test_drawing(pc, language, golden) -> None:
    golden(getattr(pc, language)(), f".{language}")


@pytest.mark.parametrize("language, arrow", [("dot", "->"), ("mermaid", "-->")])
def test_every_edge_is_drawn_once(pc, language, arrow) -> None:
    names = [v.name for v in pc.graph.vertices]
    drawn = re.findall(rf"^  v(\d+) {arrow} v(\d+);?$", getattr(pc, language)(), re.M)
    edges = [(names.index(p), i) for i, v in enumerate(pc.graph.vertices) for p in v.parents if p in names]
    assert [(int(a), int(b)) for a, b in drawn] == edges


def test_names_are_escaped() -> None:
    model = nn.Sequential()
    model.add_module('a"];\\]<b>#\n', nn.Linear(3, 2))
    pc = pccompile.compile(model, (torch.randn(2, 3),), check=False)
    (label,) = re.findall(r'^  v0 \[label=("(?:[^"\\]|\\.)*")', pc.dot(), re.M)
    assert label.startswith('"')
    assert re.fullmatch(r'flowchart TD\n  v0\[\[?"[^"\]<>]*"\]\]?\n', pc.mermaid())


def test_reports_in_a_notebook(pc) -> None:
    x = torch.randn(2, 3)
    for shown in (pc, pc.summary(), pc.explain(), pc.infer((x,), target=torch.randn(2, 2)), pccompile.verify(pc, (x,))):
        html = shown._repr_html_()
        assert re.match(r"<(pre|table)>", html)
        inside = re.sub(r"</?(pre|table|thead|tbody|tr|th|td)( style=\"text-align:(left|right)\")?>", "", html)
        assert "<" not in inside
    page = pc.explore((x,), algorithms=[])._repr_html_()
    assert page.startswith('<iframe sandbox="allow-scripts"')
    assert page.count("<") == 2  # the page is an attribute, escaped
