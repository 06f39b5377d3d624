"""What a prompt and a notebook show of a circuit."""

from __future__ import annotations

import torch
from torch import nn

import pccompile


def test_a_circuit_and_its_costs_show_themselves() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    net = pccompile.compile(model, (torch.randn(1, 3).double(),), backend="netlist")
    units = sum(p.size for p in net.spec.populations.values())
    assert repr(net).startswith(f"Netlist(Sequential: {units:,} units in {len(net.spec.populations)} populations, ")
    page = net._repr_html_()
    assert all(f"<td>{name}</td>" in page for name in net.spec.populations)
    costs = net.resources("loihi1")
    assert f"{costs.synapses:,} synapses" in repr(costs)
    assert f"<td>synapses</td><td>{costs.synapses:,}</td>" in costs._repr_html_()
    assert "cores of Loihi 1" in costs._repr_html_()
    assert "cores of" not in net.resources()._repr_html_()


def test_names_of_a_model_are_text() -> None:
    model = nn.Linear(2, 1).double()
    net = pccompile.compile(model, (torch.randn(1, 2).double(),), backend="netlist")
    spec = net.spec
    import msgspec

    hostile = msgspec.structs.replace(spec, populations={"<script>": next(iter(spec.populations.values()))})
    assert "<script>" not in pccompile.Netlist(hostile, net.tensors)._repr_html_()
