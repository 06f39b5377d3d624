"""A circuit on the page: its data, held against the simulator, and what the page shows of it."""

import json
from importlib.resources import files

import jsonschema
import numpy as np
import pytest
import torch
from helpers.browser import CHROMIUM, browser
from torch import nn

import pccompile


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.readout = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.readout(torch.tanh(self.hidden(x)))


@pytest.fixture(scope="module")
def circuit():
    torch.manual_seed(0)
    return pccompile.compile(Net(), (torch.randn(1, 6),), backend="netlist"), torch.randn(1, 6), torch.randn(1, 3)


@pytest.fixture(scope="module")
def found(circuit):
    net, x, y = circuit
    return pccompile.explore_circuit(net, x, y, ticks=12, chip="loihi1", title="circuit")


def test_data(circuit, found) -> None:
    net, x, y = circuit
    data = json.loads(found.json())
    jsonschema.validate(data, json.loads(files("pccompile.explorer").joinpath("exploration.schema.json").read_text()))
    assert [v["name"] for v in data["graphs"][0]] == list(net.spec.populations)
    edges = {(p, v["name"]) for v in data["graphs"][0] for p in v["parents"]}
    assert edges == {(p.pre, p.target) for p in net.spec.projections}
    run = data["runs"][0]
    for ticks in (1, 5, 12):
        states = net.simulate(x, y, ticks=ticks).states
        for name, state in states.items():
            assert run["errors"][name][ticks] == pytest.approx(float(np.sqrt(np.square(state).mean())), rel=2e-3)
        errors = (states[n] for n, p in net.spec.populations.items() if p.role == "error")
        assert run["free_energy"][ticks] == pytest.approx(
            sum(0.5 * float(np.square(e).sum()) for e in errors), rel=2e-3
        )
    placed = net.place("loihi1")
    assert len(data["chip"]["tiles"]) == len(data["chip"]["full"]) == len(placed.tiles)
    assert data["chip"]["cores"] == {n: sorted({int(c) for c in cores.flat}) for n, cores in placed.cores.items()}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")
def test_page(found, tmp_path) -> None:
    path = found.save(tmp_path / "circuit.html")
    with browser() as b:
        b.go(path, "#vertex=tanh.e&step=3")
        assert b.run("[...document.querySelectorAll('[role=tab]')].map(t => t.dataset.view)") == [
            "graph",
            "modules",
            "map",
            "chip",
        ]
        for key in "1234":
            b.press(key)
            text = b.run("document.body.innerText")
            assert "[object" not in text
            assert "3 of 12 ticks" in text
        assert b.run("document.querySelectorAll('.core.mine').length") == len(found.data["chip"]["cores"]["tanh.e"])
        assert "readout_e" not in text
        assert b.run("document.getElementById('panel').innerText").count("tanh.e") > 1
        b.click(".core rect")
        assert b.errors == []
        assert {r.partition(":")[0] for r in b.requests} <= {"file", "about", "data", "blob"}


@pytest.mark.slow
def test_command(tmp_path, circuit, capsys) -> None:
    from pccompile.cli import main

    net, _, _ = circuit
    net.save(tmp_path, "net")
    page = tmp_path / "net.html"
    assert main([str(tmp_path / "net.pcnet.json"), "--explore", str(page), "--ticks", "4"]) == 0
    assert capsys.readouterr().out.strip() == str(page)
    assert page.read_text().startswith("<!doctype html>")
    assert main([str(tmp_path / "net.pcnet.json"), "--explore", str(page), "--beside", "exact"]) == 2
