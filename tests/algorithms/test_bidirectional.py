"""Bidirectional predictive coding against loops by hand, over the free energy written with torch's own functions."""

from __future__ import annotations

import copy
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pccompile
from algorithms.nets import NETS, Gradients, Problem, apart, chain, problem
from pccompile import energy

STEPS, RATE = 6, 0.07
Weights = dict[str, Tensor]


def convolutions() -> nn.Module:
    """Strided, padded, dilated and grouped convolutions, and a flattened readout."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.SELU(),
        nn.Conv2d(4, 6, 2, dilation=2, groups=2, bias=False), nn.Sigmoid(), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip


class Chain:
    """Layers and mirrors of the chain of `nets`."""

    activations = (lambda z: z, torch.tanh, torch.tanh)

    def layers(self, w: Weights, v: list[Tensor]) -> list[Tensor]:
        made = [F.linear(x, w[f"{i}.weight"], w[f"{i}.bias"]) for i, x in zip((0, 2, 4), v, strict=False)]
        return [torch.tanh(made[0]), torch.tanh(made[1]), made[2]]

    def mirrors(self, w: Weights, v: list[Tensor]) -> list[Tensor]:
        made = [
            F.linear(x, w[f"mirror.{i}.weight"], w[f"mirror.{i}.bias"]) for i, x in zip((0, 2, 4), v[1:], strict=True)
        ]
        return [made[0], torch.tanh(made[1]), torch.tanh(made[2])]


class Convolutions:
    """The same of `convolutions`, on images of 8 × 7."""

    def layers(self, w: Weights, v: list[Tensor]) -> list[Tensor]:
        one = F.selu(F.conv2d(v[0], w["0.weight"], w["0.bias"], stride=2, padding=1))
        two = torch.sigmoid(F.conv2d(v[1], w["2.weight"], dilation=2, groups=2))
        return [one, two, F.linear(v[2].flatten(1), w["5.weight"], w["5.bias"])]

    def mirrors(self, w: Weights, v: list[Tensor]) -> list[Tensor]:
        how = {"stride": 2, "padding": 1, "output_padding": (1, 0)}
        zero = F.conv_transpose2d(v[1], w["mirror.0.weight"], w["mirror.0.bias"], **how)
        one = F.selu(F.conv_transpose2d(v[2], w["mirror.2.weight"], dilation=2, groups=2))
        two = torch.sigmoid(F.linear(v[3], w["mirror.5.weight"], w["mirror.5.bias"]).reshape(-1, 6, 2, 2))
        return [zero, one, two]


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Any]] = {
    "chain": (chain, (4, 5), Chain()),
    "convolutions": (convolutions, (4, 2, 8, 7), Convolutions()),
}
WEIGHINGS = [(0.5, 1.5), (1.0, 1.0), (1.0, 0.0)]


class Bench:
    """One case, compiled, and its free energy by hand."""

    def __init__(self, case: str, discriminative: float, generative: float) -> None:
        make, shape, self.net = CASES[case]
        self.p = Problem(make, shape, loss=lambda y, t: 0.5 * (y - t).square().sum())
        self.of, self.x, self.y = (discriminative, generative), self.p.x, self.p.target
        torch.manual_seed(1)
        self.pc = pccompile.compile(
            copy.deepcopy(self.p.model), (self.x,), algorithm="bidirectional", steps=STEPS, rate=RATE,
            discriminative=discriminative, generative=generative,
        )  # fmt: skip
        self.weights = {k: t.detach().clone().requires_grad_() for k, t in self.pc.state_dict().items()}

    def free_energy(self, v: list[Tensor]) -> Tensor:
        """v: the input, the two hidden values, the output."""
        forwards = sum((a - b).square().sum() for a, b in zip(v[1:], self.net.layers(self.weights, v), strict=True))
        backwards = sum((a - b).square().sum() for a, b in zip(v, self.net.mirrors(self.weights, v), strict=False))
        return 0.5 * self.of[0] * torch.as_tensor(forwards) + 0.5 * self.of[1] * torch.as_tensor(backwards)

    def start(self, x: Tensor) -> list[Tensor]:
        """Every value where the layers predict it."""
        v = [x]
        for i in range(3):
            v.append(self.net.layers(self.weights, self._padded(v))[i].detach())
        return v

    def _padded(self, v: list[Tensor]) -> list[Tensor]:
        """Values so far; those that are not there yet have the right shapes, and are not read."""
        shapes = [self.x.shape, *self._shapes()]
        return [*v, *(torch.zeros(s, dtype=self.x.dtype) for s in shapes[len(v) : 3])]

    def _shapes(self) -> list[torch.Size]:
        found, x = [], self.x
        for layer in self.p.model.children():
            x = layer(x)
            if isinstance(layer, nn.Tanh | nn.SELU | nn.Sigmoid):
                found.append(x.shape)
        return found

    def relaxed(self, v: list[Tensor], moving: tuple[int, ...]) -> list[Tensor]:
        """Some of the values moved along −∂F/∂v."""
        for _ in range(STEPS):
            free = [v[i].detach().requires_grad_() for i in moving]
            now = [free[moving.index(i)] if i in moving else t for i, t in enumerate(v)]
            slopes = torch.autograd.grad(self.free_energy(now), free)
            for i, g in zip(moving, slopes, strict=True):
                v[i] = (v[i] - RATE * g).detach()
        return v

    def gradients(self, v: list[Tensor]) -> Gradients:
        found = torch.autograd.grad(self.free_energy(v), [*self.weights.values()], allow_unused=True)
        return {k: g for k, g in zip(self.weights, found, strict=True) if g is not None}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((c, *w), marks=() if w == WEIGHINGS[0] else pytest.mark.slow) for c in CASES for w in WEIGHINGS
    ],
    ids=str,
)
def bench(request: Any) -> Bench:
    return Bench(*request.param)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_it_learns_both_ways_as_by_hand(bench: Bench) -> None:
    v = bench.start(bench.x)
    v = bench.relaxed([*v[:3], bench.y], (1, 2))
    bench.pc.zero_grad()
    bench.pc.loss(bench.x, target=bench.y).backward()
    found = {n: q.grad for n, q in bench.pc.named_parameters() if q.grad is not None}
    expected = bench.gradients(v)
    assert found.keys() == expected.keys() == bench.weights.keys()
    assert max(float((found[k] - g).abs().max()) for k, g in expected.items()) < 1e-10
    trace = bench.pc.infer((bench.x,), target=bench.y)
    close(trace.free_energy[-1], bench.free_energy(v).detach())
    assert trace.settles


def test_a_reader_is_told_what_was_compared(bench: Bench) -> None:
    assert "gradients were compared without the mirrors of the layers" in " ".join(bench.pc.notes)
    assert bench.pc.checked is not None


def test_it_classifies_as_by_hand(bench: Bench) -> None:
    """Without a target the output is inferred, too."""
    v = bench.relaxed(bench.start(bench.x), (1, 2, 3))
    found = bench.pc.settle(bench.x)
    close(found.outputs, v[3])
    generated = bench.net.mirrors(bench.weights, v)[0].detach()
    close(found.errors["input_generated"], bench.of[1] * (bench.x - generated))


def test_it_generates_as_by_hand(bench: Bench) -> None:
    """A target given and the input free: what is inferred is an input."""
    v = bench.start(torch.zeros_like(bench.x))
    v = bench.relaxed([*v[:3], bench.y], (0, 1, 2))
    found = bench.pc.settle(torch.zeros_like(bench.x), target=bench.y, free="input")
    close(found["input"], v[0])
    assert apart(dict(found.gradients), bench.gradients(v)) < 1e-8


def test_it_fills_in_as_by_hand() -> None:
    """Elements of the input are given, the others and the output inferred."""
    bench = Bench("chain", 1.0, 1.0)
    known = torch.arange(5).expand(4, 5) < 3
    v = bench.start(bench.x)
    for _ in range(STEPS):
        free = [t.detach().requires_grad_() for t in v]
        now = [torch.where(known, bench.x, free[0]), *free[1:]]
        slopes = torch.autograd.grad(bench.free_energy(now), free)
        v = [(t - RATE * g).detach() for t, g in zip(v, slopes, strict=True)]
    found = bench.pc.settle(bench.x, mask={"input": known})
    close(found["input"], torch.where(known, bench.x, v[0]))
    close(found.outputs, v[3])


def test_without_mirrors_it_is_strict() -> None:
    """A squared error of the output is what a target at its value costs there."""
    p = problem("chain")
    p.loss = None
    found = p.gradients("bidirectional", steps=STEPS, rate=RATE, generative=0.0)
    strict = p.gradients("strict", steps=STEPS, rate=RATE)
    assert apart({k: found[k] for k in strict}, strict) < 1e-12
    assert all(bool((g == 0).all()) for k, g in found.items() if k.startswith("mirror."))


@pytest.mark.slow
def test_a_precision_stands_in_the_place_of_the_weight() -> None:
    p = problem("chain")
    p.loss = None
    table = dict.fromkeys(("n1", "n3", "n4"), 0.5)
    torch.manual_seed(3)
    one = p.compile("bidirectional", precision=table)
    torch.manual_seed(3)
    other = p.compile("bidirectional", discriminative=0.5)
    for pc in (one, other):
        pc.loss(p.x, target=p.target).backward()
    for q, r in zip(one.parameters(), other.parameters(), strict=True):
        close(q.grad, r.grad)


def test_mirrors_are_parameters_of_the_compiled_module() -> None:
    p = problem("chain")
    p.loss = None
    pc = p.compile("bidirectional")
    mirrors = {n: tuple(q.shape) for n, q in pc.named_parameters() if n.startswith("mirror.")}
    assert mirrors == {
        "mirror.0.weight": (5, 6), "mirror.0.bias": (5,), "mirror.2.weight": (6, 6), "mirror.2.bias": (6,),
        "mirror.4.weight": (6, 3), "mirror.4.bias": (6,),
    }  # fmt: skip
    optimizer = torch.optim.SGD(pc.parameters(), 0.1)
    before = {n: q.detach().clone() for n, q in pc.named_parameters()}
    pc.train_step(p.x, p.target, optimizer)
    assert all(not torch.equal(q, before[n]) for n, q in pc.named_parameters())
    twin = copy.deepcopy(pc)
    close(twin.settle(p.x).outputs, pc.settle(p.x).outputs)
    assert "mirror.0.weight" in str(pc.locality())


# what is refused


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), self.b(x)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.tanh(self.a(torch.tanh(self.a(x)))))


REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "skip": (*NETS["gated"], "vertex mul cannot be mirrored: it reads tanh, sigmoid, and not sigmoid alone"),
    "norm": (*NETS["cnn"], "vertex tanh cannot be mirrored"),
    "attention": (*NETS["transformer"], "cannot be mirrored"),
    "pooling": (lambda: nn.Sequential(nn.Conv1d(1, 2, 3), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(4, 3)), (4, 1, 6),
                "vertex n1_getitem cannot be mirrored: max_pool2d has no"),
    "two outputs": (TwoHeads, (4, 5), "the model has 2 outputs that carry an error"),
    "tied": (Tied, (4, 5), "its weight a.weight is that of another layer, too"),
}  # fmt: skip


SLOW = ("attention", "norm")


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow if c in SLOW else ()) for c in REFUSED])
def test_other_graphs_are_refused_by_the_vertex(case: str) -> None:
    make, shape, words = REFUSED[case]
    with pytest.raises(pccompile.CompileError) as caught:
        pccompile.compile(make(), (torch.randn(shape),), algorithm="bidirectional", check=False)
    assert words in str(caught.value)
    assert "bidirectional takes chains of linear layers and convolutions" in str(caught.value)


@pytest.mark.parametrize(
    "how, words",
    [
        ({"loss": F.cross_entropy}, "a target is the value of the output, and no loss is taken of it"),
        ({"outside_loss": "linearise"}, "a target is the value of the output"),
        ({"feedback": "random"}, "sends its messages by transposes, not with random feedback"),
        ({"rate": "auto"}, "rate is 'auto'"),
    ],
)
def test_what_does_not_go_with_mirrors_is_refused(how: dict[str, Any], words: str) -> None:
    with pytest.raises(pccompile.CompileError) as caught:
        pccompile.compile(chain(), (torch.randn(4, 5),), algorithm="bidirectional", **how)
    assert words in str(caught.value)


@pytest.mark.slow
def test_an_input_may_have_a_prior_besides() -> None:
    p = problem("chain")
    p.loss = None
    pc = p.compile("bidirectional")
    plain = pc.settle(p.x, target=p.target, free="input")["input"]
    prior = pc.settle(p.x, target=p.target, free={"input": energy("gaussian", precision=3.0)})["input"]
    assert float(prior.norm()) < float(plain.norm())


@pytest.mark.slow
def test_the_example_does_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install 'pccompile[demo]'")
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "bidirectional.py"), run_name="__main__")
    printed = capsys.readouterr().out
    accuracy, made = (
        float(re.findall(pattern, printed)[0]) for pattern in (r"classification: ([\d.]+)%", r"generation: (\d+)%")
    )
    filled, blind = map(float, re.findall(r"squared error ([\d.]+) .* ([\d.]+) for the mean", printed)[0])
    assert accuracy > 88
    assert made >= 80
    assert filled < 0.9 * blind
