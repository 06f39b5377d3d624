"""Precisions: numbers, tensors and learned ones, at hidden vertices and outputs, in every algorithm that has energies.

The references are the free energy F = Σ ½ Π ε² − ½ log Π written by hand, its finite differences, loops over torch's
autograd of it, and fixed points found by dense linear algebra.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pccompile
from algorithms.nets import Gradients, Problem, apart, chain, linear, problem
from pccompile import learned_precision

Precisions = dict[str, Any]
STEPS, RATE = 7, 0.05
DIAGONAL = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25, 1.5], dtype=torch.float64)
OF_OUTPUT = torch.tensor([2.0, 0.4, 1.25], dtype=torch.float64)
FORMS: dict[str, Precisions] = {
    "number at an output": {"n1": 2.0, "n4": 0.7},
    "tensors": {"n1": DIAGONAL, "n3": DIAGONAL.flip(0), "n4": OF_OUTPUT},
    "one of each": {"n1": torch.tensor(1.7), "n3": DIAGONAL[:1], "n4": 3.0},
}


def by_hand(p: Problem, precisions: Precisions) -> ByHand:
    return ByHand(p, {k: torch.as_tensor(v, dtype=torch.float64) for k, v in precisions.items()})


class ByHand:
    """Free energy of the chain, and inference by torch's own gradients of it."""

    def __init__(self, p: Problem, precisions: dict[str, Tensor]) -> None:
        self.p, self.of, self.model = p, precisions, copy.deepcopy(p.model)
        self.a, self.b, self.o = (self.model.get_submodule(str(i)) for i in (0, 2, 4))

    def cost(self, name: str, error: Tensor) -> Tensor:
        precision = self.of.get(name, torch.tensor(1.0, dtype=torch.float64)).expand(error.shape[1:])
        return (0.5 * precision * error.square() - 0.5 * precision.log()).sum()

    def start(self) -> list[Tensor]:
        v = torch.tanh(self.a(self.p.x))
        return [v.detach(), torch.tanh(self.b(v)).detach()]

    def free_energy(self, values: list[Tensor], weight: float = 1.0) -> Tensor:
        one, two = values
        hidden = self.cost("n1", one - torch.tanh(self.a(self.p.x))) + self.cost("n3", two - torch.tanh(self.b(one)))
        return hidden + weight * self.cost("n4", self.p.target - self.o(two))

    def strict(self) -> list[Tensor]:
        values = self.start()
        for _ in range(STEPS):
            values = [v.requires_grad_() for v in values]
            forces = torch.autograd.grad(self.free_energy(values), values)
            values = [(v - RATE * g).detach() for v, g in zip(values, forces, strict=True)]
        return values

    def errors(self) -> list[Tensor]:
        """Of error optimization."""
        errors = [torch.zeros_like(v) for v in self.start()]
        for _ in range(STEPS):
            errors = [e.requires_grad_() for e in errors]
            slopes = torch.autograd.grad(self.of_errors(errors), errors)
            errors = [(e - RATE * g).detach() for e, g in zip(errors, slopes, strict=True)]
        return errors

    def placed(self, errors: list[Tensor]) -> list[Tensor]:
        one = torch.tanh(self.a(self.p.x)) + errors[0]
        return [one, torch.tanh(self.b(one)) + errors[1]]

    def of_errors(self, errors: list[Tensor]) -> Tensor:
        out = self.cost("n4", self.p.target - self.o(self.placed(errors)[1]))
        return self.cost("n1", errors[0]) + self.cost("n3", errors[1]) + out

    def alm(self, penalty: float) -> Gradients:
        """The gradients of L + Σ λ ε + ρ E where the multipliers λ move with the errors."""
        values, duals = self.start(), [torch.zeros_like(v) for v in self.start()]

        def lagrangian(values: list[Tensor]) -> Tensor:
            one, two = values
            errors = one - torch.tanh(self.a(self.p.x)), two - torch.tanh(self.b(one))
            linear_part = sum((d * e).sum() for d, e in zip(duals, errors, strict=True))
            stiff = self.cost("n1", errors[0]) + self.cost("n3", errors[1])
            return linear_part + penalty * stiff + self.cost("n4", self.p.target - self.o(two))

        for _ in range(STEPS):
            one, two = values
            errors = one - torch.tanh(self.a(self.p.x)), two - torch.tanh(self.b(one))
            duals = [(d + penalty * e).detach() for d, e in zip(duals, errors, strict=True)]
            values = [v.requires_grad_() for v in values]
            forces = torch.autograd.grad(lagrangian(values), values)
            values = [(v - RATE * g).detach() for v, g in zip(values, forces, strict=True)]
        return self.gradients(lagrangian(values))

    def gradients(self, cost: Tensor) -> Gradients:
        self.model.zero_grad()
        cost.backward()
        return {n: q.grad for n, q in self.model.named_parameters() if q.grad is not None}


def quadratic(p: Problem) -> Problem:
    """`p` without a loss of its own, so that outputs have half the squared error."""
    p.loss = None
    return p


QUICK = "tensors"
MARKED = [pytest.param(form, marks=() if form == QUICK else pytest.mark.slow) for form in FORMS]


@pytest.mark.parametrize("form", MARKED)
def test_inference_and_learning_are_those_of_the_weighted_energy(form: str) -> None:
    p, how = quadratic(problem("chain")), {"steps": STEPS, "rate": RATE, "precision": FORMS[form]}
    hand = by_hand(p, FORMS[form])
    expected = hand.gradients(hand.free_energy(hand.strict()))
    assert apart(p.gradients("strict", **how), expected) < 1e-10
    others = {
        "nudged": {"nudge": 1.0, "phases": "positive"},
        "langevin": {"steps": 1, "burn_in": STEPS - 1, "temperature": 0.0},
        "alm": {"penalty": 1.0, "dual_rate": 0.0},
    }
    for algorithm, more in others.items():
        assert apart(p.gradients(algorithm, **how | more), expected) < 1e-10
    moved = hand.gradients(hand.free_energy([v.detach() for v in hand.placed(hand.errors())]))
    assert apart(p.gradients("error-optimization", **how), moved) < 1e-10
    assert apart(p.gradients("alm", **how, penalty=1.5, dual_rate=1.5), hand.alm(1.5)) < 1e-10


def test_incremental_learns_by_the_weighted_energy() -> None:
    p = quadratic(problem("chain"))
    pc = p.compile("incremental", steps=3, rate=RATE, precision=FORMS["tensors"])
    hand, step = by_hand(p, FORMS["tensors"]), 0.01
    values = hand.start()
    for _ in range(3):
        values = [v.requires_grad_() for v in values]
        forces = torch.autograd.grad(hand.free_energy(values), values)
        gradients = hand.gradients(hand.free_energy([v.detach() for v in values]))
        values = [(v - RATE * g).detach() for v, g in zip(values, forces, strict=True)]
        with torch.no_grad():
            for name, q in hand.model.named_parameters():
                q -= step * gradients[name]
    pc.train_step(p.x, p.target, torch.optim.SGD(pc.parameters(), step))
    for found, expected in zip(pc.parameters(), hand.model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("form", MARKED)
def test_forces_and_gradients_are_finite_differences_of_free_energy(form: str) -> None:
    """One step of strict inference from displaced values is η times the slope of F; so are gradients, by parameters."""
    p = quadratic(problem("chain"))
    hand = by_hand(p, FORMS[form])
    pc = p.compile("strict", precision=FORMS[form], steps=1, rate=1e-3)
    start = pc.settle(p.x, target=p.target, steps=3)
    moved = pc.settle(p.x, target=p.target, steps=4)
    values = [start["n1"].clone(), start["n3"].clone()]
    force = (moved["n1"] - start["n1"]) / 1e-3
    h, at = 1e-5, (1, 2)
    sides = []
    for sign in (1, -1):
        values[0][at] += sign * h
        sides.append(float(hand.free_energy(values)))
        values[0][at] -= sign * h
    assert float(force[at]) == pytest.approx(-(sides[0] - sides[1]) / (2 * h), rel=1e-6)
    weight, sides = hand.b.weight, []
    with torch.no_grad():
        for sign in (1, -1):
            weight[3, 1] += sign * h
            sides.append(float(hand.free_energy(values)))
            weight[3, 1] -= sign * h
    assert float(start.gradients["2.weight"][3, 1]) == pytest.approx((sides[0] - sides[1]) / (2 * h), rel=1e-6)


def test_free_energy_is_shown_with_its_logarithms() -> None:
    p = quadratic(problem("chain"))
    for algorithm, more in {"strict": {}, "nudged": {"nudge": 0.5, "phases": "positive"}}.items():
        how = {"precision": FORMS["tensors"], "steps": STEPS, "rate": RATE, **more}
        trace = p.compile(algorithm, **how).infer((p.x,), target=p.target)
        hand = by_hand(p, FORMS["tensors"])
        first = hand.free_energy(hand.start()).detach()
        torch.testing.assert_close(trace.free_energy[0], first, rtol=1e-10, atol=0)
        values = [trace.values[n][-1] for n in ("n1", "n3")]
        torch.testing.assert_close(trace.free_energy[-1], hand.free_energy(values).detach(), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    "net, vertex, shape",
    [
        ("cnn", "tanh", (4, 1, 1)),
        pytest.param("cnn", "tanh", (5,), marks=pytest.mark.slow),
        ("transformer", "relu", (3, 1)),
    ],
)
def test_a_tensor_stretches_to_a_sample_of_any_layout(net: str, vertex: str, shape: tuple[int, ...]) -> None:
    """As if each number stood at every element that it stretches to; a length that is free is then held to it."""
    p, how = quadratic(problem(net)), {"steps": 3, "rate": RATE}
    latent = next(v for v in p.compile("strict").compiled.pc.latent if vertex in v.name)
    lengths = [d if isinstance(d, int) else n for d, n in zip(latent.type.shape, p.x.shape, strict=False)]
    weight, whole = torch.rand(shape, dtype=torch.float64) + 0.5, lengths[1:]
    found = p.gradients("strict", precision={str(latent.name): weight}, **how)
    assert apart(found, p.gradients("strict", precision={str(latent.name): weight.expand(whole)}, **how)) < 1e-12
    even = p.gradients("strict", precision={str(latent.name): torch.full(shape, 2.0)}, **how)
    assert apart(even, p.gradients("strict", precision={str(latent.name): 2.0}, **how)) < 1e-12
    assert apart(found, even) > 1e-4


def test_a_tensor_is_a_buffer_of_the_compiled_module() -> None:
    p = quadratic(problem("chain"))
    pc = p.compile("strict", precision=FORMS["tensors"])
    torch.testing.assert_close(pc.state_dict()["lasting.precision.n1"], DIAGONAL.reshape(1, 6))
    before = p.gradients("strict", precision={"n1": 2.0, "n3": 2.0})
    pc.load_state_dict({**pc.state_dict(), "lasting.precision.n1": torch.full((1, 6), 2.0)})
    pc.load_state_dict({**pc.state_dict(), "lasting.precision.n3": torch.full((1, 6), 2.0)})
    pc.load_state_dict({**pc.state_dict(), "lasting.precision.n4": torch.full((1, 3), 1.0)})
    pc.loss(p.x, target=p.target).backward()
    assert apart({n: q.grad for n, q in pc.named_parameters() if q.grad is not None}, before) < 1e-12
    assert "E is gaussian, tensor precision at n1, n3, n4." in pc.source


# learned precisions


@pytest.mark.parametrize("each", ["element", "vertex"])
def test_a_learned_precision_ends_in_the_maximum_of_its_posterior(each: str) -> None:
    """x → W x → v → U v, linear and Gaussian: the equilibrium is linear algebra, and Π = (a + ½) / (b + ½⟨ε²⟩)."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 5, bias=False)).double()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    shape, rate = 1.5, 0.75
    learned = learned_precision(shape, rate, step=0.3, each=each)
    pc = pccompile.compile(
        model, (x,), algorithm="strict", steps=80, rate=0.2, check=False, precision={"0": learned, "1": learned}
    )
    for _ in range(120):
        pc.loss(x, target=y).backward()
    (first, last), kept = (w.detach() for w in model.parameters()), pc.state_dict()
    hidden, out = torch.full((3,), shape / rate).double(), torch.full((5,), shape / rate).double()
    for _ in range(500):
        left = torch.diag(hidden) + last.T @ torch.diag(out) @ last
        predicted = x @ first.T
        values = torch.linalg.solve(left, (predicted * hidden + (y * out) @ last).T).T
        spreads = [(values - predicted).square().mean(0), (y - values @ last.T).square().mean(0)]
        if each == "vertex":
            spreads = [s.mean().expand(len(s)) for s in spreads]
        hidden, out = ((shape + 0.5) / (rate + s / 2) for s in spreads)
    for name, expected in (("n0", hidden), ("n1", out)):
        names = {k.rpartition(".")[2]: t for k, t in kept.items() if k.startswith("lasting.precision")}
        found = names[[*names][0 if name == "n0" else 1]]
        torch.testing.assert_close(found.expand(1, len(expected)), expected[None], rtol=1e-6, atol=0)


def test_an_output_may_learn_without_a_prior() -> None:
    """Its errors are data, whose mean square is 1 / Π."""
    p = quadratic(Problem(linear, (4, 5)))
    pc = p.compile("strict", steps=0, precision={"2": learned_precision(step=0.5)})
    for _ in range(200):
        pc.loss(p.x, target=p.target).backward()
    spread = (p.target - p.model(p.x)).square().mean(0, keepdim=True)
    kept = next(t for k, t in pc.state_dict().items() if k.startswith("lasting.precision"))
    torch.testing.assert_close(kept, 1 / spread.detach(), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    "algorithm", ["incremental", "error-optimization", pytest.param("langevin", marks=pytest.mark.slow)]
)
def test_other_algorithms_learn_precisions_too(algorithm: str) -> None:
    p = quadratic(problem("chain"))
    learned = learned_precision(2.0, 2.0, step=0.1)
    pc = p.compile(algorithm, steps=3, precision={"n1": learned, "n4": learned})
    torch.manual_seed(0)
    pc.train_step(p.x, p.target, torch.optim.SGD(pc.parameters(), 0.0))
    torch.manual_seed(0)
    error = pc.settle(p.x, target=p.target).errors["n4"] if algorithm == "error-optimization" else None
    found = pc.state_dict()["lasting.precision.n4"]
    assert not torch.equal(found, torch.ones_like(found))
    if error is not None:
        error = p.compile(algorithm, steps=3).settle(p.x, target=p.target).errors["n4"]
        expected = torch.exp(0.1 * (2.5 - (2.0 + error.square().mean(0, keepdim=True) / 2)))
        torch.testing.assert_close(found, expected)


def test_what_is_given_learns_by_its_own_errors() -> None:
    """A value that is clamped is no free one; its error is v − v̂, and not what it sends."""
    p = quadratic(problem("chain"))
    pc = p.compile("strict", steps=3, precision={"n3": learned_precision(2.0, 4.0, step=0.1)})
    given = torch.randn(4, 6, dtype=torch.float64)
    settled = pc.settle(p.x, target=p.target, clamped={"n3": given})
    predicted = given - settled.errors["n3"] / 0.5
    torch.testing.assert_close(predicted, torch.tanh(pc.get_submodule("2")(settled["n1"])))
    pc.train_step((p.x,), p.target, torch.optim.SGD(pc.parameters(), 0.0), clamped={"n3": given})
    spread = (given - predicted).square().mean(0, keepdim=True)
    expected = 0.5 * torch.exp(0.1 * (2.5 - 0.5 * (4.0 + spread / 2)))
    torch.testing.assert_close(pc.state_dict()["lasting.precision.n3"], expected)


@pytest.mark.parametrize(
    "algorithm, how, words",
    [
        ("strict", {"precision": {"n1": learned_precision()}}, "the learned precision of n1 has no prior"),
        ("strict", {"precision": learned_precision()}, "falls for ever as Π rises and ε goes to 0"),
        ("alm", {"precision": learned_precision(1.0, 1.0)}, "alm: the precision of n1 cannot learn by errors that"),
        ("nudged", {"precision": learned_precision(1.0, 1.0)}, "where free energy is least: bidirectional, error-opt"),
        ("exact", {"precision": learned_precision(1.0, 1.0)}, "exact knows no energy but half the squared error"),
        ("strict", {"precision": {"n1": torch.ones(5)}}, "precision of n1 is a tensor [5], and a sample of n1 is [6]"),
        ("strict", {"precision": {"n1": torch.ones(4, 6)}}, "its shape stretches to that of one sample"),
        ("strict", {"precision": {"n1": torch.zeros(6)}}, "precision of n1 is 0.0 at an element"),
        ("strict", {"precision": {"n1": torch.ones(6, dtype=torch.bool)}}, "is a tensor of torch.bool"),
    ],
)
def test_what_is_no_precision_is_refused_by_name(algorithm: str, how: dict[str, Any], words: str) -> None:
    with pytest.raises(pccompile.CompileError) as caught:
        quadratic(Problem(chain, (4, 5))).compile(algorithm, **how)
    assert words in str(caught.value)


def test_a_mask_divides_no_tensor() -> None:
    p = quadratic(problem("chain"))
    pc = p.compile("strict", precision={"n3": DIAGONAL})
    known = torch.ones(4, 6, dtype=torch.bool)
    with pytest.raises(pccompile.CompileError, match="a mask of n3 divides its elements between two vertices"):
        pc.settle(p.x, clamped={"n3": torch.zeros(4, 6)}, mask={"n3": known})


@pytest.mark.parametrize(
    "numbers, words",
    [
        ((2.0, 0.0), "shape and rate are both above 0"),
        ((-1.0, 1.0), "shape of a learned precision is -1.0"),
        ((1.0, 1.0, 0.0), "step of a learned precision is 0.0"),
    ],
)
def test_a_prior_is_a_gamma_distribution(numbers: tuple[float, ...], words: str) -> None:
    with pytest.raises(pccompile.CompileError) as caught:
        learned_precision(*numbers[:2], step=numbers[2] if len(numbers) > 2 else 0.1)
    assert words in str(caught.value)
    with pytest.raises(pccompile.CompileError, match='"element" or "vertex"'):
        learned_precision(1.0, 1.0, each="layer")
