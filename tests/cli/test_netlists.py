"""Circuits from the command line: built, checked, transformed, simulated, priced and exported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import save_file

import pccompile
from cli.conftest import Run
from pccompile.cli.known_names import CIRCUIT_STAGES
from pccompile.diagnostics import EXIT_DONE, EXIT_MODEL, EXIT_USAGE, EXIT_VERIFY


@pytest.fixture
def built(run: Run, folder: Path) -> Path:
    result = run("model.onnx", "--backend", "netlist", "-o", "out", "--quiet")
    assert result.code == EXIT_DONE, result.err
    return folder / "out" / "model.pcnet.json"


def test_a_model_becomes_a_file_and_a_price(run: Run, folder: Path) -> None:
    result = run("model.onnx", "--backend", "netlist", "-o", "out")
    assert result.code == EXIT_DONE, result.err
    assert (folder / "out" / "model.pcnet.json").is_file()
    assert (folder / "out" / "model.safetensors").is_file()
    assert "out/model.pcnet.json" in result.out
    assert "synapses" in result.out


def test_verify_settles_and_learns(run: Run, folder: Path) -> None:
    result = run("model.onnx", "--backend", "netlist", "--verify", "--rate", "0.5")
    assert result.code == EXIT_DONE, result.err
    assert "error units of" in result.out
    assert "a learning tick of 4 parameters" in result.out
    assert not (folder / "out").exists()
    report = json.loads(run("model.onnx", "--backend", "netlist", "--verify", "--json").out)
    assert report["passed"]
    assert report["errors"]
    assert report["plasticity"]


def test_verify_fails_where_it_should(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pccompile.report.circuit.LONGEST", 3)
    result = run("model.onnx", "--backend", "netlist", "--verify", "-o", "out")
    assert result.code == EXIT_VERIFY
    assert "verification failed, nothing written" in result.err
    assert not (folder / "out").exists()


def test_simulate_prints_what_autograd_says(run: Run, built: Path) -> None:
    net = pccompile.Netlist.load(built)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(next(iter(net.spec.inputs.values())).shape, generator=draw, dtype=torch.float64)
    t = torch.randn(next(iter(net.spec.targets.values())).shape, generator=torch.Generator().manual_seed(0),
                    dtype=torch.float64)  # fmt: skip
    shown = json.loads(run(str(built), "--simulate", "--ticks", "300", "--learn", "--json").out)
    expected = net.simulate(x, t, ticks=300, learn=True)
    for name, value in shown["outputs"].items():
        np.testing.assert_allclose(value, expected.outputs[name], rtol=1e-12)
    assert set(shown["changes"]) == net.spec.plastic()
    table = run(str(built), "--simulate", "--ticks", "20", "--bits", "8:16").out
    assert "20 ticks of settling, 8-bit weights, 16-bit states" in table


def test_data_from_a_file(run: Run, built: Path, folder: Path) -> None:
    net = pccompile.Netlist.load(built)
    (name, port), (target, wanted) = next(iter(net.spec.inputs.items())), next(iter(net.spec.targets.items()))
    save_file({name: np.ones(port.shape), target: np.zeros(wanted.shape)}, folder / "data.safetensors")
    shown = json.loads(run(str(built), "--simulate", "--json", "--data", "data.safetensors").out)
    expected = net.simulate(np.ones(port.shape), np.zeros(wanted.shape))
    for output, value in shown["outputs"].items():
        np.testing.assert_allclose(value, expected.outputs[output], rtol=1e-12)
    save_file({"other": np.ones(2)}, folder / "other.safetensors")
    refused = run(str(built), "--simulate", "--data", "other.safetensors")
    assert refused.code == EXIT_MODEL
    assert "the circuit has no port other" in refused.err


@pytest.mark.parametrize("name", ["flatten", "untie", "on-off", "split-fan-in=3"])
def test_passes(run: Run, built: Path, name: str) -> None:
    """Each pass leaves what the outputs are, and the file that it makes is one that is read again."""
    before = json.loads(run(str(built), "--simulate", "--json").out)["outputs"]
    assert run(str(built), "--apply", name, "-o", "changed", "--name", "model").code == EXIT_DONE
    after = json.loads(run("changed/model.pcnet.json", "--simulate", "--json").out)["outputs"]
    for output, value in before.items():
        np.testing.assert_allclose(np.ravel(after[output]), np.ravel(value), rtol=1e-12)


def test_chip_and_report(run: Run, folder: Path) -> None:
    result = run("model.onnx", "--backend", "netlist", "--chip", "loihi1", "--report", "out/resources.html")
    assert result.code == EXIT_DONE, result.err
    assert "<svg" in (folder / "out" / "resources.html").read_text()
    assert (
        run("model.onnx", "--backend", "netlist", "--chip", "mesh", "--report", "out/resources.html").code == EXIT_DONE
    )
    (folder / "mine.html").write_text("<p>mine</p>")
    refused = run("model.onnx", "--backend", "netlist", "--chip", "loihi1", "--report", "mine.html")
    assert refused.code == EXIT_MODEL
    assert (folder / "mine.html").read_text() == "<p>mine</p>"


@pytest.mark.parametrize("form", ["nengo", "verilog"])
def test_export(run: Run, built: Path, folder: Path, form: str) -> None:
    result = run(str(built), "--export", form, "-o", "hardware")
    assert result.code == EXIT_DONE, result.err
    for line in result.out.splitlines():
        assert (folder / line).is_file()


def test_what_an_exporter_cannot_say_is_named(run: Run, built: Path, folder: Path) -> None:
    result = run(str(built), "--export", "nir", "-o", "nir")
    assert result.code == EXIT_MODEL
    assert "error: nir cannot" in result.err.lower()
    assert not (folder / "nir").exists()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["model.onnx", "--simulate"], "--simulate goes with --backend netlist"),
        (["model.onnx", "--backend", "netlist", "--algorithm", "strict"], "a circuit does fixed prediction"),
        (["model.onnx", "--backend", "netlist", "--report", "a.html"], "give --chip"),
        (["model.onnx", "--backend", "netlist", "--learn"], "--learn goes with --simulate"),
        (["model.onnx", "--backend", "netlist", "--export", "word"], "one of nengo, nir, sana-fe, verilog"),
        (["model.onnx", "--backend", "netlist", "--apply", "polish"], "--apply polish: one of flatten"),
        (["model.onnx", "--backend", "netlist", "--emit", "code"], "--emit does not go with circuits"),
        (["a.pcnet.json", "--verify"], "--verify compares with a model"),
    ],
)
def test_usage(run: Run, arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert result.code == EXIT_USAGE
    assert said in result.err


def test_what_has_no_circuit_is_named_with_its_place(run: Run, folder: Path) -> None:
    (folder / "sorted_out.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.a = nn.Linear(4, 4)\n\n    def forward(self, x):\n"
        "        return torch.linalg.inv(self.a(x))\n"
    )
    result = run("sorted_out:Net", "--backend", "netlist", "--shape", "x=4,4", "-o", "out")
    assert result.code == EXIT_MODEL
    assert "the netlist has no circuit for aten.linalg_inv_ex" in result.err
    assert "sorted_out.py:11" in result.err
    assert not (folder / "out").exists()


def test_a_file_that_is_no_netlist(run: Run, folder: Path) -> None:
    (folder / "bad.pcnet.json").write_text('{"format": "other"}')
    result = run("bad.pcnet.json", "--simulate")
    assert result.code == EXIT_MODEL
    assert "bad.pcnet.json: error:" in result.err


def test_verify_draws_weights_of_one_number_anew(run: Run, folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    for weight in model.graph.initializer:
        array = onnx.numpy_helper.to_array(weight)
        weight.CopyFrom(onnx.numpy_helper.from_array(np.full_like(array, 0.5), weight.name))
    onnx.save(model, folder / "flat.onnx")
    result = run("flat.onnx", "--backend", "netlist", "--verify", "--rate", "1")
    assert result.code == EXIT_DONE, result.out
    assert "note: drawn anew:" in result.out


def test_stages_and_their_times(run: Run) -> None:
    result = run(
        "model.onnx", "--backend", "netlist", "--print-after", "simplify", "--print-after", "netlist", "--time-passes"
    )
    assert result.code == EXIT_DONE, result.err
    assert "# after simplify\ngraph {" in result.err
    assert '"format": "pcnetlist"' in result.err
    assert [stage for stage in CIRCUIT_STAGES if f"\n{stage} " not in result.err] == []
    assert run("model.onnx", "--backend", "netlist", "--print-after", "emit").code == EXIT_USAGE
