"""The fixed-point simulator against a scalar one in Python's integers, written from the document alone."""

import math
from fractions import Fraction

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from pccompile.backends.netlist import Netlist, NetlistOptions
from pccompile.backends.netlist.simulate.fixed import FixedSimulator, lottery, shifted
from pccompile.backends.netlist.simulate.formats import constant, fitting, integers
from pccompile.circuits import compile_netlist
from pccompile.diagnostics import CompileError


def shr(v, k):
    return (v + (1 << (k - 1))) >> k if k > 0 else v << -k


def sat(v, bits):
    return max(-(1 << (bits - 1)), min((1 << (bits - 1)) - 1, v))


def times(gain):
    """c and s of a factor, from the document's words."""
    s = 0
    while abs(gain) * 2.0**s >= 2**15:
        s -= 1
    while abs(gain) * 2.0**s < 2**14:
        s += 1
    return round(Fraction(gain) * Fraction(2) ** s), s


class Scalar:
    """An interpreter, unit by unit, of nets of dense and one-to-one projections."""

    def __init__(self, net, formats, table):
        self.net, self.spec, self.f, self.table = net, net.spec, formats, table
        self.s = {n: [0] * p.size for n, p in self.spec.populations.items()}
        self.acc = {n: [0] * p.size for n, p in self.spec.populations.items()}
        self.w = {n: integers(torch.tensor(a), formats.params[n]).long().tolist() for n, a in net.tensors.items()}

    def message(self, p, i):
        pre, f = self.s[p.pre], self.f.states[p.pre][1]
        if p.op == "one_to_one":
            m = pre[i]
        else:
            w = self.w[p.param]
            m = sum((w[j][i] if p.transpose else w[i][j]) * v for j, v in enumerate(pre))
            f += self.f.params[p.param][1]
        c, s = times(p.gain)
        return shr(m * c, f + s - self.f.states[p.target][1])

    def port(self, name, i, port="in"):
        return sum(self.message(p, i) for p in self.spec.projections if p.post == f"{name}:{port}")

    def tick(self, order, learn):
        for name in order:
            p, (bits, f) = self.spec.populations[name], self.f.states[name]
            for i in range(p.size):
                u = self.port(name, i)
                if p.unit == "sum":
                    bias = 0 if p.bias is None else shr(self.w[p.bias][i], self.f.params[p.bias][1] - f)
                    self.s[name][i] = sat(u + bias, bits)
                elif p.unit == "product":
                    x, y = sat(self.port(name, i, "x"), bits), sat(self.port(name, i, "y"), bits)
                    self.s[name][i] = sat(shr(x * y, f), bits)
                else:
                    length, reach = self.table
                    n = f + reach + 1 - length
                    u = sat(u, bits)
                    place = (u >> n if n >= 0 else u << -n) + 2 ** (length - 1)
                    place = max(0, min(2**length - 1, place))
                    x = (place - 2 ** (length - 1) + 0.5) * 2.0 ** (reach + 1 - length)
                    y = {"tanh(x)": math.tanh(x), "1 - tanh(x)**2": 1 - math.tanh(x) ** 2}[p.function]
                    self.s[name][i] = sat(round(y * 2**f), bits)
        states, acc = {}, {}
        for name, p in self.spec.populations.items():
            if p.unit == "integrator":
                k, bits = -int(math.log2(p.rate)), self.f.states[name][0]
                acc[name] = [sat(a + shr((self.port(name, i) << k) - int(p.leak) * a, k), bits + k)
                             for i, a in enumerate(self.acc[name])]  # fmt: skip
                states[name] = [sat(shr(a, k), bits) for a in acc[name]]
        for rule in self.spec.plasticity if learn else ():
            w, post = self.w[rule.param], self.s[rule.post]
            (bits, f), fp = self.f.params[rule.param], self.f.states[rule.post][1]
            c, s = times(rule.rate * rule.gain)
            for i in range(len(w)):
                if rule.rule == "copy":
                    w[i] = sat(w[i] + shr(post[i] * c, fp + s - f), bits)
                    continue
                for j, pre in enumerate(self.s[rule.pre]):
                    k = fp + self.f.states[rule.pre][1] + s - f
                    w[i][j] = sat(w[i][j] + shr(post[i] * pre * c, k), bits)
        self.s.update(states)
        self.acc.update(acc)


def mlp(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return compile_netlist(model, (torch.randn(1, 4).double(),), options=NetlistOptions(**options))


@pytest.mark.parametrize("eta", [2.0**-4, 0.05])
@pytest.mark.parametrize("bits, table", [((16, 10), (12, 3)), ((12, 7), (6, 2)), ((18, 13), (10, 2))])
def test_every_integer_is_the_scalar_interpreters(eta, bits, table):
    net = mlp(eta=eta)
    spec = msgspec.structs.replace(
        net.spec,
        populations={
            n: msgspec.structs.replace(p, bits=bits, table=table if p.unit == "map" else None)
            for n, p in net.spec.populations.items()
        },
    )
    net = Netlist(spec, net.tensors)
    simulator = FixedSimulator(net.spec, net.tensors)
    scalar = Scalar(net, simulator.formats, table)
    presentation = net.presentation(3 * torch.randn(1, 4), torch.randn(1, 3))
    for name, value in presentation.items():
        simulator.set(name, torch.from_numpy(value))
        scalar.s[name] = [int(v) for v in simulator.states[name].flatten()]
    for tick in range(40):
        learn = tick > 20
        simulator.tick("learn" if learn else "settle")
        scalar.tick(simulator.order, learn)
        for name, state in simulator.states.items():
            assert state.flatten().tolist() == scalar.s[name], (tick, name)
    for name, param in simulator.params.items():
        assert param.tolist() == scalar.w[name], name
        assert param.tolist() != integers(torch.tensor(net.tensors[name]), simulator.formats.params[name]).tolist()


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


@pytest.mark.parametrize("largest, fraction", [(0.9, 7), (1.0, 6), (0.498, 8), (0.4999, 7), (100.0, 0), (0.0, 7)])
def test_a_scale_fits_the_largest_entry(largest, fraction):
    assert fitting(np.array([largest, -largest / 2]), 8) == (8, fraction)


def test_what_cannot_be_exact_is_refused():
    with pytest.raises(CompileError, match=r"integrator n0\.e has the rate 0\.1"):
        FixedSimulator(mlp(rate=0.1).spec, mlp().tensors)
    net = mlp()
    wide = {n: msgspec.structs.replace(p, bits=(32, 20)) for n, p in net.spec.populations.items()}
    with pytest.raises(CompileError, match="more than 26 bits"):
        FixedSimulator(msgspec.structs.replace(net.spec, populations=wide), net.tensors)
