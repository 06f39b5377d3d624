"""Nengo simulates what we do, step by step, and what autograd says; it learns; the script stands alone."""

import functools
import subprocess
import sys

import msgspec
import numpy as np
import pytest
import torch
from torch import nn
from zoo import TRAPS, ZOO, Case

from netlist import nets
from netlist.products import ProductCase, circuit
from netlist.test_zoo import cases, made
from pccompile.backends.netlist import Netlist, NetlistOptions
from pccompile.backends.netlist.export.nengo import from_nengo, generated
from pccompile.backends.netlist.export.numpy_source import numpy_source
from pccompile.backends.netlist.expressions import FUNCTIONS, function
from pccompile.diagnostics import CompileError
from pccompile.pipeline import compile_netlist

nengo = pytest.importorskip("nengo", reason="Nengo is not installed: pip install 'pccompile[nengo]'")


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTMCell(2, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = c = x.new_zeros(1, 3)
        for step in x:
            h, c = self.cell(step, (h, c))
        return self.out(h)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2), nn.Linear(32, 2)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out((x + torch.relu(self.norm(self.conv(x)))).flatten(1))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 2), nn.Flatten(),
                         nn.Linear(8, 2))  # fmt: skip


def odd() -> nn.Module:
    """Samples in one circuit, and convolutions that Nengo does not have."""
    return nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.GELU(), nn.Conv2d(4, 2, 2, dilation=2),
                         nn.Flatten(), nn.Linear(8, 2))  # fmt: skip


MODELS = {
    "mlp": (mlp, (1, 4), (1, 3)),
    "cnn": (cnn, (1, 1, 6, 6), (1, 2)),
    "lstm": (Cell, (2, 1, 2), (1, 2)),
    "residual": (Residual, (1, 2, 4, 4), (1, 2)),
    "odd": (odd, (2, 2, 8, 8), (2, 2)),
}
Made = tuple[nn.Module, Netlist, torch.Tensor, torch.Tensor]


def case(name: str, ticks: int = 64) -> Made:
    torch.manual_seed(0)
    make, shape, to = MODELS[name]
    model = make().double().eval()
    x, t = torch.randn(shape, dtype=torch.float64), torch.randn(to, dtype=torch.float64)
    return model, compiled(name, ticks), x, t


@functools.cache
def compiled(name: str, ticks: int) -> Netlist:
    torch.manual_seed(0)
    make, shape, _ = MODELS[name]
    options = NetlistOptions(ticks=ticks, rate=0.5)
    return compile_netlist(make().double().eval(), (torch.zeros(shape, dtype=torch.float64),), options=options)


def simulated(network: object, steps: int, optimize: bool = False) -> object:
    model = nengo.builder.Model(dt=0.001, decoder_cache=nengo.cache.NoDecoderCache())
    simulator = nengo.Simulator(network, model=model, progress_bar=False, optimize=optimize)
    simulator.run_steps(steps, progress_bar=False)
    return simulator


@pytest.mark.parametrize("learning", ["nodes", "pes", None])
@pytest.mark.parametrize("name", MODELS)
def test_errors_and_learning_are_those_of_autograd(name: str, learning: str | None) -> None:
    model, net, x, t = case(name, ticks=160)
    network = net.to_nengo(x, t, learning=learning, probes=tuple(net.spec.populations))
    simulator = simulated(network, 161)
    states = {n: simulator.data[p][-1] for n, p in network.watched.items()}

    outputs: list[torch.Tensor] = []
    for module in model.modules():
        if not list(module.children()) and not isinstance(module, nn.LSTMCell):
            module.register_forward_hook(lambda _, i, o: outputs.append(o))
    (0.5 * (model(x) - t).square().sum()).backward(inputs=[*outputs, *model.parameters()])
    compared = 0
    for out in outputs:
        for population, state in states.items():
            same = state.size == out.numel() and np.allclose(state, out.detach().numpy().ravel(), rtol=0, atol=1e-12)
            if population.endswith(".v") and same and f"{population[:-2]}.e" in states:
                error = states[f"{population[:-2]}.e"]
                assert np.abs(error + out.grad.numpy().ravel()).max() <= 1e-6 * out.grad.abs().max().item()
                compared += 1
    assert compared >= min(len(outputs) - 1, 3) or name == "lstm"

    if learning is not None:
        learned = from_nengo(net, network, simulator)
        for path, p in model.named_parameters():
            change = (learned.tensors[path] - net.tensors[path]) * 2**4
            assert np.abs(change + p.grad.numpy()).max() <= 1e-6 * p.grad.abs().max().item(), path


@pytest.mark.parametrize("name", MODELS)
def test_every_state_is_ours_in_every_step(name: str) -> None:
    _, net, x, t = case(name)
    integrators = [n for n, p in net.spec.populations.items() if p.unit == "integrator"]
    ours = net.simulate(x, t, ticks=20, trace=integrators).traces
    network = net.to_nengo(x, t, learning=None, probes=integrators)
    simulator = simulated(network, 21)
    for n in integrators:
        assert not simulator.data[network.watched[n]][0].any()
        expected = ours[n].reshape(20, -1)
        assert simulator.data[network.watched[n]][1:] == pytest.approx(expected, abs=1e-14)


def test_delays_rates_and_leaks() -> None:
    _, net, x, t = case("mlp")
    rates = {"n0.e": {"rate": 0.25, "leak": 0.5}, "n1.e": {"rate": 0.3, "leak": 0.0}}
    populations = {n: msgspec.structs.replace(p, **rates.get(n, {})) for n, p in net.spec.populations.items()}
    projections = tuple(msgspec.structs.replace(p, delay=i % 4) for i, p in enumerate(net.spec.projections))
    net = Netlist(msgspec.structs.replace(net.spec, populations=populations, projections=projections), net.tensors)
    network = net.to_nengo(x, t, probes=("n0.e", "n1.e", "n2.v"), learning=None)
    simulator, ours = simulated(network, 31), net.simulate(x, t, ticks=31, trace=("n0.e", "n1.e", "n2.v")).traces
    for n in ("n0.e", "n1.e"):
        assert simulator.data[network.watched[n]][1:] == pytest.approx(ours[n].reshape(31, -1)[:-1], abs=1e-13)
    assert simulator.data[network.watched["n2.v"]] == pytest.approx(ours["n2.v"].reshape(31, -1), abs=1e-13)
    assert np.ptp(ours["n2.v"][:, 0], axis=0).max() > 0.1


@pytest.mark.parametrize("turned", [True, False])
def test_products_of_late_states(turned: bool) -> None:
    net = circuit(ProductCase("ab", "cb", "ac", {"a": 2, "b": 3, "c": 2}, 0.5, 2, turned))
    x, z, t = (torch.randn(2, n, dtype=torch.float64) for n in (3, 3, 2))
    probes = tuple(net.spec.populations)
    inputs, clamps = {"x": x, "z": z}, {"y": t}
    network = net.to_nengo(inputs, clamps=clamps, probes=probes)
    simulator = simulated(network, 20)
    ours = net.simulator(net.presentation(inputs, clamps=clamps))
    before = ours.values()
    for step in range(20):
        ours.tick("learn" if step % 2 else "settle")
        for name, p in net.spec.populations.items():
            expected = before[name] if p.unit == "integrator" else ours.value(name)
            assert simulator.data[network.watched[name]][step] == pytest.approx(expected.flatten().numpy(), abs=1e-12)
        before = {name: state.clone() for name, state in ours.values().items()}
    assert ours.params["x.b"].numpy() != pytest.approx(net.tensors["x.b"], abs=0.01)


def test_spiking_products_have_units_of_their_own() -> None:
    made = nets.net("attention")
    x, t = torch.randn(1, 3, 4, dtype=torch.float64), torch.randn(1, 3, 4, dtype=torch.float64)
    network = made.to_nengo(x, t, spiking=True, neurons=20)
    assert any(e.label and ".pairs" in e.label for e in network.all_networks)


@pytest.mark.parametrize("learning", ["nodes", "pes"])
def test_presentations_follow_each_other_and_learn(learning: str) -> None:
    _, net, _, _ = case("mlp", ticks=7)
    x, t = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    network = net.to_nengo(x, t, learning=learning)
    learned = from_nengo(net, network, simulated(network, 5 * 8))

    ours = net.simulator(net.presentation(x[:1], t[:1]))
    for i in range(5):
        for name, value in net.presentation(x[i % 2], t[i % 2]).items():
            ours.set(name, torch.from_numpy(value))
        ours.run([("settle", 7), ("learn", 1)])
    for path in net.spec.plastic():
        assert learned.tensors[path] == pytest.approx(ours.params[path].numpy(), abs=1e-14)


def test_a_decaying_parameter_decays() -> None:
    _, net, x, t = case("mlp")
    rules = tuple(msgspec.structs.replace(r, decay=0.5) for r in net.spec.plasticity)
    net = Netlist(msgspec.structs.replace(net.spec, plasticity=rules), net.tensors)
    network = net.to_nengo(x, t, learning="pes")
    learned = from_nengo(net, network, simulated(network, 65))
    for path, p in net.simulate(x, t, learn=True).params.items():
        assert learned.tensors[path] == pytest.approx(p, abs=1e-13)


def test_error_driven_learning_converges() -> None:
    _, net, x, t = case("mlp", ticks=4)
    network = net.to_nengo(x, t, learning="pes")
    assert any(isinstance(c.learning_rule_type, nengo.PES) for c in network.all_connections)
    simulator = simulated(network, 5 * 160)
    errors = np.abs(simulator.data[network.watched["n2.e"]])
    assert errors[0].max() > 0.5
    assert errors[-1].max() < 1e-9


def test_the_script_stands_alone(tmp_path) -> None:
    from pccompile.backends.netlist.export import exporter

    _, net, x, t = case("cnn")
    script, data = exporter("nengo").emit(net, tmp_path, inputs=x, targets=t)
    assert (script.name, data.name) == ("Sequential_nengo.py", "Sequential_nengo.npz")
    blocked = (
        f"import sys, runpy; sys.modules['torch'] = sys.modules['pccompile'] = None; sys.argv = [{str(script)!r}, "
    )
    blocked += f"'--save', {str(tmp_path / 'seen.npz')!r}]; runpy.run_path({str(script)!r}, run_name='__main__')"
    run = subprocess.run([sys.executable, "-W", "error::SyntaxWarning", "-c", blocked], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    seen, ours = np.load(tmp_path / "seen.npz"), net.simulate(x, t, learn=True)
    for name in ("n0.e", "n1.e"):
        assert seen[f"state/{name}"] == pytest.approx(ours.states[name].ravel(), abs=1e-12)
        assert name in run.stdout
    assert seen["parameter/0.weight"] == pytest.approx(ours.params["0.weight"], abs=1e-12)


def test_a_script_presents_something(tmp_path) -> None:
    from pccompile.backends.netlist.export import exporter

    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 4))
    net = compile_netlist(model, (torch.tensor([1, 2]),), options=NetlistOptions(loss="cross-entropy"))
    _, data = exporter("nengo").emit(net, tmp_path, name="tokens", learning=None)
    assert data.name == "tokens_nengo.npz"
    presented = {k: v for k, v in np.load(data).items() if k.startswith("presented/")}
    assert len(presented) == 2
    assert all((v.sum(-1) == 1).all() for v in presented.values())


def test_the_same_script_twice(tmp_path) -> None:
    from pccompile.backends.netlist.export import exporter

    written = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        _, net, x, t = case("residual")
        written.append([p.read_bytes() for p in exporter("nengo").emit(net, folder, inputs=x, targets=t)])
    assert written[0] == written[1]


def test_a_probe_of_nothing_is_refused() -> None:
    with pytest.raises(CompileError, match="no population is called n9"):
        case("mlp")[1].to_nengo(probes=("n9",))


def test_names_are_data() -> None:
    net = case("mlp")[1]
    name = 'a"""\nimport os  # {x}'
    source = generated(Netlist(msgspec.structs.replace(net.spec, name=name), net.tensors)).source()
    compile(source, "generated", "exec")
    assert "\nimport os" not in source


def off(net: Netlist, network: object, steps: int, x: torch.Tensor, t: torch.Tensor) -> dict[str, float]:
    """Root mean square of what each population is off, relative to its largest unit."""
    simulator, ours = simulated(network, steps, optimize=True), net.simulate(x, t, ticks=200).states
    seen = {n: simulator.data[p][-1] - ours[n].ravel() for n, p in network.watched.items()}
    return {n: np.sqrt(np.square(d).mean()) / np.abs(ours[n]).max() for n, d in seen.items()}


def test_spiking_neurons_are_as_wrong_as_is_expected() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, t = torch.randn(1, 2, dtype=torch.float64), torch.randn(1, 2, dtype=torch.float64)
    net = compile_netlist(model, (x,))
    network = net.to_nengo(x, t, spiking=True, neurons=100)
    assert network.n_neurons == 100 * (4 + 4 + 2 + 2 + 4 + 4 + 4 + 2 * 4)  # a product takes two ensembles a unit
    found = off(net, network, 500, x, t)
    assert set(network.expected) == {"n0.e", "n1.e", "n2.e"}
    for name, error in network.expected.items():
        assert 0.002 < error < 0.1
        assert error / 5 < found[name] < error * 3
    coarser = generated(net, x, t, spiking=True, neurons=30).expected
    assert all(coarser[n] > network.expected[n] for n in coarser)


def test_where_there_is_no_error_any_is_infinitely_wrong() -> None:
    net = compile_netlist(nn.Linear(2, 1, bias=False).double(), (torch.zeros(1, 2, dtype=torch.float64),))
    assert list(net.to_nengo(spiking=True, neurons=10).expected.values()) == [np.inf]


def test_choices_stand_between_spiking_neurons() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.MaxPool1d(2), nn.Linear(2, 1)).double()
    x, t = torch.randn(1, 2, dtype=torch.float64), torch.full((1, 1), 2.0, dtype=torch.float64)
    net = compile_netlist(model, (x,))
    found = off(net, net.to_nengo(x, t, spiking=True), 500, x, t)
    assert max(found.values()) < 0.1


def test_spiking_neurons_have_no_delays() -> None:
    _, net, x, t = case("mlp")
    projections = (msgspec.structs.replace(net.spec.projections[0], delay=2), *net.spec.projections[1:])
    net = Netlist(msgspec.structs.replace(net.spec, projections=projections), net.tensors)
    with pytest.raises(CompileError, match=r"projection input\.v->n0\.v: a delay of 2 ticks"):
        net.to_nengo(x, t, spiking=True)


INPUTS = {"acosh": (1.1, 3), "log": (0.1, 3), "sqrt": (0.1, 3), "lgamma": (0.1, 3), "digamma": (0.1, 3),
          "trigamma": (0.1, 3), "polygamma": (0.1, 3), "ndtri": (0.05, 0.95)}  # fmt: skip


@pytest.mark.parametrize("name", [*FUNCTIONS])
def test_functions_in_numpy(name: str) -> None:
    special = pytest.importorskip("scipy.special")
    text = {"polygamma": "polygamma(2, x)", "Piecewise": "Piecewise((x, (x > 0) & (x < 1)), (x**2, x <= 0), (1, True))"}
    text = text.get(name, f"{name}(x) + 1/(2*x**2 + 1)")
    parts = __import__("pccompile.backends.netlist.export.nengo_parts", fromlist=["piecewise"])
    x = np.linspace(*INPUTS.get(name, (-0.9, 0.9)), 19)
    scope = {"np": np, "math": __import__("math"), "special": special, "piecewise": parts.piecewise, "x": x}
    got = eval(numpy_source(text), scope)
    assert got == pytest.approx(function(text)(torch.from_numpy(x)).numpy(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("text", [
    "(x > 0) + (x > -0.5)", "-(x > 0)", "x * ((x > 0) & (x < 0.5))", "tanh(x > 0) - 2**0.5", "1/0.0 * (x > 9)",
    "Piecewise((x > 0, x < 0.5), (x, False), (1/0, x > 3), (2, True))", "(1 > 0) * x", "abs(-3) + x",
    "x > 0", "7", "polygamma(1 + 1, x + 2)"])  # fmt: skip
def test_conditions_and_constants_in_numpy(text: str) -> None:
    special = pytest.importorskip("scipy.special")
    parts = __import__("pccompile.backends.netlist.export.nengo_parts", fromlist=["piecewise"])
    x = np.linspace(-0.9, 0.9, 19)
    with np.errstate(all="ignore"):
        got = eval(numpy_source(text), {"np": np, "special": special, "piecewise": parts.piecewise, "x": x})
    expected = function(text)(torch.from_numpy(x)).numpy()
    assert np.broadcast_to(got, x.shape) == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_only_the_language_becomes_source() -> None:
    with pytest.raises(ValueError, match="not in the language"):
        numpy_source("__import__('os')")


FEW = ("mlp_elu", "siamese", "scalar", "tied_linear", "shared_layer", "max_pool_ties", "dropout_kinds", "conv1d")


def same_as_ours(case: Case, ticks: int = 24) -> None:
    circuit, clamps, _ = made(case)
    net, inputs = circuit.netlist, circuit.examples
    settled, later = (net.simulate(inputs, clamps=clamps, ticks=n).states for n in (ticks, ticks + 1))
    learned = net.simulate(inputs, clamps=clamps, ticks=ticks, learn=True).params
    populations = {n: p for n, p in net.spec.populations.items() if p.size}
    network = net.to_nengo(inputs, clamps=clamps, ticks=ticks, probes=tuple(populations))
    simulator = simulated(network, ticks + 1)
    for name, p in populations.items():
        expected = (settled if p.unit == "integrator" else later)[name].ravel()
        assert simulator.data[network.watched[name]][-1] == pytest.approx(expected, rel=1e-9, abs=1e-11), name
    found = from_nengo(net, network, simulator).tensors
    for path in net.spec.plastic():
        assert found[path] == pytest.approx(learned[path], rel=1e-9, abs=1e-11), path


@pytest.mark.parametrize("case", [*cases(ZOO, *FEW), *cases(TRAPS, *FEW)])
def test_circuits_of_the_zoo(case: Case) -> None:
    same_as_ours(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in cases(ZOO) if not c.marks])
def test_all_circuits_of_the_zoo(case: Case) -> None:
    same_as_ours(case)
