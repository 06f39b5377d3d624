"""Equations in LaTeX."""

import pytest
import torch
from torch import nn

import pccompile
from pccompile.report.latex import Equations


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.out = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 3)

    def forward(self, x):
        scores = self.query(x) @ self.key(x).transpose(-1, -2) / 2
        return self.out((torch.softmax(scores, -1) @ x).mean(1))


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 2)

    def forward(self, x):
        h = torch.relu(self.norm(self.conv(x)))
        return self.out((h * torch.sigmoid(h)).amax((2, 3)))


MODELS = {"attention": (Attention, torch.randn(2, 5, 6)), "convolutional": (Convolutional, torch.randn(2, 2, 5, 5))}


@pytest.mark.quick(1)
@pytest.mark.parametrize("name, how", [
    ("attention", {"algorithm": "exact"}),
    ("attention", {"algorithm": "fixed-prediction", "lowering": "relax", "granularity": "op"}),
    ("convolutional", {"algorithm": "strict", "loss": nn.functional.mse_loss}),
    ("convolutional", {"algorithm": "exact", "feedback": "random", "derivatives": "dropped", "granularity": "op"}),
    ("convolutional", {"algorithm": "alm", "granularity": "op", "loss": nn.functional.mse_loss}),
], ids=["exact", "fixed", "strict", "feedback", "alm"])  # fmt: skip
def test_equations(name, how, golden) -> None:
    model, x = MODELS[name]
    pc = pccompile.compile(model(), (x,), check=False, **how)
    golden(pc.latex() + "\n", ".tex")


def test_braces_match_and_no_name_is_a_command() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("a_{b}\\input{x}$%&#^~", nn.Linear(3, 2))

        def forward(self, x):
            return next(iter(self._modules.values()))(x)

    text = pccompile.compile(Odd(), (torch.randn(2, 3),), check=False).latex()
    assert r"\input" not in text
    assert r"\textsf{a\_\{b\}\textbackslash{}input\{x\}\$\%\&\#\textasciicircum{}\textasciitilde{}}" in text
    plain = text.replace(r"\{", "").replace(r"\}", "")
    assert plain.count("{") == plain.count("}")
    assert text.count(r"\left(") == text.count(r"\right)")


def test_a_message_along_two_ways_is_a_jacobian() -> None:
    """x σ(x) in one vertex: what comes back is a sum, which no product of slopes is."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            h = torch.tanh(self.a(x))
            return self.b(h + h * h)

    pc = pccompile.compile(Twice(), (torch.randn(2, 3),), algorithm="strict", granularity="layer", check=False)
    equations = Equations(pc.compiled.program)
    sums = [e.tex for v in pc.graph.vertices for e in equations.of(v) if e.role == "sends"]
    assert any(r"\frac{\partial \hat v}{\partial v_{\textsf{tanh}}}" in s for s in sums), sums


def test_of_a_vertex() -> None:
    model = nn.Sequential()
    for name, layer in (("first", nn.Linear(3, 4)), ("tanh", nn.Tanh()), ("last", nn.Linear(4, 2))):
        model.add_module(name, layer)
    pc = pccompile.compile(model, (torch.randn(2, 3),), check=False)
    tanh = next(v for v in pc.graph.vertices if v.name == "tanh")
    assert [(e.role, e.tex, e.to) for e in Equations(pc.compiled.program).of(tanh)] == [
        ("predicts", r"\hat v = \tanh\left(\hat v_{\textsf{first}}\right)", ""),
        ("settles", r"\varepsilon = W_{\textsf{last}}^{\top} \, \varepsilon_{\textsf{last}}", ""),
        ("sends", r"\left(1 - \tanh^{2}\left(\hat v_{\textsf{first}}\right)\right) \odot \varepsilon", "first"),
    ]
