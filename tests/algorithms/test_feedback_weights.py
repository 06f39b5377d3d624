"""Every kind of weight through which messages go, where feedback weights live, and what is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import pccompile
from algorithms.nets import problem, squared
from pccompile.cli.grammar import parser
from pccompile.passes.choices import DERIVATIVES, FEEDBACK
from pccompile.pipeline import Options

Product = Callable[[Tensor, Callable[[str], Tensor]], Tensor]
"""A product of a value and weights that are got by name."""


class Through(nn.Module):
    """tanh(x), a product with weights, and a sum over everything but the samples."""

    def __init__(self, product: Product, weights: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.product = product
        self.scale = nn.Parameter(torch.tensor(0.7))
        for name, shape in weights.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.product(torch.tanh(x * self.scale), self.get_parameter).flatten(1).square()

    def reference(self, x: Tensor, feedback: dict[str, Tensor]) -> Tensor:
        """The same, where an error goes back through `feedback` and weights see the value as a constant."""
        h = torch.tanh(x * self.scale)
        value = self.product(h.detach(), self.get_parameter)
        back = self.product(h, feedback.__getitem__)
        return (value + back - back.detach()).flatten(1).square()


def _normed(v: Tensor, g: Tensor) -> Tensor:
    return v * (g / v.norm(dim=1, keepdim=True))


X, IMAGE, LINE, VOLUME = (3, 4), (3, 4, 5, 5), (3, 4, 6), (2, 2, 4, 3, 4)
PRODUCTS: dict[str, tuple[Product, dict[str, tuple[int, ...]], tuple[int, ...]]] = {
    "linear": (lambda h, w: F.linear(h, w("a")), {"a": (5, 4)}, X),
    "matmul": (lambda h, w: h @ w("a"), {"a": (4, 5)}, X),
    "from the left": (lambda h, w: w("a") @ h.T, {"a": (5, 4)}, X),
    "vector": (lambda h, w: (h @ w("a")).unsqueeze(1), {"a": (4,)}, X),
    "batched": (lambda h, w: torch.bmm(h, w("a").expand(3, -1, -1)), {"a": (6, 2)}, LINE),
    "einsum": (lambda h, w: torch.einsum("bi,oi->bo", h, w("a")), {"a": (5, 4)}, X),
    "transposed and reshaped": (lambda h, w: h @ w("a").reshape(5, 4).t(), {"a": (10, 2)}, X),
    "sliced": (lambda h, w: F.linear(h, w("a")[1:4]), {"a": (5, 4)}, X),
    "cast": (lambda h, w: F.linear(h.float(), w("a").float()).double(), {"a": (5, 4)}, X),
    "normed": (lambda h, w: F.linear(h, _normed(w("v"), w("g"))), {"v": (5, 4), "g": (5, 1)}, X),
    "low rank": (lambda h, w: F.linear(h, w("u") @ w("v")), {"u": (5, 2), "v": (2, 4)}, X),
    "used twice": (lambda h, w: F.linear(h, w("a")) + h.flip(1) @ w("a").t(), {"a": (4, 4)}, X),
    "gain": (lambda h, w: h * w("a"), {"a": (4,)}, X),
    "conv1d": (lambda h, w: F.conv1d(h, w("a"), stride=2, padding=1), {"a": (3, 4, 3)}, LINE),
    "conv2d, grouped": (lambda h, w: F.conv2d(h, w("a"), w("b"), groups=2), {"a": (6, 2, 3, 3), "b": (6,)}, IMAGE),
    "conv2d, depthwise": (lambda h, w: F.conv2d(h, w("a"), groups=4, dilation=2), {"a": (4, 1, 2, 2)}, IMAGE),
    "conv2d, transposed": (lambda h, w: F.conv_transpose2d(h, w("a"), stride=2), {"a": (4, 3, 2, 2)}, IMAGE),
    "conv3d": (lambda h, w: F.conv3d(h, w("a"), padding=1), {"a": (3, 2, 3, 2, 3)}, VOLUME),
}  # fmt: skip


def _gradients(output: Tensor, model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    target = torch.randn(output.shape, generator=generator, dtype=output.dtype)
    return dict(
        zip(
            dict(model.named_parameters()),
            torch.autograd.grad((output * target).sum(), list(model.parameters())),
            strict=True,
        )
    )


QUICK = ("normed", "used twice", "conv2d, grouped")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in PRODUCTS])
def test_every_product_goes_back_through_other_weights(name: str) -> None:
    product, weights, shape = PRODUCTS[name]
    torch.manual_seed(0)
    model = Through(product, weights).double()
    x = torch.randn(shape, dtype=torch.float64)
    pc = pccompile.compile(model, (x,), feedback="random")
    feedback = {n: model.get_parameter(n).detach() for n in weights}
    with torch.no_grad():  # a gain's begins as a copy: it must not stay one to be seen
        feedback |= {
            k.removeprefix("feedback."): t.add_(0.3).clone() for k, t in pc.state_dict().items() if "feedback." in k
        }
    assert set(feedback) == set(weights)
    found, expected = _gradients(pc(x), model), _gradients(model.reference(x, feedback), model)
    limit = 1e-5 if name == "cast" else 1e-10
    for n, g in expected.items():
        assert torch.allclose(found[n], g, rtol=limit, atol=limit * float(g.norm())), n
    assert (found["scale"] - _gradients(model(x), model)["scale"]).abs() > 1e-3


class Named(nn.Module):
    """A model that has something called feedback already, and a parametrised weight."""

    def __init__(self) -> None:
        super().__init__()
        self.feedback = nn.Linear(4, 5)
        self.out = weight_norm(nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.feedback(x)))


def test_feedback_weights_are_the_module_s_and_not_the_model_s() -> None:
    model, x = Named(), torch.randn(6, 4)
    torch.manual_seed(1)
    pc = pccompile.compile(model, (x,), loss=squared, feedback="random")
    added = [k for k in pc.state_dict() if k not in model.state_dict()]
    assert added == [f"feedback_1.out.parametrizations.weight.original{i}" for i in range(2)]
    assert not [n for n, _ in pc.named_parameters() if n in added]
    torch.manual_seed(1)
    again = pccompile.compile(copy.deepcopy(model), (x,), feedback="random")
    assert all(torch.equal(again.state_dict()[k], pc.state_dict()[k]) for k in added)
    other = pccompile.compile(copy.deepcopy(model), (x,), loss=squared, feedback="random")
    assert not torch.equal(other.state_dict()[added[1]], pc.state_dict()[added[1]])
    other.load_state_dict(pc.state_dict())
    wanted = _trained(pc, x)
    for twin in (other, copy.deepcopy(pc)):
        assert all(torch.equal(g, wanted[n]) for n, g in _trained(twin, x).items())
    pc.double()
    assert pc.state_dict()[added[0]].dtype == torch.float64
    wide = _trained(pc, x.double())
    assert all(torch.allclose(g.float(), wanted[n], rtol=1e-3, atol=1e-5) for n, g in wide.items())
    model.float()  # the model alone: what stands for its weights follows
    assert all(torch.allclose(g, wanted[n], rtol=1e-3, atol=1e-5) for n, g in _trained(pc, x).items())


def _trained(pc: pccompile.PCModule, x: Tensor) -> dict[str, Tensor]:
    pc.zero_grad()
    pc.loss(x, target=torch.ones(len(x), 3, dtype=x.dtype)).backward()
    return {n: p.grad.clone() for n, p in pc.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["random", "kolen-pollack"])
def test_the_generated_file_stands_alone(kind: str) -> None:
    p = problem("gated")
    pc = p.compile("strict", feedback=kind)
    functions: dict[str, Any] = {}
    exec(pc.source, functions)
    state = pc.state()
    assert any(k.startswith("feedback.") for k in state)
    _, found = functions["step"](state, state, {"x": p.x}, [p.target])
    pc.loss(p.x, target=p.target).backward()
    assert all(torch.equal(q.grad, found[n]) for n, q in pc.named_parameters() if q.grad is not None)
    twin = pickle.loads(pickle.dumps(pc))
    twin.zero_grad()
    twin.loss(p.x, target=p.target).backward()
    assert all(torch.equal(q.grad, found[n]) for n, q in twin.named_parameters() if q.grad is not None)
    assert (kind == "kolen-pollack") == any(k.startswith("feedback.") for k in found)


class Two(nn.Module):
    """Two outputs behind one hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.a(x))
        return self.b(h), self.c(h)


def test_a_loss_of_some_outputs_reads_the_same_weights() -> None:
    x = torch.randn(6, 4)
    pc = pccompile.compile(Two(), (x,), feedback="random")
    pc(x)[0].sum().backward()
    error = torch.ones(6, 3) @ pc.state_dict()["feedback.b.weight"]
    h = torch.tanh(F.linear(x, pc.a.weight, pc.a.bias))
    assert torch.allclose(pc.a.weight.grad, ((1 - h * h) * error).T @ x, atol=1e-5)
    assert pc.c.weight.grad is None


def test_a_frozen_weight_stays_where_it_is() -> None:
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, 3)), torch.randn(6, 4)
    model[2].requires_grad_(False)
    pc = pccompile.compile(model, (x,), feedback="random")
    assert [k for k in pc.state_dict() if k.startswith("feedback.")] == ["feedback.3.weight"]


def test_it_is_explained_and_verified() -> None:
    p = problem("gated")
    pc = pccompile.compile(p.model, (p.x,), algorithm="exact", feedback="random")
    assert "Bᵀ ε[o]" in str(pc.explain("add"))
    assert "Messages to values: random feedback" in pc.source
    assert "Bᵀ ε" in pc.source
    report = pccompile.verify(pc, (p.x,), target=p.target)
    assert report.passed
    assert "random feedback: gradients differ" in str(report)
    assert any("its own feedback" in n for n in pc.notes)
    assert "3 tensors" in str(pc.summary())


class Sequence(nn.Module):
    """An LSTM layer behind a linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.cells, self.out = nn.Linear(3, 4), nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cells(torch.tanh(self.into(x)))[0][:, -1])


def test_a_layer_over_time_sends_its_errors_back_through_other_weights_inside() -> None:
    """As the same network unrolled into cells does."""
    torch.manual_seed(0)
    model, x = Sequence().double(), torch.randn(4, 3, 3, dtype=torch.float64)
    pc = pccompile.compile(model, (x,), loss=squared, feedback="random")
    back = {k.removeprefix("feedback."): t for k, t in pc.state_dict().items() if k.startswith("feedback.")}
    assert set(back) == {"cells.weight_ih_l0", "cells.weight_hh_l0", "out.weight"}

    def through(h: Tensor, path: str) -> Tensor:
        weight = model.get_parameter(path)
        returned = F.linear(h, back[path])
        return F.linear(h.detach(), weight) + returned - returned.detach()

    y = torch.tanh(model.into(x))
    h = c = x.new_zeros(4, 5)
    for step in y.unbind(1):
        gates = through(step, "cells.weight_ih_l0") + through(h, "cells.weight_hh_l0")
        i, f, g, o = (gates + model.cells.bias_ih_l0 + model.cells.bias_hh_l0).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    target = torch.ones(4, 3, dtype=torch.float64)
    expected = torch.autograd.grad(squared(through(h, "out.weight") + model.out.bias, target), list(model.parameters()))
    pc.loss(x, target=target).backward()
    for (n, p), g in zip(model.named_parameters(), expected, strict=True):
        assert p.grad is not None
        assert torch.allclose(p.grad, g, rtol=1e-9, atol=1e-11), n


@pytest.mark.parametrize(
    "how, words",
    [
        ({"feedback": "dkp"}, "the weights inside cannot be passed by"),
        ({"feedback": "mirror"}, "unknown feedback 'mirror'"),
        ({"derivatives": "none"}, "unknown derivatives 'none'"),
        (
            {"feedback": "random", "algorithm": "strict", "rate": "auto"},
            "is measured for messages by transposes",
        ),
        ({"derivatives": "dropped"}, "feedback: lstm_layer"),
        ({"feedback": "random", "backend": "netlist"}, "a circuit has the weights of its projections in its feedback"),
    ],
)
def test_what_is_not_there_is_refused(how: dict[str, Any], words: str) -> None:
    with pytest.raises(pccompile.CompileError) as caught:
        pccompile.compile(Sequence(), (torch.randn(4, 3, 3),), **how)
    assert words in str(caught.value)


class Branch(nn.Module):
    """A branch that reads a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        return torch.cond(h.sum() > 0, lambda t: self.b(t), lambda t: t * 2.0, (h,))  # type: ignore[no-any-return]


def test_weights_inside_a_branch_are_refused_by_name() -> None:
    with pytest.raises(pccompile.CompileError, match="is one operation, the weights inside cannot be replaced"):
        pccompile.compile(Branch(), (torch.randn(3, 4),), feedback="random")


def test_nothing_is_analysed_and_nothing_kept_where_there_is_no_place() -> None:
    p = problem("chain")
    pc = p.compile("strict", feedback="random")
    with pytest.raises(pccompile.CompileError, match="with random feedback, messages follow no free energy"):
        pc.analyse((p.x,), target=p.target)
    fast = torch.compile(copy.deepcopy(p.model), backend="pccompile", options={"feedback": "random"})
    with pytest.raises(Exception, match="has no place for the weights of random feedback"):
        fast(p.x)


def test_the_command_line_knows_all_kinds() -> None:
    known = {action.dest: action.choices for action in parser()._actions}
    assert (known["feedback"], known["derivatives"]) == (FEEDBACK, DERIVATIVES)
    assert Options().transposes
