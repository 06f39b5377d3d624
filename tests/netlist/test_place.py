"""Placement onto chips: the limits hold, whoever counts, and a broken one is found."""

import itertools
from dataclasses import replace as changed

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from netlist.nets import NETS, again, net, record
from pccompile import CompileError
from pccompile.backends.netlist import Netlist, NetlistOptions
from pccompile.backends.netlist.chip import Chip, Figure, Flag, Grid, Kinds
from pccompile.backends.netlist.export.sana_fe import energy, traffic
from pccompile.backends.netlist.placement import Placement, place
from pccompile.backends.netlist.placement.load import Demand
from pccompile.backends.netlist.placement.packing import packed
from pccompile.backends.netlist.placement.placement import hops, spread
from pccompile.pipeline import compile_netlist


def figure(value: int) -> Figure:
    return Figure(value=value, source="a test")


def tiny(**given: object) -> Chip:
    """A chip of small cores."""
    usual = {
        "name": "tiny", "cores": figure(64), "cores_per_tile": figure(2), "grid": Grid(value=(8, 4), source="a test"),
        "units": figure(12), "axons_in": figure(40), "axons_out": figure(80), "memory": figure(2000),
        "weight_bits": figure(8), "state_bits": figure(16), "row_synapses": figure(4), "row_header_bits": figure(3),
        "word_bits": figure(16), "shares_kernels": Flag(value=True, source="a test"),
        "learns": Flag(value=True, source="a test"), "native": Kinds(value=("sum",), source="a test"),
    }  # fmt: skip
    return Chip(**{**usual, **given})


def mlp() -> Netlist:
    model = nn.Sequential(nn.Linear(784, 256), nn.Tanh(), nn.Linear(256, 10))
    return compile_netlist(model, (torch.randn(1, 784),), options=NetlistOptions(loss="cross-entropy"))


def test_a_perceptron_on_loihi() -> None:
    p = mlp().place("loihi1")
    assert len(p.tiles) <= 4
    assert p.check() == ()
    # Two cores are the least: 784 rows of 256 weights of 8 bits, in 4 parts of 9 words each, and 2,432 units.
    assert p.use.memory.sum() >= 784 * 4 * 9 * 64
    assert sorted(p.foreign()) == ["map", "product", "select"]


def test_a_convolution_is_not_unrolled_where_kernels_are_shared() -> None:
    given = compile_netlist(nn.Conv2d(16, 32, 3, padding=1), (torch.randn(1, 16, 32, 32),))
    p = given.place("loihi1")
    assert p.net is given
    assert p.check() == ()
    kernel = 16 * 9 * (32 * 8 + 10 + 54)  # rows of 32 weights, in 5 words of 64 bits
    unrolled = 4589568 * 8 / len(p.tiles)
    assert p.use.memory.max() <= kernel + 512 * 2 * 64 < unrolled / 2
    assert p.copies()["weight"] == 64


def test_unrolled_where_they_are_not() -> None:
    given = compile_netlist(nn.Conv2d(2, 2, 3, padding=1), (torch.randn(1, 2, 8, 8),))
    wide = {k: figure(v) for k, v in {"units": 128, "axons_in": 500, "axons_out": 500, "memory": 10**5}.items()}
    shared, unrolled = (
        place(given, tiny(shares_kernels=Flag(value=v, source="a test"), **wide)) for v in (True, False)
    )
    assert unrolled.use.memory.sum() > 2 * shared.use.memory.sum()


def test_truenorth_needs_partial_sums() -> None:
    given = mlp()
    with pytest.raises(CompileError, match=r"units of n0\.v hear 784 units, TrueNorth allows 256.*\n.*split_fan_in"):
        place(given, "truenorth", split=False)
    p = given.place("truenorth")
    assert len(p.tiles) <= 20
    assert p.net is not given
    assert p.check() == ()
    assert max(n.max() for n in p.use.fan_in.values()) == 256


@pytest.mark.parametrize("name", NETS)
def test_placer_and_verifier_count_the_same(name: str) -> None:
    for shares, learns in itertools.product((True, False), repeat=2):
        flags = {"shares_kernels": Flag(value=shares, source="a test"), "learns": Flag(value=learns, source="a test")}
        chip = tiny(units=figure(24), **flags)
        p = place(net(name), chip)
        demand = Demand(p.net.spec, p.net.tensors, chip, {})
        packing = packed(demand, True, 1)
        own = Placement(chip, p.net, packing.core, np.zeros((len(packing.loads), 2), dtype=np.int64))
        assert [load.units for load in packing.loads] == own.use.units.tolist()
        assert [load.axons for load in packing.loads] == own.use.axons_in.tolist()
        # The placer rounds rows that two pieces share up twice.
        bits, counted = np.array([demand.memory(load) for load in packing.loads]), own.use.memory
        assert (counted <= bits).all()
        assert bits.sum() <= 1.05 * counted.sum()
        assert (packing.traffic() == own.use.traffic).all()
        assert p.check() == ()
        if not learns and not any(q.by for q in p.net.spec.projections):
            assert traffic(p.net, p.cores).packets == p.messages


def test_sana_fe_counts_the_same(capfd) -> None:
    pytest.importorskip("sanafe", reason="SANA-FE is not installed (GPL, no dependency of ours): pip install sanafe")
    chip = tiny(learns=Flag(value=False, source="a test"), units=figure(6), cores_per_tile=figure(1), cores=figure(32))
    p = place(net("mlp"), chip)
    found = energy(p.net, cores=p.cores, tiles=p.tiles)
    assert found.traffic.packets == p.messages
    assert found.traffic.events == p.net.resources().synapses
    assert 3 * p.hops <= found.energy["network"] * 1e12 - 1.7 * p.messages <= 4 * p.hops
    assert p.hops > 0


def test_the_same_every_time() -> None:
    one, two = (place(net("cnn"), tiny()) for _ in range(2))
    assert (one.tiles == two.tiles).all()
    assert all((one.cores[n] == two.cores[n]).all() for n in one.cores)


@pytest.mark.parametrize("limit", ["units", "axons_in", "axons_out", "memory"])
def test_a_full_core_is_found(limit: str) -> None:
    p = place(net("cnn"), tiny())
    most = int(getattr(p.use, limit).max())
    assert changed(p, chip=msgspec.structs.replace(p.chip, **{limit: figure(most)})).check() == ()
    less = changed(p, chip=msgspec.structs.replace(p.chip, **{limit: figure(most - 1)}))
    assert any(f"{limit} {most:,} exceeds {most - 1:,}" in w for w in less.check())


def test_a_wide_unit_is_found() -> None:
    p = place(net("mlp"), tiny())
    assert changed(p, chip=tiny(fan_in=figure(3))).check() == ()
    assert changed(p, chip=tiny(fan_in=figure(2))).check() == ("n2.v: fan_in 3 exceeds 2",)


def test_wide_numbers_are_found() -> None:
    given = record(net("mlp"))
    given["tensors"]["0.weight"]["bits"] = [9, 6]
    given["populations"]["n0.v"]["bits"] = [17, 10]
    p = place(net("mlp"), tiny())
    assert changed(p, net=again(given, net("mlp"))).check() == (
        "0.weight: weight_bits 9 exceeds 8",
        "n0.v: state_bits 17 exceeds 16",
    )
    with pytest.raises(CompileError, match=r"tiny: 0\.weight: weight_bits 9 exceeds 8\n.*state_bits.*\n.*quantise"):
        place(again(given, net("mlp")), tiny())
    assert place(net("mlp").quantise(4, 12), tiny()).use.memory.sum() < p.use.memory.sum()


def test_too_many_cores_are_found() -> None:
    p = place(net("cnn"), tiny())
    few = changed(p, chip=tiny(cores=figure(len(p.tiles) - 1)))
    assert few.check() == (f"{len(p.tiles)} cores are used, tiny has {len(p.tiles) - 1}",)
    with pytest.raises(CompileError, match=r"cnn takes \d cores, tiny has 1"):
        place(net("cnn"), tiny(units=None, cores=figure(1)))
    with pytest.raises(CompileError, match="cnn has 120 units, tiny has room for 24"):
        place(net("cnn"), tiny(cores=figure(2)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c, t: (c, np.zeros_like(t)), "tile 0, 0 has"),
        (lambda c, t: (c, t + np.array([8, 0])), "outside the grid"),
        (lambda c, t: (c, t - np.array([0, 9])), "outside the grid"),
        (lambda c, t: ({k: v for k, v in c.items() if k != "n0.v"}, t), "n0.v has no core for each of its units"),
        (lambda c, t: ({**c, "n0.v": c["n0.v"] - 100}, t), "n0.v lies on cores -"),
        (lambda c, t: ({**c, "n0.v": c["n0.v"] + 100}, t), "n0.v lies on cores 1"),
        (lambda c, t: ({**c, "n0.v": c["n0.v"] * 1.0}, t), "n0.v has no core"),
        (lambda c, t: ({**c, "ghost": c["n0.v"]}, t), "the circuit has no ghost"),
    ],
)
def test_a_misplaced_unit_is_found(change, said: str) -> None:
    p = place(net("cnn"), tiny())
    cores, tiles = change(dict(p.cores), p.tiles)
    assert any(said in w for w in changed(p, cores=cores, tiles=tiles).check())


def test_a_unit_that_no_core_can_bear() -> None:
    with pytest.raises(
        CompileError, match=r"a core of tiny cannot bear one unit of .*: .* bits of synapses where 20 fit"
    ):
        place(net("mlp"), tiny(memory=figure(20)))


def test_neighbours_of_a_chain_are_neighbours() -> None:
    rng = np.random.default_rng(1)
    chain = np.zeros((12, 12), dtype=np.int64)
    order = rng.permutation(12)
    chain[order[:-1], order[1:]] = 5
    tiles = spread(chain, tiny(cores=figure(32), cores_per_tile=figure(1)))
    assert (chain * hops(tiles)).sum() <= 1.3 * chain.sum()


def test_near_the_best_of_all_arrangements() -> None:
    rng = np.random.default_rng(0)
    chip = tiny(cores=figure(6), cores_per_tile=figure(1), grid=Grid(value=(3, 2), source="a test"))
    places = np.array(list(itertools.product(range(3), range(2))))
    for _ in range(5):
        messages = rng.integers(0, 20, (6, 6))
        best = min((messages * hops(places[list(o)])).sum() for o in itertools.permutations(range(6)))
        assert (messages * hops(spread(messages, chip))).sum() <= 1.1 * best


def test_a_tile_that_takes_more_cores_than_there_are_takes_all_of_them() -> None:
    messages = np.ones((5, 5), int)
    for each in (5, 1000, 10**12):
        tiles = spread(messages, tiny(cores=figure(32), cores_per_tile=figure(each)))
        assert len(np.unique(tiles, axis=0)) == 1


def test_traffic_is_less_than_in_order() -> None:
    wide = {k: figure(v) for k, v in {"units": 128, "axons_in": 2000, "axons_out": 2000, "memory": 10**6}.items()}
    given = compile_netlist(nn.Conv2d(4, 8, 3, padding=1), (torch.randn(1, 4, 16, 16),))
    p = place(given, tiny(cores_per_tile=figure(1), grid=Grid(value=(8, 8), source="a test"), **wide))
    in_order = np.stack([np.arange(len(p.tiles)) % 8, np.arange(len(p.tiles)) // 8], 1)
    assert p.hops < 0.8 * (p.use.traffic * hops(in_order)).sum()
