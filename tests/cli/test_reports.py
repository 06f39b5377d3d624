"""What the command reports of a model: spectrum, regime, locality, convergence, costs, energies, automatic rates."""

import json
from pathlib import Path

import onnx
import pytest

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def test_spectrum(run, folder) -> None:
    model = ("somemodels:Net", "--shape", "x=4,6", "--algorithm", "strict")
    shown = run(*model, "--spectrum")
    assert shown.code == 0, shown.err
    assert "λmax(H)" in shown.out
    found = json.loads(run(*model, "--spectrum", "--json").out)["spectrum"]
    assert found["rates"]["strict"] == pytest.approx(2 / found["quantities"]["λmax(H)"]["value"])
    assert "--spectrum writes nothing: leave -o out" in run(*model, "--spectrum", "-o", "out").err
    assert "does not go with circuits" in run("somemodels:Net", "--backend", "netlist", "--spectrum").err


def test_regime(run, folder) -> None:
    model = ("somemodels:Net", "--shape", "x=4,6", "--algorithm", "strict")
    found = json.loads(run(*model, "--regime", "--json").out)["regime"]
    assert [p["name"] for p in found["parameters"]] == ["a.weight", "a.bias", "b.weight", "b.bias"]
    assert "regime: q = " in run(*model, "--regime").out
    assert "takes no inference steps" in run("somemodels:Net", "--shape", "x=4,6", "--regime").err


def test_certify_locality(run, folder) -> None:
    model = ("somemodels:Net", "--shape", "x=4,6")
    shown = run(*model, "--algorithm", "strict", "--certify-locality")
    assert shown.code == 0, shown.err
    assert "locality of strict: local in space" in shown.out
    assert "messages read what learns at the other end of an edge: b.weight" in shown.out
    refused = run(*model, "--algorithm", "error-optimization", "--certify-locality", "--json")
    assert refused.code == 3
    found = json.loads(refused.out)
    assert found["local"] is False
    assert found["turns"][0]["chain"]
    assert {r["name"]: r["kind"] for r in found["plasticity"]}["b.weight"] == "two-factor"
    assert run(*model, "--algorithm", "strict", "--certify-locality", "--spectrum").code == 2


def test_convergence(run, folder) -> None:
    model = ("somemodels:Net", "--shape", "x=4,6", "--algorithm", "fixed-prediction", "--steps", "6")
    assert "convergence of fixed-prediction" in run(*model, "--convergence").out
    assert json.loads(run(*model, "--convergence", "--json").out)["convergence"]["steps"] == [1, 2, 4, 6]


def test_cost(run, folder) -> None:
    model = ("somemodels:Net", "--shape", "x=4,6", "--algorithm", "strict", "--steps", "5")
    shown = run(*model, "--cost")
    assert shown.code == 0, shown.err
    assert "cost of one step of strict, batch = 4" in shown.out
    found = json.loads(run(*model, "--cost", "--json").out)["cost"]
    assert found["backprop"]["flops"] == 2 * 4 * (2 * 6 * 6 + 2 * 6 * 3 + 6 * 3)
    assert found["own"]["depth"] > found["backprop"]["depth"]


def test_energies(run, folder) -> None:
    model = ("somemodels:Net", "--shape", "x=4,6", "--algorithm", "strict")
    shown = run(*model, "--energy", "a=student-t:4,sigma=0.5", "--emit", "pc")
    assert shown.code == 0, shown.err
    assert "energy   student-t(nu=4, sigma=0.5)" in shown.out
    assert "energy   huber(delta=0.5)" in run(*model, "--energy", "huber:0.5", "--emit", "pc").out
    assert "bernoulli" in run(*model, "--energy", "bernoulli:entropy", "--emit", "pc").out
    assert "energy   gaussian(precision=4)" in run(*model, "--precision", "a=4", "--emit", "pc").out
    assert "energy   gaussian, learned precision" in run(*model, "--precision", "a=learned:2,2", "--emit", "pc").out


@pytest.mark.parametrize(
    "options, code, message",
    [
        (("--energy", "__import__('os')"), 2, "the energies are gaussian, laplace"),
        (("--energy", "huber:__import__('os')"), 2, "is not a number"),
        (("--energy", "huber:1,2"), 2, "huber takes 1 numbers at most"),
        (("--energy", "huber:width=2"), 2, "has no parameter width"),
        (("--energy", "huber:-1"), 2, "delta of the energy huber is -1"),
        (("--energy", "huber", "--energy", "a=laplace"), 2, "is for all vertices"),
        (("--energy", "a=huber", "--energy", "a=laplace"), 2, "given twice for a"),
        (("--energy", "nobody=huber"), 1, "which is no vertex and no module"),
        (("--energy", "a=bernoulli"), 1, "falls for ever"),
        (("--precision", "a=none"), 2, "is not a number"),
        (("--precision", "-2"), 1, "is -2"),
        (("--precision", "learned"), 1, "has no prior"),
        (("--precision", "learned:1"), 2, "learned takes SHAPE,RATE or SHAPE,RATE,STEP"),
        (("--precision", "a=learned:2,0"), 2, "shape and rate are both above 0"),
        (("--precision", "2", "--backend", "netlist"), 2, "--precision does not go with circuits"),
    ],
)
def test_wrong_energies(run, options, code, message) -> None:
    algorithm = () if "netlist" in options else ("--algorithm", "strict")
    found = run("somemodels:Net", "--shape", "x=4,6", *algorithm, *options)
    assert (found.code, message in found.err) == (code, True), found.err


def test_automatic_rates(run, folder) -> None:
    model = ("somemodels:Net", "--shape", "x=4,6", "--algorithm", "strict", "--rate", "auto", "--steps", "auto")
    shown = run(*model, "-o", "out")
    assert shown.code == 0, shown.err
    assert "was chosen: half of 2 / λmax(H)" in shown.err
    text = (folder / "out" / "Net_pc.py").read_text()
    assert "was chosen: half of 2 / λmax(H)" in text
    assert "rate=0.1)" not in text
    assert "invalid number value: 'automatic'" in run(*model[:-1], "automatic").err
    assert "exact has no setting --rate" in run("somemodels:Net", "--shape", "x=4,6", "--rate", "auto").err
    assert "does not go with circuits" in run("somemodels:Net", "--backend", "netlist", "--rate", "auto").err
