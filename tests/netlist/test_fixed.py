"""The fixed-point simulator against one in Python's integers, written from the document alone."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from netlist.naive_fixed import FixedNaive
from netlist.nets import NETS, net, presented
from pccompile.backends.netlist import NetlistOptions
from pccompile.backends.netlist.simulate.fixed import FixedSimulator, lottery, shifted
from pccompile.backends.netlist.simulate.formats import constant, fitting
from pccompile.diagnostics import CompileError
from pccompile.pipeline import compile_netlist


def mlp(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return compile_netlist(model, (torch.randn(1, 4).double(),), options=NetlistOptions(**options))


def with_formats(net, bits, table, guard):
    """The circuit with one format for all populations; parameters keep the defaults."""
    more = {"map": {"table": table}, "integrator": {"guard": guard}}
    populations = {
        n: msgspec.structs.replace(p, bits=bits, **more.get(p.unit, {})) for n, p in net.spec.populations.items()
    }
    return replace(net, spec=msgspec.structs.replace(net.spec, populations=populations))


def same_integers(net, folder, replicas=1, ticks=8):
    """Run both simulators side by side, learning from half way on."""
    simulator = FixedSimulator(net.spec, net.tensors, replicas)
    naive = FixedNaive(net.save(folder, "m")[0], replicas)
    start = {name: param.clone() for name, param in simulator.params.items()}
    for name, value in presented(net, replicas).items():
        simulator.set(name, torch.from_numpy(2 * value))
        naive.state[name] = simulator.states[name].reshape(replicas, -1).long().tolist()
    for tick in range(ticks):
        phase = "learn" if tick >= ticks // 2 else "settle"
        simulator.tick(phase)
        naive.tick(phase)
        for name, state in simulator.states.items():
            assert state.reshape(replicas, -1).tolist() == naive.state[name], (tick, name)
    for name, param in simulator.params.items():
        assert param.tolist() == naive.tensors[name].tolist(), name
    return any(not torch.equal(start[name], simulator.params[name]) for name in net.spec.plastic())


@pytest.mark.parametrize("name", NETS)
def test_every_integer_of_every_circuit_is_the_naive_one(name, tmp_path):
    made = net(name).quantise(presentations=[presented(net(name))], ticks=4, table_bits=8)
    assert same_integers(made, tmp_path)


@pytest.mark.parametrize("eta", [2.0**-4, 0.05])
@pytest.mark.parametrize(
    "bits, table, guard", [((16, 10), (12, 3), None), ((12, 7), (6, 2), 0), ((18, 13), (10, 2), 5)]
)
def test_widths_guard_bits_and_rates_of_any_kind(eta, bits, table, guard, tmp_path):
    assert same_integers(with_formats(mlp(eta=eta), bits, table, guard), tmp_path, replicas=2, ticks=30)


def test_decaying_parameters_in_fixed_point(tmp_path):
    made = mlp().untie(init="random", decay=0.3).quantise(presentations=[presented(mlp())])
    assert same_integers(made, tmp_path, ticks=20)


def test_fixed_point_follows_floating_point():
    net = mlp()
    x, t = torch.randn(1, 4).double(), torch.randn(1, 3).double()
    exact = net.simulate(x, t, ticks=200)
    simulator = FixedSimulator(net.spec, net.tensors)
    for name, value in net.presentation(x, t).items():
        simulator.set(name, torch.from_numpy(value))
    simulator.run([("settle", 200)])
    for name, value in simulator.values().items():
        assert np.abs(value.numpy() - exact.states[name]).max() < 0.02


def test_shifts_round_to_the_nearest_and_ties_upwards():
    v = torch.tensor([-6.0, -5, -3, -2, -1, 0, 1, 2, 3, 6])
    assert shifted(v, 2).tolist() == [-1, -1, -1, 0, 0, 0, 0, 1, 1, 2]
    assert shifted(v, -2).tolist() == (v * 4).tolist()


def test_the_lottery_is_right_on_average():
    drawn = lottery(torch.full((20_000,), -11.0), 3, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {-2.0, -1.0}
    assert abs(float(drawn.mean()) + 11 / 8) < 0.02


@pytest.mark.parametrize("gain, expected", [(1.0, (1, 0)), (-0.25, (-1, 2)), (8.0, (1, -3)), (0.0, (0, 0))])
def test_powers_of_two_are_shifts(gain, expected):
    assert constant(gain) == expected


def test_other_factors_have_fifteen_bits():
    factor, shift = constant(-0.05)
    assert 2**14 <= -factor < 2**15
    assert abs(factor * 2.0**-shift + 0.05) < 0.05 * 2**-15


@pytest.mark.parametrize(
    "largest, fraction", [(0.9, 7), (1.0, 6), (0.498, 8), (0.4999, 7), (100.0, 0), (0.0, 7), (1e-320, 64)]
)
def test_a_scale_fits_the_largest_entry(largest, fraction):
    assert fitting(np.array([largest, -largest / 2]), 8) == (8, fraction)


def test_what_cannot_be_exact_is_refused():
    with pytest.raises(CompileError, match=r"integrator n0\.e has the rate 0\.1"):
        FixedSimulator(mlp(rate=0.1).spec, mlp().tensors)
    net = mlp()
    wide = {n: msgspec.structs.replace(p, bits=(32, 20)) for n, p in net.spec.populations.items()}
    with pytest.raises(CompileError, match="more than 26 bits"):
        FixedSimulator(msgspec.structs.replace(net.spec, populations=wide), net.tensors)


def test_too_many_replicas_are_refused_when_they_are_to_learn():
    made = with_formats(mlp(eta=0.05), (18, 13), (8, 2), None)
    simulator = FixedSimulator(made.spec, made.tensors, replicas=64)
    simulator.tick("settle")
    with pytest.raises(CompileError, match=r"plasticity of 0\.weight adds up to numbers of more than 52 bits"):
        simulator.tick("learn")
