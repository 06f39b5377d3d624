"""Direct Kolen-Pollack feedback: the output's error sent straight to every value that a weight multiplies.

The references are the networks of `feedback_nets`, by autograd Functions whose backward lets nothing through a weight
and hands the output's gradient on instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pccompile
from algorithms.feedback_nets import FORWARD, Net
from algorithms.nets import Gradients, Problem, apart, problem, squared


class Keep(torch.autograd.Function):
    """Keeps the output's gradient in a box."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, box: dict[str, Tensor]) -> Tensor:
        ctx.box = box
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, e: Tensor) -> tuple[Tensor | None, ...]:
        ctx.box["error"] = e.flatten(1)
        return e, None


class Receive(torch.autograd.Function):
    """A value on its way to weights, which gets the output's gradient through Ψ, and not that of its readers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, psi: Tensor, box: dict[str, Tensor]) -> Tensor:
        ctx.save_for_backward(x, psi)
        ctx.box = box
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, e: Tensor) -> tuple[Tensor | None, ...]:
        x, psi = ctx.saved_tensors
        error = ctx.box["error"]
        return (error @ psi).reshape(x.shape), error.T @ x.flatten(1), None


class Direct(Net):
    """A network whose weights read values behind `Receive`, the first time that each is read."""

    def __init__(self, p: Problem, feedback: dict[str, Tensor]) -> None:
        super().__init__(p, {}, dropped=False)
        self.psi = {k: t.clone().requires_grad_() for k, t in feedback.items()}
        self.waiting, self.box = list(self.psi.values()), dict[str, Tensor]()
        self.received: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, kind: Any, x: Tensor, weight: str, bias: str) -> Tensor:
        if x.requires_grad and id(x) not in self.received:
            self.received[id(x)] = x, Receive.apply(x, self.waiting.pop(0), self.box)  # type: ignore[no-untyped-call]
        return super().layer(kind, self.received[id(x)][1] if x.requires_grad else x, weight, bias)

    def gradients(self, forward: Callable[[Net, Tensor], Tensor]) -> Gradients:
        output = Keep.apply(forward(self, self.p.x), self.box)  # type: ignore[no-untyped-call]
        self.p.loss(output, self.p.target).backward()
        assert not self.waiting
        return {n: t.grad for n, t in (*self.own.items(), *self.psi.items()) if t.grad is not None}


def feedback_of(pc: nn.Module) -> dict[str, Tensor]:
    return {k: t.detach() for k, t in pc.state_dict().items() if k.startswith("feedback.")}


def by_places(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Columns of attention's Ψ in the order in which the network by hand has them: by places, then heads."""
    attention = next((k for k in found if "attention" in k and k.startswith("feedback")), "")
    whole = found[attention].reshape(3, 2, 3, 4).transpose(1, 2).reshape(3, 24) if attention else None
    return found if whole is None else {**found, attention: whole}


def gradients(pc: pccompile.PCModule, p: Problem) -> Gradients:
    pc.zero_grad()
    pc.loss(p.x, target=p.target).backward()
    return {n: q.grad.clone() for n, q in pc.named_parameters() if q.grad is not None}


QUICK, SLOW = ("gated", "cnn", "transformer"), ("chain", "lstm")


@pytest.mark.parametrize("net", [*QUICK, *(pytest.param(net, marks=pytest.mark.slow) for net in SLOW)])
def test_gradients_are_those_by_hand(net: str) -> None:
    p = problem(net)
    pc = p.compile("exact", feedback="dkp")
    found, expected = gradients(pc, p), Direct(p, by_places(feedback_of(pc))).gradients(FORWARD[net])
    assert apart(by_places(found), expected) < 1e-10
    assert {k for k in found if k.startswith("feedback.")} == feedback_of(pc).keys()
    assert apart({k: found[k] for k in p.backprop}, p.backprop) > 1e-2


@pytest.mark.slow
def test_the_same_whatever_a_vertex_is() -> None:
    p, found = problem("chain"), list[Gradients]()
    for granularity in ("op", "layer"):
        torch.manual_seed(3)
        found.append(gradients(p.compile("exact", feedback="dkp", granularity=granularity), p))
    assert apart(*found) < 1e-12
    torch.manual_seed(3)
    fixed = p.compile("fixed-prediction", feedback="dkp", rate=1.0, steps=3)
    assert apart(gradients(fixed, p), found[0]) < 1e-10


def test_strict_inference_is_a_loop_by_hand() -> None:
    """v ← v + η (Ψᵀ ε_out − ε) at every hidden value, and local gradients at the end."""
    p, steps, rate = problem("chain"), 6, 0.1
    pc = p.compile("strict", feedback="dkp", steps=steps, rate=rate)
    first, last = feedback_of(pc).values()
    a, b, o = (p.model.get_submodule(i) for i in "024")
    one = torch.tanh(a(p.x)).detach()
    two = torch.tanh(b(one)).detach()
    for _ in range(steps):
        error = (p.target - o(two)).detach()
        moves = error @ first - (one - torch.tanh(a(p.x))), error @ last - (two - torch.tanh(b(one)))
        one, two = (v + rate * f.detach() for v, f in zip((one, two), moves, strict=True))
    error = (p.target - o(two)).detach()
    energies = (one - torch.tanh(a(p.x))).square().sum() + (two - torch.tanh(b(one))).square().sum()
    (0.5 * energies + squared(o(two), p.target)).backward()
    expected = {n: q.grad for n, q in p.model.named_parameters()}
    expected |= {"feedback.n1.n4": -error.T @ one, "feedback.n3.n4": -error.T @ two}
    assert apart(gradients(pc, p), expected) < 1e-10


def test_on_one_hidden_layer_it_is_kolen_pollack() -> None:
    """The only weight behind the hidden layer is the output's: W − Ψ shrinks by 1 − ηλ in a step."""
    p = Problem(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), (4, 5))
    layered, direct = p.compile("exact", feedback="kolen-pollack"), p.compile("exact", feedback="dkp")
    with torch.no_grad():
        direct.get_parameter("feedback.n1.n2").copy_(layered.get_parameter("feedback.2.weight"))
    one, other = gradients(layered, p), gradients(direct, p)
    torch.testing.assert_close(other.pop("feedback.n1.n2"), one.pop("feedback.2.weight"))
    assert apart(other, one) < 1e-12
    optimizer = torch.optim.SGD(direct.parameters(), 0.1, weight_decay=0.2)
    apart_before = direct.get_parameter("2.weight") - direct.get_parameter("feedback.n1.n2")
    direct.train_step(p.x, p.target, optimizer)
    apart_after = direct.get_parameter("2.weight") - direct.get_parameter("feedback.n1.n2")
    torch.testing.assert_close(apart_after, (1 - 0.1 * 0.2) * apart_before)


def test_several_outputs_send_to_what_leads_to_them() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.left, self.right = (nn.Linear(n, m) for n, m in ((5, 6), (6, 4), (6, 2), (4, 3)))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(self.a(x))
            return self.left(h), self.right(torch.tanh(self.b(h)))

    torch.manual_seed(0)
    model, x = Heads().double(), torch.randn(4, 5, dtype=torch.float64)
    pc = pccompile.compile(model, (x,), feedback="dkp")
    psi = feedback_of(pc)
    shapes = {k: tuple(t.shape) for k, t in psi.items()}
    assert shapes == {
        "feedback.tanh.left": (2, 6), "feedback.tanh.right": (3, 6), "feedback.tanh_1.right": (3, 4)
    }  # fmt: skip
    left, right = pc(x)
    targets = torch.randn_like(left), torch.randn_like(right)
    (squared(left, targets[0]) + squared(right, targets[1])).backward()
    h = torch.tanh(model.a(x)).detach()
    errors = [(o - t).detach() for o, t in zip((left, right), targets, strict=True)]
    sent = errors[0] @ psi["feedback.tanh.left"] + errors[1] @ psi["feedback.tanh.right"]
    torch.testing.assert_close(model.a.weight.grad, ((1 - h**2) * sent).T @ x)
    pc.zero_grad()
    squared(pc(x)[0], targets[0]).backward()
    alone = ((1 - h**2) * (errors[0] @ psi["feedback.tanh.left"])).T @ x
    torch.testing.assert_close(model.a.weight.grad, alone)
    assert model.b.weight.grad is None


def test_what_weights_read_behind_other_wiring_is_told_where_samples_come_first() -> None:
    """Halves of a value, each read by a weight of its own; and channels that are flattened."""

    class Wired(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.left, self.right = nn.Conv1d(2, 4, 3), nn.Linear(6, 3), nn.Linear(6, 3)
            self.flat = nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.conv(x))
            one, two = h.flatten(1).chunk(2, 1)
            return self.left(one) * self.right(two) + self.flat(h.flatten(1))

    torch.manual_seed(0)
    model, x = Wired().double(), torch.randn(4, 2, 5, dtype=torch.float64)
    pc = pccompile.compile(model, (x,), feedback="dkp")
    psi = feedback_of(pc)
    assert sorted(tuple(t.shape) for t in psi.values()) == [(3, 6), (3, 6), (3, 12)]
    target = torch.randn(4, 3, dtype=torch.float64)
    squared(pc(x), target).backward()
    h = torch.tanh(model.conv(x))
    error = (model(x) - target).detach()
    whole, (one, two) = psi["feedback.tanh.add"], (t for t in psi.values() if t.shape[1] == 6)
    sent = (error @ whole + torch.cat([error @ one, error @ two], 1)).reshape(h.shape)
    expected = torch.autograd.grad(h, list(model.conv.parameters()), sent)
    for q, g in zip(model.conv.parameters(), expected, strict=True):
        torch.testing.assert_close(q.grad, g, rtol=1e-10, atol=1e-12)
    grads = {n: q.grad for n, q in pc.named_parameters() if n.startswith("feedback")}
    torch.testing.assert_close(grads["feedback.tanh.add"], error.T @ h.detach().flatten(1))


def test_it_is_certified_as_one_broadcast() -> None:
    p = problem("gated")
    report = p.compile("exact", feedback="dkp").locality()
    assert "broadcast    one, of the error of o to 3 values directly" in str(report)
    assert "no message reads a parameter that learns" in str(report)
    assert report.as_dict()["broadcast"] == (("o", 3),)
    assert "broadcast" not in str(p.compile("exact", feedback="random").locality())
    assert p.compile("strict", feedback="dkp").locality().found.longest == 2  # the gate's product, and the output
    assert problem("chain").compile("strict", feedback="dkp").locality().found.longest == 1


def test_it_learns() -> None:
    """A regression that its gradients, which are not backpropagation's, bring down all the same."""
    p = problem("chain")
    pc = p.compile("exact", feedback="dkp")
    optimizer = torch.optim.SGD(pc.parameters(), 0.05, weight_decay=1e-3)
    losses = [float(pc.train_step(p.x, p.target, optimizer)) for _ in range(150)]
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.parametrize(
    "make, shape, how, words",
    [
        (lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), (4, 5), {"granularity": "output"},
         "in front of a weight is inside vertex n2"),
        (lambda: nn.Sequential(nn.Linear(5, 6), nn.LSTM(6, 3)), (4, 2, 5), {},
         "the weights inside cannot be passed by"),
        (lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), (4, 5), {"algorithm": "zil"},
         "zil: all hidden values are one edge from an output"),
        (lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), (4, 7, 5),
         {"dynamic_shapes": ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},)},
         "feedback dkp: a sample of n1 has no fixed shape"),
        (lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3), nn.Flatten(0, 1)), (4, 7, 5), {},
         "do not begin with the samples"),
    ],
)  # fmt: skip
def test_what_has_no_direct_feedback_is_refused_by_name(
    make: Callable[[], nn.Module], shape: tuple[int, ...], how: dict[str, Any], words: str
) -> None:
    with pytest.raises(pccompile.CompileError) as caught:
        pccompile.compile(make(), (torch.randn(shape),), feedback="dkp", check=False, **how)
    assert words in str(caught.value)
