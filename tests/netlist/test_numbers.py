"""What numbers a circuit can hold: formats, saturation, nan and infinity, float32; told by name, never in silence."""

import functools
import json
import math
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from netlist.naive_fixed import FixedNaive
from netlist.nets import NETS, net, presented
from pccompile.backends.netlist import Netlist, NetlistOptions
from pccompile.backends.netlist.simulate.fixed import FixedSimulator
from pccompile.cli import main
from pccompile.diagnostics import CompileError
from pccompile.pipeline import compile_netlist
from pccompile.report.tables import as_json


@functools.cache
def layers(activation: nn.Module, bias: float = 0.0, eta: float = 0.125) -> Netlist:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), activation, nn.Linear(8, 3)).double()
    with torch.no_grad():
        model[2].bias += bias
    options = NetlistOptions(rate=0.25, eta=eta, ticks=31)
    return compile_netlist(model, (torch.randn(1, 4).double(),), options=options)


def batch(scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = scale * torch.randn(4, 1, 4, generator=generator, dtype=torch.float64)
    return x, 0.5 * torch.randn(4, 1, 3, generator=generator, dtype=torch.float64)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


# two formats for a map, and one for each factor of a product


@pytest.mark.parametrize("scale", [1, 30, 100, 300, 1000, 1e4])
@pytest.mark.parametrize("activation", [nn.Tanh(), nn.Sigmoid(), nn.Softsign(), nn.Hardtanh()])
def test_a_bounded_function_of_large_sums_keeps_its_bits(activation: nn.Module, scale: float) -> None:
    made = layers(activation)
    x, t = batch(scale)
    fixed = made.quantise(16, 16, presentations=[made.presentation(x, t)])
    got, exact = (n.simulate(x, t, ticks=40) for n in (fixed, made))
    values = [n for n, p in fixed.spec.populations.items() if p.role == "value"]
    assert max(relative(got.states[n], exact.states[n]) for n in values) < 0.03
    assert not got.saturations


@pytest.mark.parametrize("scale", [1e-3, 1e-2, 100.0])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Softplus(), nn.SiLU(), nn.GELU()])
def test_functions_that_are_not_bounded_follow_too(activation: nn.Module, scale: float) -> None:
    made = layers(activation)
    x, t = batch(scale)
    fixed = made.quantise(16, 16, presentations=[made.presentation(x, t)])
    got, exact = (n.simulate(x, t, ticks=40) for n in (fixed, made))
    assert max(relative(got.outputs[o], exact.outputs[o]) for o in got.outputs) < 0.02


def test_errors_of_hundreds_times_slopes_below_one() -> None:
    made = layers(nn.Tanh(), bias=275.0)
    x, t = batch()
    fixed = made.quantise(16, 16, presentations=[made.presentation(x, t)])
    got, exact = (n.simulate(x, t, ticks=40) for n in (fixed, made))
    for name, p in fixed.spec.populations.items():
        assert relative(got.states[name], exact.states[name]) < 0.005, (name, p)


@st.composite
def formats(draw: st.DrawFn) -> dict[str, tuple[int, int]]:
    def bits() -> tuple[int, int]:
        total = draw(st.integers(4, 18))
        return total, draw(st.integers(-2, total + 2))

    return {name: bits() for name in ("bits", "in", "x", "y")}


@settings(max_examples=15, deadline=None, derandomize=True)
@given(formats(), st.sampled_from(list(NETS)))
def test_any_formats_at_ports_are_those_of_the_document(
    tmp_path_factory: pytest.TempPathFactory, chosen: dict[str, tuple[int, int]], name: str
) -> None:
    made = net(name)
    ports = {"map": (chosen["in"],), "product": (chosen["x"], chosen["y"])}
    populations = {
        n: msgspec.structs.replace(
            p, bits=chosen["bits"], port_bits=ports.get(p.unit), table=(6, 2) if p.unit == "map" else None
        )
        for n, p in made.spec.populations.items()
    }
    made = replace(made, spec=msgspec.structs.replace(made.spec, populations=populations))
    simulator = FixedSimulator(made.spec, made.tensors)
    naive = FixedNaive(made.save(tmp_path_factory.mktemp("formats"), "m")[0])
    for population, value in presented(made, 1).items():
        simulator.set(population, torch.from_numpy(value))
        naive.state[population] = simulator.states[population].reshape(1, -1).long().tolist()
    for _ in range(4):
        simulator.tick("settle")
        naive.tick("settle")
    for population, state in simulator.states.items():
        assert state.reshape(1, -1).tolist() == naive.state[population], population


# calibrations that diverge


@pytest.mark.parametrize("bias, eta", [(275.149, 0.125), (0.0, 8.0), (0.0, 1e6), (1e4, 0.125)])
def test_a_calibration_that_diverges_is_refused(bias: float, eta: float) -> None:
    made = layers(nn.Tanh(), bias, eta)
    presentation = made.presentation(*batch())
    with pytest.raises(CompileError, match="the calibration diverges"):
        made.quantise(8, 16, presentations=[presentation] * 3, learn=True)
    made.quantise(8, 16, presentations=[presentation])


def test_a_calibration_that_learns_is_taken() -> None:
    made = layers(nn.Tanh(), eta=0.05)
    fixed = made.quantise(8, 16, presentations=[made.presentation(*batch())] * 5, learn=True)
    assert fixed.quantised


def test_a_loop_that_grows_is_refused() -> None:
    made = layers(nn.Tanh(), eta=0.05)
    projections = tuple(
        msgspec.structs.replace(p, gain=p.gain * 1e30) if p.op == "dense" else p for p in made.spec.projections
    )
    wild = replace(made, spec=msgspec.structs.replace(made.spec, projections=projections))
    with pytest.raises(CompileError, match=r"the calibration diverges: .* leaves all bounds"):
        wild.quantise(8, 16, presentations=[wild.presentation(*batch())])


# saturation


def test_saturation_is_counted_by_population() -> None:
    made = layers(nn.ReLU())
    x, t = batch()
    fixed = made.quantise(8, 16, presentations=[made.presentation(x, t)])
    assert not fixed.simulate(x, t).saturations
    said = fixed.simulate(50 * x, t).saturations
    inputs = fixed.spec.inputs
    (entry,) = (p.population for p in inputs.values())
    reals = fixed.simulate(50 * x, t).states[entry]
    assert said[entry] == int((np.abs(reals - (50 * x).numpy()) > 1).any(0).sum())
    assert all(count <= fixed.spec.populations[name].size for name, count in said.items())


def test_flat_functions_saturate_without_harm() -> None:
    made = layers(nn.Tanh())
    x, t = batch()
    fixed = made.quantise(16, 16, presentations=[made.presentation(300 * x, t)])
    said = fixed.simulate(300 * x, t).saturations
    assert not said


def test_parameters_that_saturate_while_they_learn_are_counted() -> None:
    made = layers(nn.ReLU(), eta=0.125)
    x, t = batch()
    fixed = made.quantise(8, 16, presentations=[made.presentation(x, t)], headroom=1.0)
    session = fixed.session(replicas=4)
    session.present(x, 7 * t + 40)
    assert not session.saturations.keys() & fixed.tensors.keys()
    session.run(ticks=31, learn=True)
    assert session.saturations.keys() & fixed.spec.plastic()


def test_the_command_line_says_what_saturated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = layers(nn.ReLU())
    x, t = (v[:1] for v in batch())
    fixed = made.quantise(8, 16, presentations=[made.presentation(x, t)])
    (name,), (out,) = fixed.spec.inputs, fixed.spec.targets
    np.savez(tmp_path / "large.npz", **{name: 90 * x[0].numpy(), out: t[0].numpy()})
    path, _ = fixed.save(tmp_path, "m")
    assert main([str(path), "--simulate", "--data", str(tmp_path / "large.npz")]) == 0
    assert "saturated: " in capsys.readouterr().out
    assert main([str(path), "--simulate", "--json", "--data", str(tmp_path / "large.npz")]) == 0
    page = json.loads(capsys.readouterr().out)
    assert page["saturations"]
    assert main([str(path), "--simulate"]) == 0
    said = capsys.readouterr().out
    assert "saturated" in said


# nan and infinity


@pytest.mark.parametrize("bits", [None, (8, 16)])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["input", "target"])
def test_inputs_that_are_no_numbers_are_named(kind: str, wrong: float, bits: tuple[int, int] | None) -> None:
    made = layers(nn.Tanh())
    x, t = (v.clone() for v in batch())
    (x if kind == "input" else t)[2, 0, 1] = wrong
    with pytest.raises(CompileError, match=rf"{kind} \w+ holds -?(nan|inf) at \[2, 0, 1\] \(1 of \d+ entries"):
        made.simulate(x, t, bits=bits)


def test_a_session_names_the_population(tmp_path: Path) -> None:
    session = layers(nn.Tanh()).session()
    with pytest.raises(CompileError, match=r"population 0_input.*holds nan|population .* holds nan"):
        session.set({next(iter(session.net.presentation(torch.zeros(1, 4)))): np.full((1, 1, 4), np.nan)})


class Logarithm(nn.Module):
    def __init__(self, function: str) -> None:
        super().__init__()
        self.first, self.function = nn.Linear(3, 3), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(self.first(x), self.function)()


@pytest.mark.parametrize("function", ["log", "sqrt", "acosh"])
@pytest.mark.parametrize("fixed", [False, True])
def test_states_that_are_no_numbers_are_named(function: str, fixed: bool) -> None:
    torch.manual_seed(0)
    model = Logarithm(function).double()
    with torch.no_grad():
        model.first.weight.copy_(torch.eye(3))
        model.first.bias.fill_(4.0)
    made = compile_netlist(model, (torch.ones(1, 3).double(),), name="n")
    good = torch.ones(1, 3).double()
    if fixed:
        made = made.quantise(8, 16, presentations=[made.presentation(good, good)], margin=16.0)
    assert np.isfinite(next(iter(made.simulate(good, good).outputs.values()))).all()
    bad = torch.tensor([[1.0, -7.0, 1.0]]).double()
    with pytest.raises(CompileError, match=r"population \S+ (holds nan|has no value) after \d+ ticks \(1 of 3 units"):
        made.simulate(bad, good, bits=None)


def test_learning_that_blows_up_in_floating_point_is_named() -> None:
    made = layers(nn.ReLU(), eta=1e9)
    session = made.session(replicas=4)
    session.present(*batch())

    def train() -> None:
        for _ in range(200):
            session.run(ticks=31, learn=True)

    with pytest.raises(CompileError, match=r"(population|parameter) \S+ holds (nan|an infinity) after \d+ ticks"):
        train()


def test_json_is_json() -> None:
    page = {"a": [math.nan, 1.5, {"b": -math.inf}], "c": (True, None, "nan")}
    assert json.loads(as_json(page)) == {"a": [None, 1.5, {"b": None}], "c": [True, None, "nan"]}


# float32


def single(made: Netlist) -> Netlist:
    """The circuit with all its tensors of numbers in float32."""
    tensors = {n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in made.tensors.items()}
    described = {
        n: msgspec.structs.replace(t, dtype="float32") if t.dtype == "float64" else t
        for n, t in made.spec.tensors.items()
    }
    return replace(made, spec=msgspec.structs.replace(made.spec, tensors=described), tensors=tensors)


@pytest.mark.parametrize("name", NETS)
def test_float32_circuits_run_in_double_precision(name: str, tmp_path: Path) -> None:
    made = single(net(name))
    made = Netlist.load(made.save(tmp_path, "m")[0])
    double = replace(
        net(name), tensors={n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in made.tensors.items()}
    )
    presentation = presented(double, 1)
    sessions = [n.session() for n in (made, double)]
    for session in sessions:
        session.set(presentation)
        session.run(ticks=5, learn=True)
    for population, state in sessions[0].states.items():
        assert np.array_equal(state, sessions[1].states[population]), population
    learned = sessions[0].netlist()
    assert {a.dtype for a in learned.tensors.values() if a.dtype.kind == "f"} <= {np.dtype(np.float32)}
    Netlist.load(learned.save(tmp_path, "learned")[0])


@pytest.mark.parametrize("transform", ["flatten", "untie", "on_off"])
def test_float32_circuits_are_transformed_quantised_and_exported(transform: str, tmp_path: Path) -> None:
    made = getattr(single(net("mlp")), transform)()
    path, _ = made.save(tmp_path, "m")
    assert main([str(path), "--simulate", "--learn", "--bits", "8:16", "--ticks", "4"]) == 0
    assert main([str(path), "--simulate", "--learn", "--ticks", "4"]) == 0
    assert main([str(path), "--export", "verilog", "-o", str(tmp_path / "v")]) == 0
    assert main([str(path), "--export", "nengo", "-o", str(tmp_path / "n")]) == 0
    assert main([str(path), "--chip", "loihi1"]) == 0
