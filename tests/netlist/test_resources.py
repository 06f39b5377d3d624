"""Costs of circuits: counted by hand, by unrolling, and against what the simulator does."""

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from netlist.nets import NETS, net
from pccompile.backends.netlist import Netlist, NetlistOptions
from pccompile.backends.netlist.arrivals import fan_in, fan_out
from pccompile.backends.netlist.chip import load
from pccompile.backends.netlist.placement.verify import measured
from pccompile.backends.netlist.resources import law, resources
from pccompile.backends.netlist.transforms.flatten import flatten
from pccompile.pipeline import compile_netlist


def test_the_smallest_net_by_hand() -> None:
    r = net("mlp").resources()  # 2-3-1 with tanh
    # input 2, sum and tanh 3 each, output, target and its error 1 each; errors of sum and tanh, slope and gate 3 each
    assert r.units == 2 + 3 + 3 + 1 + 1 + 1 + 4 * 3
    # two weights, the second backwards too; target and output to the error; sum to tanh and slope, three of the gate
    assert r.synapses == 2 * 3 + 3 * 1 * 2 + 2 + 5 * 3
    assert (r.parameters, r.learned) == (2 * 3 + 3 + 3 + 1, 2 * 3 + 3 + 3 + 1)
    assert r.weight_bits == (2 * 3 + 3) * 8 + (3 + 1) * 16
    assert r.state_bits == r.units * 16 + 2 * 3 * 1  # rate ½ takes a guard bit
    assert (r.macs, r.products) == (2 * 3 + 2 * 3, 3)
    assert r.updates == 2 * 3 + 3 + 3 + 1
    assert r.messages == r.units - 3  # nobody reads the error of the sum but its own plasticity
    assert (r.fan_in.largest, r.fan_out.largest) == (3, 3)
    assert r.depth == 2


def test_a_convolution_by_hand() -> None:
    given = compile_netlist(nn.Conv2d(2, 3, 3, padding=1), (torch.randn(1, 2, 4, 4),))
    r = given.resources()
    # on each axis of 4 the kernel of 3 meets 2, 3, 3 and 2 entries
    assert r.macs == 2 * 3 * 10 * 10
    assert r.synapses == r.macs + 2 * 48
    assert r.parameters == 2 * 3 * 9 + 3
    assert r.updates == r.macs + 48
    assert r.fan_in.largest == 2 * 9


@pytest.mark.parametrize("name", NETS)
def test_closed_form_and_enumeration(name: str) -> None:
    given = net(name)
    r = given.resources()
    one = {n: np.zeros(p.shape, dtype=np.int64) for n, p in given.spec.populations.items()}
    enumerated = measured(given, load("mesh"), one, 1).fan_in
    assert r.synapses == sum(int(n.sum()) for n in enumerated.values())
    into, out = fan_in(given.spec, given.tensors), fan_out(given.spec, given.tensors)
    assert all((into[n] == enumerated[n]).all() for n in into)
    multiplied = sum(
        p.synapses for p in r.projections if p.op == "einsum"
    )  # by a second state, which is sent there too
    assert sum(n.sum() for n in out.values()) == r.synapses + multiplied


@pytest.mark.parametrize("name", NETS)
def test_a_flat_circuit_has_as_many(name: str) -> None:
    given = net(name)
    flat = flatten(given)
    r, f = given.resources(), flat.resources()
    assert {p.name for p in flat.spec.projections if p.op not in ("sparse", "gather", "route")} == set()
    # A bias that is shared along an axis becomes synapses from a unit that is 1.
    shared = sum(p.size for p in given.spec.populations.values() if p.bias_axis is not None)
    # A product of states gets a unit, which hears both and is heard.
    products = sum(p.synapses for p in r.projections if p.op == "einsum")
    assert f.synapses == r.synapses + shared + 2 * products
    assert f.products == r.products


def deep() -> Netlist:
    layers = [m for _ in range(3) for m in (nn.Linear(3, 3), nn.Tanh())]
    torch.manual_seed(3)
    model = nn.Sequential(*layers, nn.Linear(3, 2)).double()
    x = torch.randn(1, 3, dtype=torch.float64)
    return compile_netlist(model, (x,), options=NetlistOptions(rate=0.25))


@pytest.mark.parametrize("ticks", [1, 3, 6, 10, 25, 60])
def test_the_law_and_the_simulator(ticks: int) -> None:
    given = deep()
    x, t = torch.randn(1, 3, dtype=torch.float64), torch.randn(1, 2, dtype=torch.float64)
    found, settled = (given.simulate(x, t, ticks=n, learn=True) for n in (ticks, 2000))

    def change(r) -> dict[str, np.ndarray]:
        return {k: r.params[k] - given.tensors[k] for k in given.spec.plastic()}

    one, other = change(found), change(settled)
    measured_error = max(np.linalg.norm(one[k] - other[k]) / np.linalg.norm(other[k]) for k in one)
    known = law(given.spec)
    assert known is not None
    assert max(known.lengths) == 6
    assert measured_error == pytest.approx(known.gradient_error(ticks), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("change", [Netlist.flatten, Netlist.untie, Netlist.on_off, lambda n: n.split_fan_in(2)])
def test_passes_leave_the_law(change) -> None:
    assert law(change(deep()).spec) == law(deep().spec)


def test_ticks_to_a_tolerance() -> None:
    r, known = deep().resources(), law(deep().spec)
    for tolerance, ticks in r.ticks:
        assert known.gradient_error(ticks) <= tolerance < known.gradient_error(ticks - 1)


def test_a_way_around_is_shorter() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.a(x)
            return h + self.b(torch.tanh(h))

    known = law(compile_netlist(Skip(), (torch.randn(1, 2),)).spec)
    assert len(known.lengths) > 1


def test_no_law_for_several_rates() -> None:
    given = net("mlp")
    populations = {
        n: msgspec.structs.replace(p, rate=0.25) if n == "n0.e" else p for n, p in given.spec.populations.items()
    }
    other = Netlist(msgspec.structs.replace(given.spec, populations=populations), given.tensors)
    r = resources(other)
    assert (r.depth, r.settled) == (None, None)
    assert all(n is None for _, n in r.ticks)


def test_energy_by_hand() -> None:
    r = net("mlp").resources("loihi1")
    low = r.synapses * 23.6 + r.units * 52 + r.placement.messages * 1.7
    high = r.synapses * 35.5 + r.units * 81 + r.placement.messages * 1.7
    assert len(r.placement.tiles) == 1
    assert (r.tick_energy.low, r.tick_energy.high) == (pytest.approx(low), pytest.approx(high))
    assert r.learning_energy.low == r.updates * 120
    assert r.presentation_energy.low == pytest.approx(65 * low + r.updates * 120)
    assert net("mlp").resources("loihi2").tick_energy.missing == ("unit", "synapse", "message", "hop")
    assert net("mlp").resources("spinnaker2").tick_energy.unsure == ("synapse",)
