"""Roles: inputs that are inferred, vertices and elements that are given, outputs without a target."""

from __future__ import annotations

import copy
import importlib.util
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pccompile
from algorithms.nets import Problem, linear, problem, squared
from pccompile import energy
from pccompile.ir import flat

TIGHT = {"rtol": 1e-9, "atol": 1e-11}
STEPPERS: dict[str, dict[str, Any]] = {
    "euler": {},
    "heavy-ball": {"mass": 0.5},
    "nesterov": {"mass": 0.5},
    "adam": {"rate": 0.003, "steps": 6000},
    "heun": {},
}
RELAXED: dict[str, dict[str, Any]] = {
    **{f"strict {s}": {"algorithm": "strict", "stepper": s, "steps": 1500, **how} for s, how in STEPPERS.items()},
    "strict tolerance": {"algorithm": "strict", "steps": 9000, "tolerance": 1e-12},
    "alm": {"algorithm": "alm", "steps": 3000, "penalty": 1.0},
    "incremental": {"algorithm": "incremental", "steps": 1500},
    "error-optimization": {"algorithm": "error-optimization", "steps": 1500},
    "nudged": {"algorithm": "nudged", "steps": 1500, "nudge": 1.0, "phases": "positive"},
    "langevin": {"algorithm": "langevin", "steps": 1, "burn_in": 1500, "temperature": 0.0},
}


def compiled(model: nn.Module, *args: Tensor, **how: Any) -> pccompile.PCModule:
    how = {"algorithm": "strict", "loss": squared, "rate": 0.1, "check": False, **how}
    return pccompile.compile(model, args, **how)


def decoder(inputs: int = 4, outputs: int = 7) -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Linear(inputs, outputs, bias=False).double()
    return model, model.weight.detach(), torch.randn(3, outputs, dtype=torch.float64)


# closed forms


@pytest.mark.parametrize("case", RELAXED)
def test_a_code_with_a_normal_prior_is_the_ridge_solution(case: str) -> None:
    model, w, y = decoder()
    z = torch.zeros(3, 4, dtype=torch.float64)
    found = compiled(model, z, **RELAXED[case]).settle(z, target=y, free={"input": energy("gaussian")})
    expected = torch.linalg.solve(w.T @ w + torch.eye(4, dtype=torch.float64), w.T @ y.T).T
    near = {"rtol": 0, "atol": 2e-4} if "adam" in case else TIGHT  # Adam's last steps are no smaller
    torch.testing.assert_close(found["input"], expected, **near)
    torch.testing.assert_close(found.outputs, expected @ w.T, **near)
    if case != "incremental":  # its gradients went to the optimizer, step by step
        torch.testing.assert_close(found.gradients["weight"], (expected @ w.T - y).T @ expected, **near)


@pytest.mark.parametrize("algorithm", ["strict", "alm", "error-optimization"])
def test_a_free_input_of_an_invertible_network_is_its_inverse(algorithm: str) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0])
    x, y = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    found = compiled(model, x, algorithm=algorithm, steps=2500, rate=0.1).settle(x, target=y, free=["input"])
    torch.testing.assert_close(found["input"], y @ (model[1].weight @ model[0].weight), **TIGHT)
    assert all(float(e.detach().abs().max()) < 1e-9 for e in found.errors.values())


def test_a_masked_code_is_the_mean_of_the_conditional_gaussian() -> None:
    """p(z, y) with z ~ N(0, I), y ~ N(Wz, I), where elements of z and of y are given: its mean by Schur complements."""
    model, w, y = decoder()
    z = torch.randn(3, 4, dtype=torch.float64)
    seen_z, seen_y = torch.tensor([True, False, False, False]), torch.tensor([True] * 5 + [False] * 2)
    pc = compiled(model, z, steps=3000)
    how = {"free": {"input": energy("gaussian")}, "mask": {"input": seen_z, "linear": seen_y}, "clamped": {"linear": y}}
    found = pc.settle(z, **how)
    covariance = torch.zeros(11, 11, dtype=torch.float64)
    covariance[:4, :4], covariance[:4, 4:], covariance[4:, :4] = torch.eye(4), w.T, w
    covariance[4:, 4:] = w @ w.T + torch.eye(7)
    seen, both = torch.cat([seen_z, seen_y]), torch.cat([z, y], 1)
    gain = covariance[~seen][:, seen] @ torch.linalg.inv(covariance[seen][:, seen])
    expected = both.clone()
    expected[:, ~seen] = both[:, seen] @ gain.T
    torch.testing.assert_close(torch.cat([found["input"], found["linear"]], 1), expected, **TIGHT)
    assert bool((found["input"][:, 0] == z[:, 0]).all())


def test_masked_hidden_elements_are_the_minimum_of_the_energy() -> None:
    """F of the linear chain is quadratic in what moves: dense linear algebra finds its minimum."""
    p = Problem(linear, (4, 5))
    a, b, c = (w.detach() for w in p.model.parameters())
    given, mask = torch.randn(4, 4, dtype=torch.float64), torch.tensor([True, False, True, False])
    pc = compiled(copy.deepcopy(p.model), p.x, steps=4000)
    found = pc.settle(p.x, target=p.target, clamped={"1": given}, mask={"1": mask})
    eye = torch.eye(4, dtype=torch.float64)
    hessian = torch.cat([torch.cat([eye + b.T @ b, -b.T], 1), torch.cat([-b, eye + c.T @ c], 1)])
    linear_part = torch.cat([p.x @ a.T, p.target @ c], 1)
    free = torch.cat([torch.ones(4, dtype=torch.bool), ~mask])
    both = torch.cat([torch.zeros_like(given), given], 1)
    right = linear_part[:, free] - both[:, ~free] @ hessian[~free][:, free]
    both[:, free] = torch.linalg.solve(hessian[free][:, free], right.T).T
    torch.testing.assert_close(torch.cat([found["n0"], found["1"]], 1), both, **TIGHT)


# what does not move


@pytest.mark.parametrize("case", RELAXED)
def test_nothing_moves_where_all_is_clamped(case: str) -> None:
    p = problem("gated")
    pc = compiled(copy.deepcopy(p.model), p.x, **{**RELAXED[case], "steps": 3})
    values = {k: torch.randn(4, 6, dtype=torch.float64) for k in ("tanh", "sigmoid", "mul", "tanh_1", "add")}
    found = pc.settle(p.x, target=p.target, clamped=values)
    for name, value in values.items():
        assert torch.equal(found[name], value)
    m = p.model
    predicted = torch.tanh(m.a(p.x)), torch.sigmoid(m.b(values["tanh"])), values["tanh"] * values["sigmoid"]
    for name, prediction in zip(("tanh", "sigmoid", "mul"), predicted, strict=True):
        torch.testing.assert_close(found.errors[name], (values[name] - prediction).detach(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found.outputs, m.o(values["add"]).detach())


def test_without_a_target_inference_stays_at_the_forward_pass() -> None:
    p = problem("gated")
    pc = compiled(copy.deepcopy(p.model), p.x, steps=5)
    found = pc.settle(p.x)
    torch.testing.assert_close(found.outputs, p.model(p.x).detach(), rtol=0, atol=0)
    assert all(float(e.abs().max()) == 0 for e in found.errors.values())
    assert all(float(g.abs().max()) == 0 for g in found.gradients.values())


def test_one_of_two_outputs_is_silent() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(self.a(x))
            return self.b(h), self.c(h)

    torch.manual_seed(0)
    model, x, t = Two().double(), torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    pc = compiled(model, x, loss=None, steps=20)
    found = pc.settle(x, target=(None, t))
    only = compiled(model, x, loss=lambda out, target: squared(out[1], target), steps=20).settle(x, target=t)
    for name in ("a.weight", "c.weight"):
        torch.testing.assert_close(found.gradients[name], only.gradients[name], **TIGHT)
    assert float(found.gradients["b.weight"].abs().max()) == 0
    torch.testing.assert_close(found.outputs[0], model.b(found["tanh"]).detach(), **TIGHT)


# forces and gradients against finite differences of the free energy, by hand


def chain_energy(m: nn.Module, x: Tensor, v: dict[str, Tensor]) -> Tensor:
    first, second = torch.tanh(m[0](x)), torch.tanh(m[2](v["n1"]))
    return half(v["n1"] - first) + half(v["n3"] - second) + loss(m[4](v["n3"]))


def gated_energy(m: nn.Module, x: Tensor, v: dict[str, Tensor]) -> Tensor:
    return (
        half(v["tanh"] - torch.tanh(m.a(x)))
        + half(v["sigmoid"] - torch.sigmoid(m.b(v["tanh"])))
        + half(v["mul"] - v["tanh"] * v["sigmoid"])
        + half(v["tanh_1"] - torch.tanh(m.c(v["mul"])))
        + half(v["add"] - v["tanh_1"] - v["tanh"])
        + loss(m.o(v["add"]))
    )


def cnn_energy(m: nn.Module, x: Tensor, v: dict[str, Tensor]) -> Tensor:
    h = v["tanh"]
    return (
        half(h - torch.tanh(m.n1(m.first(x))))
        + half(v["n2"] - m.n2(m.second(h)))
        + half(v["add"] - h - v["n2"])
        + half(v["mean"] - v["add"].mean((2, 3)))
        + loss(m.out(v["mean"]))
    )


def half(error: Tensor) -> Tensor:
    return 0.5 * error.square().sum()


def loss(output: Tensor) -> Tensor:
    return half(output - 0.3)


ENERGIES: dict[str, tuple[Callable[..., Tensor], str]] = {
    "chain": (chain_energy, "n1"),
    "gated": (gated_energy, "mul"),
    "cnn": (cnn_energy, "add"),
}


def by_finite_differences(f: Callable[[], Tensor], t: Tensor, entries: Tensor, step: float = 1e-6) -> Tensor:
    """∂f/∂t at some entries, by central differences."""
    flat, found = t.view(-1), []
    with torch.no_grad():
        for i in entries.tolist():
            kept = float(flat[i])
            flat[i] = kept + step
            up = float(f())
            flat[i] = kept - step
            found.append((up - float(f())) / (2 * step))
            flat[i] = kept
    return torch.tensor(found, dtype=torch.float64)


def state(name: str, steps: int) -> tuple[nn.Module, Tensor, str, pccompile.Settled, Tensor, Tensor]:
    """A network with a free input, some elements of it given, and a hidden vertex that is given, after some steps."""
    p = problem(name)
    model, clamped = copy.deepcopy(p.model).eval(), ENERGIES[name][1]
    pc = compiled(model, p.x, loss=lambda out, t: loss(out), rate=0.02)
    shape = pc.settle(p.x, target=p.target, steps=0)[clamped].shape
    torch.manual_seed(3)
    given, mask = torch.randn(shape, dtype=torch.float64), torch.rand(p.x.shape) < 0.4
    prior = {"free": {name_of_input(pc): energy("gaussian", precision=0.7)}}
    how = {"clamped": {clamped: given}, "mask": {name_of_input(pc): mask}, **prior}
    return model, p.x, clamped, pc.settle(p.x, target=p.target, steps=steps, **how), given, mask


def name_of_input(pc: pccompile.PCModule) -> str:
    return next(iter(pc.compiled.imported.graph.inputs))


@pytest.mark.parametrize("name", ENERGIES)
def test_steps_and_gradients_are_finite_differences_of_the_energy(name: str) -> None:
    free_energy, clamped = ENERGIES[name]
    model, x, _, now, given, mask = state(name, 3)
    after = state(name, 4)[3]
    values = {k: v.clone().contiguous() for k, v in now.values.items()}
    image = next(k for k in values if k in ("input", "x"))
    hidden = [k for k in values if k not in (image, clamped) and values[k].shape != now.outputs.shape]

    def f() -> Tensor:
        prior = 0.35 * values[image].square().sum()
        return free_energy(model, values[image], values) + prior

    assert torch.equal(values[clamped], given)
    assert torch.equal(values[image][mask], x[mask])
    for k in (image, *hidden):
        entries = torch.arange(values[k].numel())[:: max(1, values[k].numel() // 12)]
        move = (after[k] - now[k]).reshape(-1)[entries] / 0.02
        force = -by_finite_differences(f, values[k], entries)
        if k == image:
            force[mask.reshape(-1)[entries]] = 0
        torch.testing.assert_close(move, force, rtol=1e-5, atol=1e-7)
    for k, parameter in model.named_parameters():
        entries = torch.arange(parameter.numel())[:: max(1, parameter.numel() // 6)]
        slope = by_finite_differences(f, parameter.data, entries)
        torch.testing.assert_close(now.gradients[k].reshape(-1)[entries], slope, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_the_energy_of_a_transformer_block_falls_by_what_the_free_input_moves() -> None:
    p = problem("transformer")
    pc = compiled(copy.deepcopy(p.model), p.x, loss=squared, rate=1e-3, steps=40)
    trace = pc.infer(p.x, target=p.target, free={"x": energy("gaussian")}, mask={"x": torch.rand(4, 3, 8) < 0.5})
    before, after = float(trace.free_energy[0]), float(trace.free_energy[-1])
    assert after < before
    move = {k: v[1:] - v[:-1] for k, v in trace.values.items()}
    outputs = set(pc.graph.clamped)
    travelled = sum(float(m.square().sum()) for k, m in move.items() if k not in outputs) / 1e-3
    assert abs((before - after) / travelled - 1) < 0.1  # gradient descent: dF = -force² dt


@pytest.mark.parametrize("algorithm", ["strict", "alm", "nudged", "langevin"])
def test_free_energy_counts_what_is_given(algorithm: str) -> None:
    p = problem("gated")
    pc = compiled(copy.deepcopy(p.model), p.x, algorithm=algorithm, steps=3, rate=0.02)
    given = torch.randn(4, 6, dtype=torch.float64)
    trace = pc.infer(p.x, target=p.target, free={"x": energy("gaussian", precision=2.0)}, clamped={"mul": given})
    energies = {k: v[0] for k, v in trace.values.items()}
    m, x = p.model, energies["x"]
    expected = half(given - energies["tanh"] * energies["sigmoid"]) + x.square().sum() - p.x.numel() / 2 * LOG_2
    expected = expected + squared(m.o(energies["add"]), p.target)
    torch.testing.assert_close(trace.free_energy[0], expected.detach().double(), **TIGHT)


LOG_2 = 0.6931471805599453


# learning, files, names


def test_a_generative_network_learns_with_free_codes() -> None:
    """Dictionary learning of rank 2: the optimum of half the squared error plus the prior, which autograd descends."""
    torch.manual_seed(0)
    model = nn.Linear(2, 6, bias=False).double()
    hand = copy.deepcopy(model)
    y = torch.randn(5, 2, dtype=torch.float64) @ torch.randn(2, 6, dtype=torch.float64)
    z = torch.zeros(5, 2, dtype=torch.float64)
    pc = compiled(model, z, steps=400, rate=0.1)
    ours, theirs = (torch.optim.SGD(m.parameters(), 0.02) for m in (model, hand))
    for _ in range(5):
        pc.train_step(z, y, ours, free={"input": energy("gaussian")})
        w = hand.weight
        code = torch.linalg.solve(w.T @ w + torch.eye(2, dtype=torch.float64), w.T @ y.T).T.detach()
        theirs.zero_grad()
        half(y - hand(code)).backward()
        theirs.step()
    torch.testing.assert_close(model.weight, hand.weight, **TIGHT)


def test_the_file_infers_an_input_without_pccompile(tmp_path: Path) -> None:
    p = problem("gated")
    pc = compiled(copy.deepcopy(p.model), p.x, steps=9, rate=0.05)
    given, mask = torch.randn(4, 6, dtype=torch.float64), torch.rand(p.x.shape) < 0.5
    how = {"clamped": {"b": given}, "mask": {"x": mask}}
    found = pc.settle(p.x, target=p.target, **how)
    assert "import pccompile" not in pc.source
    file, _ = pc.save(tmp_path)
    spec = importlib.util.spec_from_file_location("inferring", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    params = {k: v.detach() for k, v in p.model.named_parameters()}
    inputs = {"x": p.x, "sigmoid_given": given, "x_mask": mask}
    _, context = module.predict(params, {}, inputs)
    _, values, *_ = module.infer(params, context, [p.target])
    torch.testing.assert_close(torch.where(mask, p.x, values["x_inferred"]), found["x"], rtol=0, atol=0)


def test_noise_leaves_given_elements_alone() -> None:
    p = problem("chain")
    pc = compiled(copy.deepcopy(p.model), p.x, algorithm="langevin", steps=2, burn_in=3, rate=0.05)
    mask = torch.rand(p.x.shape) < 0.5
    given, half_mask = torch.randn(4, 6, dtype=torch.float64), torch.rand(4, 6) < 0.5
    how = {"mask": {"input": mask, "n1": half_mask}, "clamped": {"n1": given}}
    found = pc.settle(p.x, target=p.target, **how)
    assert torch.equal(found["input"][mask], p.x[mask])
    assert torch.equal(found["n1"][half_mask], given[half_mask])
    assert bool((found["input"][~mask] != p.x[~mask]).all())


@pytest.mark.slow
def test_the_example_does_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install 'pccompile[demo]'")
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "roles.py"), run_name="__main__")
    printed = capsys.readouterr().out
    accuracy, made, recalled = (
        float(re.findall(pattern, printed)[0])
        for pattern in (r"classification: ([\d.]+)%", r"classifier reads (\d+)%", r"pixels, (\d+)% of 16")
    )
    filled, blind = map(float, re.findall(r"squared error ([\d.]+) .* ([\d.]+) for the mean", printed)[0])
    assert accuracy > 90
    assert made >= 80
    assert filled < 0.95 * blind
    assert recalled >= 80


def test_schedules_see_vertices_that_move_and_ends_that_do_not() -> None:
    """The equations of a schedule name no role: what moves is `pc.latent`, what does not is `pc.ends`."""
    p = problem("chain")
    given = torch.randn(4, 6, dtype=torch.float64)
    pc = compiled(copy.deepcopy(p.model), p.x, steps=4)
    pc.settle(p.x, target=p.target, free=["input"], clamped={"n3": given})
    graph = pc.graph
    assert {v.name for v in graph.latent} == {"input_inferred", "n1"}
    assert {*graph.ends} == {"n3", "n4"}
    moved = {d.vertex for d in flat(pc.compiled.program.infer) if d.slot == "value"}
    assert moved == {"input_inferred", "n1"}
