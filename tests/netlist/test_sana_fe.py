"""SANA-FE reads our files and counts what we count."""

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from pccompile.backends.netlist import Netlist, chip
from pccompile.backends.netlist.export import exporter, sana_fe
from pccompile.backends.netlist.export.sana_fe import Traffic, energy, loihi, measure, packed, traffic
from pccompile.backends.netlist.placement import place
from pccompile.diagnostics import CompileError
from pccompile.pipeline import compile_netlist

WHY = "SANA-FE is not installed (GPL, no dependency of ours): pip install sanafe"


def mlp(*sizes: int) -> Netlist:
    a, b, c = sizes
    return compile_netlist(nn.Sequential(nn.Linear(a, b), nn.Tanh(), nn.Linear(b, c)), (torch.zeros(1, a),))


def cnn() -> Netlist:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 2))
    return compile_netlist(model, (torch.zeros(1, 1, 6, 6),))


def test_traffic_is_what_one_counts_by_hand() -> None:
    net = mlp(4, 8, 3)
    one = {n: np.zeros(p.shape, dtype=int) for n, p in net.spec.populations.items()}
    # weights forward and backward, tanh, its slope and gate 5 × 8, output error 2 × 3
    assert traffic(net, one) == Traffic(events=32 + 24 + 24 + 5 * 8 + 2 * 3, packets=sum(
        p.size for n, p in net.spec.populations.items() if any(q.pre == n for q in net.spec.projections)))  # fmt: skip
    apart = {**one, "n0.v": np.arange(8).reshape(1, 8) % 2}
    assert traffic(net, apart).packets == traffic(net, one).packets + 4  # only the inputs reach both cores


def test_energies_are_those_of_the_table() -> None:
    found = [1e12 * energy for energy, _ in vars(loihi()).values()]
    assert found == pytest.approx([23.6, 52, 29, 1.7, 3, 4])  # picojoules, Davies et al. (2018), table 2


@pytest.mark.parametrize("units", [1024, 7])
@pytest.mark.parametrize("make", [lambda: mlp(4, 8, 3), cnn])
def test_it_counts_the_events_and_packets_that_we_count(make, units: int, capfd) -> None:
    pytest.importorskip("sanafe", reason=WHY)
    net = make()
    found = energy(net, units=units)
    assert found.traffic == traffic(net, packed(net, units))
    costs = loihi()
    assert found.energy["synapse"] == pytest.approx(found.traffic.events * costs.synapse[0])
    neurons = sum(p.size for p in net.spec.populations.values())
    assert found.energy["soma"] == pytest.approx(neurons * (costs.access[0] + costs.update[0]))


def test_the_traffic_of_784_256_10(capfd) -> None:
    pytest.importorskip("sanafe", reason=WHY)
    net = mlp(784, 256, 10)
    found = energy(net, units=512)
    assert found.traffic.events == 784 * 256 + 2 * 256 * 10 + 5 * 256 + 2 * 10
    assert found.traffic == traffic(net, packed(net, 512))


def test_a_placement_is_kept(tmp_path, capfd) -> None:
    sanafe = pytest.importorskip("sanafe", reason=WHY)
    net = mlp(4, 8, 3)
    rng = np.random.default_rng(0)
    cores = {n: rng.integers(0, 5, p.shape) for n, p in net.spec.populations.items()}
    tiles = np.array([[2, 1], [0, 0], [2, 1], [1, 0], [0, 2]])
    files = exporter("sana-fe").emit(net, tmp_path, cores=cores, tiles=tiles)
    assert [f.name for f in files] == ["Sequential_arch.yaml", "Sequential_snn.yaml"]
    assert measure(*files).traffic == traffic(net, cores)
    arch = sanafe.load_arch(str(files[0]))
    chip = sanafe.SpikingChip(arch)
    chip.load(sanafe.load_net(str(files[1]), arch))
    sent = [
        m for m in chip.sim(1, timing_model="simple", message_trace=True)["message_trace"][0] if not m["placeholder"]
    ]
    groups = {n.replace(".", "_"): n for n in cores}
    for m in sent:
        core = cores[groups[m["src_neuron_group_id"]]].ravel()[m["src_neuron_offset"]]
        assert [m["src_x"], m["src_y"]] == tiles[core].tolist()
    assert len(sent) == traffic(net, cores).packets


def test_too_many_synapses_are_refused(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(sana_fe, "LARGEST", 100)
    with pytest.raises(CompileError, match=r"projection input\.v->n0\.v: 32 of 126 synapses, where 100 fit"):
        exporter("sana-fe").emit(mlp(4, 8, 3), tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_the_tool_it_says_so(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sanafe", None)
    with pytest.raises(CompileError, match="sanafe is not installed") as e:
        energy(mlp(2, 2, 2))
    assert e.value.problems[0].hint == "pip install 'sanafe'"


def test_names_are_data(tmp_path) -> None:
    net = mlp(2, 2, 2)
    projections = tuple(msgspec.structs.replace(p, name=f"{p.name}\nx: [") for p in net.spec.projections)
    net = Netlist(msgspec.structs.replace(net.spec, projections=projections, name="a: b\n"), net.tensors)
    files = exporter("sana-fe").emit(net, tmp_path)
    assert [f.name for f in files] == ["a_b_arch.yaml", "a_b_snn.yaml"]
    assert "\nx: [" not in files[1].read_text()


def test_it_counts_the_messages_and_hops_of_a_placement(tmp_path, capfd) -> None:
    sanafe = pytest.importorskip("sanafe", reason=WHY)
    net = mlp(40, 30, 4)
    net = Netlist(msgspec.structs.replace(net.spec, plasticity=()), net.tensors)  # what learning needs is not counted
    placed = place(net, msgspec.structs.replace(chip.load("mesh"), units=chip.Figure(value=16, source="the test")))
    assert len(placed.tiles) > 4
    files = exporter("sana-fe").emit(net, tmp_path, placement=placed)
    arch = sanafe.load_arch(str(files[0]))
    spiking = sanafe.SpikingChip(arch)
    spiking.load(sanafe.load_net(str(files[1]), arch))
    found = spiking.sim(1, timing_model="simple", perf_trace=True)
    assert found["packets_sent"] == placed.messages
    assert found["perf_trace"]["hops"] == [placed.hops]
