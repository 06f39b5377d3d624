"""What docs/netlist.md says is what the simulator does: a second simulator, written from it, gives the same."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from netlist.naive import FUNCTIONS, Naive, value
from netlist.nets import NETS, again, late, net, presented, record
from pccompile.backends.netlist import Netlist
from pccompile.backends.netlist import expressions as language

DOCUMENT = Path(__file__).parents[2] / "docs" / "netlist.md"


def compared(made: Netlist, folder: Path, plan: tuple[str, ...], replicas: int = 2) -> None:
    given = presented(made, replicas)
    naive = Naive(made.save(folder, "m")[0], replicas)
    simulator = made.simulator(given)
    for name, states in given.items():
        naive.state[name] = states.reshape(replicas, -1).tolist()
    for phase in plan:
        naive.tick(phase)
        simulator.run([(phase, 1)])
        for name, states in simulator.states.items():
            np.testing.assert_allclose(naive.state[name], states.flatten(1), rtol=1e-9, atol=1e-12, err_msg=name)
        for name, param in simulator.params.items():
            np.testing.assert_allclose(naive.tensors[name], param, rtol=1e-9, atol=1e-12, err_msg=name)
    learned = {r.param for r in made.spec.plasticity}
    assert any((simulator.params[n].numpy() != made.tensors[n]).any() for n in learned)


@pytest.mark.parametrize("name", NETS)
def test_two_simulators_agree(name: str, tmp_path: Path) -> None:
    compared(net(name), tmp_path, ("settle", "settle", "settle", "learn", "settle", "learn"))


@pytest.mark.parametrize("name", ["mlp", "cnn", "ranked"])
def test_they_agree_on_single_synapses(name: str, tmp_path: Path) -> None:
    compared(net(name).flatten(), tmp_path, ("settle", "settle", "learn", "learn"))


def test_they_agree_on_decay(tmp_path: Path) -> None:
    compared(net("mlp").untie("kolen-pollack", "random"), tmp_path, ("settle", "learn", "settle", "learn"))


@pytest.mark.parametrize("name", ["mlp", "ranked"])
def test_they_agree_on_delays_gains_and_leaks(name: str, tmp_path: Path) -> None:
    compared(late(name), tmp_path, ("settle",) * 6 + ("learn", "settle"))


def test_they_agree_on_ties(tmp_path: Path) -> None:
    for name in ("ranked", "cnn"):
        made = again(record(net(name)), net(name), {k: np.round(a) for k, a in net(name).tensors.items()
                                                    if a.dtype.kind == "f"})  # fmt: skip
        path, zero = made.save(tmp_path, "m")[0], made.simulator({})
        naive = Naive(path)
        for phase in ("settle", "settle", "learn"):
            naive.tick(phase)
            zero.run([(phase, 1)])
        for select, winners in zero.winners.items():
            assert naive.winner[select][0] == winners.flatten().tolist()


POINTS = (-2.5, -1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 30.0)


@pytest.mark.parametrize("name", sorted(set(language.FUNCTIONS) - {"Piecewise"}))
def test_functions_are_what_the_document_says(name: str) -> None:
    assert name in FUNCTIONS
    assert f"`{name}" in DOCUMENT.read_text(encoding="utf-8")
    text = "polygamma(2, x)" if name == "polygamma" else f"{name}(x)"
    points = [p for p in POINTS if name not in ("lgamma", "digamma", "trigamma", "polygamma") or p > 0]
    points = [p for p in points if name not in ("ndtri", "erfinv") or 0 < p < 1]
    ours = language.function(text)(torch.tensor(points, dtype=torch.float64))
    with np.errstate(all="ignore"):
        theirs = [float(value(text, p)) for p in points]
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-13)
    assert np.isfinite(theirs).sum() >= 3


EXPRESSIONS = (
    "-x**2", "2**-x", "2**x**2/8", "1 - tanh(x)**2", "3*x/2 - -x", "1/x", "x/x", "(x > 0)*x", "x**0", "7",
    "Piecewise((x, x > 1), (-x, (x < 0) & (x > -2)), (0.5, True))", "Piecewise((1, x > 0), (2, x < -1))",
    "Piecewise((log(x), x > 0), (0, True))", "Piecewise((1, (x < -1) | (x > 1)), (0, True))",
    "(x != 0.5) + (x == 0.5)*3", "(x > 0) + (x > -1)", "-(x > 0)", "(x > 0) - (x < 0)", "x*(-8)**0.5", "1/0 + x",
    "-2**2", "Piecewise((1, 2 > 3), (2, 3 > 2), (3, True))", "3 > 2", "(x > 0)**2", "x/(x > 0)", "True + x",
    "(x <= 1)*(x >= -1)",
)  # fmt: skip


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_expressions_are_what_the_document_says(text: str) -> None:
    ours = language.function(text)(torch.tensor(POINTS, dtype=torch.float64))
    with np.errstate(all="ignore"):
        theirs = [float(value(text, p)) for p in POINTS]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_the_worked_example(tmp_path: Path) -> None:
    text = DOCUMENT.read_text(encoding="utf-8").partition("## The smallest example")[2].partition("\n## ")[0]
    (source,) = re.findall(r"```json\n(.*?)```", text, re.S)
    (tmp_path / "smallest.pcnet.json").write_text(source)
    save_file({"w0": np.array([[3.0]]), "b": np.array([-1.0]), "w1": np.array([[2.0]])},
              tmp_path / json.loads(source)["tensor_file"])  # fmt: skip
    made = Netlist.load(tmp_path / "smallest.pcnet.json")
    simulator = made.simulator(made.presentation(np.array([1.0]), np.array([8.0])))
    lines = [[c.strip() for c in ln.strip("|").split("|")] for ln in text.splitlines() if ln.startswith("|")]
    names, rows = lines[0][2:], lines[2:]
    assert len(rows) == sum(p.ticks for p in made.spec.phases) == 3
    for _, phase, *numbers in rows:
        simulator.tick(phase)
        found = [simulator.states[n] if n in simulator.states else simulator.params[n] for n in names]
        assert [f.item() for f in found] == list(map(float, numbers))


def test_every_field_of_the_schema_is_in_the_document() -> None:
    schema = json.loads((DOCUMENT.parent / "pcnetlist.schema.json").read_text(encoding="utf-8"))
    text = DOCUMENT.read_text(encoding="utf-8").partition("## The smallest example")[0]
    fields = {f for kind in schema["$defs"].values() for f in kind["properties"]}
    assert not {f for f in fields if not re.search(rf"\b{f}\b", text)}
