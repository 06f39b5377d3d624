"""What each algorithm equals, exactly or in a limit: with backpropagation by eager torch, and with one another."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pccompile
from algorithms.nets import DEEP, LARGE, NETS, Block, Problem, apart, gap, linear, problem
from pccompile.algorithms.zil import clocked
from pccompile.backends.torch import emit

SMALL = ("chain", "gated", "dag")


def to_the_end(p: Problem) -> dict[str, float]:
    """The rate and the steps by which strict inference leaves 1e-8 of what it began with."""
    spectrum = p.compile("strict").analyse(p.x, target=p.target, kinds=("spectrum",)).spectrum
    assert spectrum is not None
    fastest, slowest = (spectrum.quantities[k].value for k in ("λmax(H)", "σmin(A)²"))
    return {"rate": 1 / fastest, "steps": int(18.5 * fastest / slowest)}


# zil


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("dynamics", ["wavefront", "full"])
@pytest.mark.parametrize("loss", [None, F.cross_entropy])
def test_levelled_zil_is_backpropagation(name: str, dynamics: str, loss: object) -> None:
    p = problem(name) if loss is None else problem(name, loss=loss)
    assert apart(p.gradients("zil", dynamics=dynamics), p.backprop) < 1e-10


@pytest.mark.parametrize("granularity", ["op", "layer"])
@pytest.mark.parametrize("seed", range(4))
def test_zil_is_backpropagation_on_random_graphs(granularity: str, seed: int) -> None:
    p = problem("dag", seed)
    assert apart(p.gradients("zil", granularity=granularity), p.backprop) < 1e-10


def test_zil_without_levels_is_not() -> None:
    p = problem("gated")
    pc = p.compile("strict").compiled.pc
    functions: dict[str, object] = {}
    exec(emit(clocked(pc, full=True)).text, functions)
    params = dict(p.model.named_parameters())
    _, found = functions["step"](params, {}, {"x": p.x}, [p.target])  # type: ignore[operator]
    assert apart(found, p.backprop) > 1e-2


def test_zil_adds_the_fewest_identities() -> None:
    """x → a → b → c → out with a also read by out: two levels are skipped once, whoever reads them."""

    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5)
            self.o, self.q = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x)
            return self.o(self.c(self.b(a))) + self.q(a)

    p = Problem(Skips, (4, 5))
    plain, levelled = (p.compile(a).compiled.pc for a in ("strict", "zil"))
    relays = [v.name for v in levelled.vertices if v.name not in plain.names]
    assert len(relays) == 2
    assert apart(p.gradients("zil"), p.backprop) < 1e-12


def test_zil_takes_any_loss_of_the_outputs() -> None:
    p = problem("gated")
    pc = p.compile("zil")
    p.loss(pc(p.x), p.target).backward()
    found = {n: q.grad for n, q in pc.named_parameters() if q.grad is not None}
    assert apart(found, p.backprop) < 1e-12


# alm


@pytest.mark.parametrize("name", LARGE)
def test_alm_without_multipliers_is_strict(name: str) -> None:
    p = problem(name)
    how = {"steps": 7, "rate": 0.05}
    assert gap(p.gradients("alm", penalty=1.0, dual_rate=0.0, **how), p.gradients("strict", **how)) == 0


@pytest.mark.parametrize("name", SMALL)
def test_converged_alm_is_backpropagation(name: str) -> None:
    p = problem(name)
    assert apart(p.gradients("alm", steps=4000, penalty=8.0, rate=0.02), p.backprop) < 1e-6


@pytest.mark.parametrize("name", SMALL)
def test_credit_of_alm_scales_with_the_loss(name: str) -> None:
    """(L, ρ, α, 1/η) times κ gives κ times the credit."""
    p, k = problem(name), 16.0
    scaled = problem(name)
    scaled.loss = lambda output, target: k * p.loss(output, target)
    one = p.gradients("alm", steps=20, penalty=2.0, rate=0.05)
    many = scaled.gradients("alm", steps=20, penalty=2.0 * k, rate=0.05 / k)
    assert apart(many, {n: k * g for n, g in one.items()}) < 1e-12


# error optimization


@pytest.mark.parametrize("name", LARGE)
def test_one_step_of_error_optimization_gives_the_errors_of_backpropagation(name: str) -> None:
    p, rate = problem(name), 1e-3
    exact, moved = p.compile("exact", granularity="layer"), p.compile("error-optimization", steps=1, rate=rate)
    errors = []
    for pc in (exact, moved):
        runtime = pc.prepare((p.x,), loss=p.loss, target=p.target)
        tables = pc.tables(runtime)
        outputs, context = pc.predict(runtime, tables, runtime.interface.bind((p.x,), {}), probe=True)
        given = [p.target] if runtime.source.moving else runtime.clamp(outputs, [p.target])[1]
        found = runtime.function("infer")(tables[0], context, given)
        errors.append(found[0] if runtime.source.moving else found)
    latent = [v.name for v in exact.compiled.pc.latent]
    assert latent
    for v in latent:
        torch.testing.assert_close(errors[1][v], rate * errors[0][v], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", LARGE)
def test_gradients_after_one_step_of_error_optimization_are_a_first_order_limit(name: str) -> None:
    p = problem(name)
    readout = [n for n in p.backprop if n.startswith(("o.", "out.", "4."))]
    distances = []
    for rate in (1e-2, 1e-3, 1e-4):
        found = p.gradients("error-optimization", steps=1, rate=rate)
        hidden = {n: g / rate for n, g in found.items() if n not in readout}
        distances.append(apart(hidden, {n: p.backprop[n] for n in hidden}))
    assert distances[1] < 0.2 * distances[0] + 1e-13
    assert distances[2] < 0.2 * distances[1] + 1e-13


@pytest.mark.parametrize("name", SMALL)
def test_converged_error_optimization_is_converged_strict(name: str) -> None:
    p = problem(name)
    found = p.gradients("error-optimization", steps=1200, rate=0.1)
    assert apart(found, p.gradients("strict", steps=4000, rate=0.2)) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_converged_error_optimization_is_converged_strict_on_random_graphs(seed: int) -> None:
    p = problem("dag", seed)
    found = p.gradients("error-optimization", steps=1200, rate=0.1)
    assert apart(found, p.gradients("strict", **to_the_end(p))) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", DEEP)
def test_converged_error_optimization_is_converged_strict_in_deep_networks(name: str) -> None:
    """With a loss so weak that there is one equilibrium only: λmin(S) > -1."""
    p = problem(name, loss=lambda output, target: 0.05 * (output - target).square().sum())
    found = p.gradients("error-optimization", steps=200, rate=0.8)
    assert apart(found, p.gradients("strict", **to_the_end(p))) < 1e-6


# nudged


@pytest.mark.parametrize("name", LARGE)
def test_a_full_positive_nudge_is_strict(name: str) -> None:
    p = problem(name)
    how = {"steps": 6, "rate": 0.05}
    assert gap(p.gradients("nudged", nudge=1.0, phases="positive", **how), p.gradients("strict", **how)) == 0


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", SMALL)
def test_one_phase_is_backpropagation_up_to_the_nudge_and_two_up_to_its_square(name: str) -> None:
    p, found = problem(name), {}
    for phases in ("positive", "negative", "centred"):
        wide, narrow = (
            apart(p.gradients("nudged", steps=1500, nudge=nudge, phases=phases), p.backprop) for nudge in (0.02, 0.01)
        )
        found[phases] = wide / narrow
    assert found["positive"] == pytest.approx(2, rel=0.2)
    assert found["negative"] == pytest.approx(2, rel=0.2)
    assert found["centred"] == pytest.approx(4, rel=0.2)


class Smooth(Block):
    """A transformer block whose activation has no kink: across one, two phases are not as far from each other."""

    def __init__(self) -> None:
        super().__init__()
        self.layer.activation = F.gelu


@pytest.mark.slow
@pytest.mark.parametrize("name", DEEP)
def test_two_phases_are_backpropagation_up_to_the_square_of_the_nudge_in_deep_networks(name: str) -> None:
    p = Problem(Smooth, NETS[name][1]) if name == "transformer" else problem(name)
    how = to_the_end(p)
    wide, narrow = (apart(p.gradients("nudged", nudge=n, phases="centred", **how), p.backprop) for n in (0.1, 0.05))
    assert wide / narrow == pytest.approx(4, rel=0.2)


# langevin


@pytest.mark.parametrize("name", LARGE)
def test_langevin_without_temperature_is_strict(name: str) -> None:
    p = problem(name)
    found = p.gradients("langevin", steps=1, burn_in=5, temperature=0.0, rate=0.05)
    assert gap(found, p.gradients("strict", steps=6, rate=0.05)) == 0


def test_langevin_samples_the_posterior_of_a_linear_network() -> None:
    """The last sample of many copies of one input has the posterior's mean and covariance τ H⁻¹ (1 − η H / 2)⁻¹."""
    copies, rate, temperature = 20000, 0.05, 0.7
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False)).double()
    x, target = torch.randn(1, 3, dtype=torch.float64), torch.randn(1, 2, dtype=torch.float64)
    pc = pccompile.compile(
        model, (x.expand(copies, 3),), algorithm="langevin", loss=lambda o, t: 0.5 * (o - t).square().sum(),
        rate=rate, temperature=temperature, burn_in=400, steps=1, check=False,
    )  # fmt: skip
    runtime = pc.prepare((x.expand(copies, 3),), loss=pc.criterion, target=target.expand(copies, 2))
    tables = pc.tables(runtime)
    inputs = runtime.interface.bind((x.expand(copies, 3),), {})
    _, context = pc.predict(runtime, tables, inputs)
    _, values, _ = runtime.function("infer")(tables[0], context, [target.expand(copies, 2)])
    (sample,) = values.values()
    first, second = (w.detach() for w in model.parameters())
    hessian = torch.eye(2, dtype=torch.float64) + second.T @ second
    mean = torch.linalg.solve(hessian, (x @ first.T + target @ second).T).T
    identity = torch.eye(2, dtype=torch.float64)
    covariance = temperature * torch.linalg.inv(hessian) @ torch.linalg.inv(identity - rate * hessian / 2)
    assert float((sample.mean(0) - mean).norm() / mean.norm()) < 0.03
    assert float((torch.cov(sample.T) - covariance).norm() / covariance.norm()) < 0.03


# meta-pcn


@pytest.mark.parametrize("name", LARGE)
def test_meta_pcn_infers_as_fixed_prediction(name: str) -> None:
    p, how = problem(name), {"steps": 7, "rate": 0.3}
    assert gap(p.gradients("meta-pcn", **how), p.gradients("fixed-prediction", **how)) == 0


def test_normalised_weights_have_a_spectral_norm_near_one() -> None:
    torch.manual_seed(0)
    shared = nn.Linear(300, 300)
    model = nn.Sequential(nn.Conv2d(16, 64, 3), nn.Flatten(), nn.Linear(64, 300), shared, nn.Tanh(), shared)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(7)
    biases = [p.clone() for p in model.parameters() if p.dim() == 1]
    pccompile.normalise_weights(model)
    for weight in (p for p in model.parameters() if p.dim() > 1):
        assert float(torch.linalg.matrix_norm(weight.detach().flatten(1), 2)) == pytest.approx(1, abs=0.1)
    assert all(torch.equal(a, b) for a, b in zip(biases, (p for p in model.parameters() if p.dim() == 1), strict=True))


# strict on a linear network


def test_strict_on_a_linear_network_ends_in_its_closed_form() -> None:
    """The residual of a linear chain at equilibrium is (1 + Σ P_l P_lᵀ)⁻¹ r, P_l the product behind l."""
    p = Problem(linear, (4, 5))
    pc = p.compile("strict", steps=4000, rate=0.2)
    pc.loss(p.x, target=p.target).backward()
    w1, w2, w3 = (w.detach() for w in p.model.parameters())
    spread = torch.eye(3, dtype=torch.float64) + w3 @ w3.T + (w3 @ w2) @ (w3 @ w2).T
    residual = torch.linalg.solve(spread, (p.x @ (w3 @ w2 @ w1).T - p.target).T).T
    h1 = p.x @ w1.T - residual @ (w3 @ w2)
    found = [q.grad for q in pc.parameters()]
    for gradient, expected in zip(found, (((residual @ w3 @ w2).T @ p.x), ((residual @ w3).T @ h1)), strict=False):
        torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-10)
