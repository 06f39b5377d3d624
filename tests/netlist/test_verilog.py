"""Exported Verilog, run by iverilog, is bit for bit the fixed-point simulator, learning included."""

import itertools
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from netlist.nets import NETS, net, presented
from pccompile.backends.netlist import Netlist
from pccompile.backends.netlist.export import exporter
from pccompile.backends.netlist.export.verilog import to_verilog
from pccompile.backends.netlist.format import Phase, Spec
from pccompile.backends.netlist.operations import learning_rule, operation
from pccompile.backends.netlist.simulate.fixed import FixedSimulator
from pccompile.backends.netlist.synapses import changes, synapses
from pccompile.backends.netlist.transforms.quantise import quantise
from pccompile.diagnostics import CompileError
from pccompile.pipeline import compile_netlist

FORMS = ("parallel", "sequential")
needs_iverilog = pytest.mark.skipif(shutil.which("iverilog") is None, reason="iverilog is not installed")
VERILOG = exporter("verilog")


def with_spec(net: Netlist, **fields: object) -> Netlist:
    return replace(net, spec=msgspec.structs.replace(net.spec, **fields))


def with_populations(net: Netlist, change: Callable[[str, object], dict]) -> Netlist:
    populations = net.spec.populations.items()
    return with_spec(net, populations={n: msgspec.structs.replace(p, **change(n, p)) for n, p in populations})


def paced(net: Netlist, table: tuple[int, int] | None = (6, 2)) -> Netlist:
    """The circuit with short phases and small tables."""
    net = with_populations(net, lambda _, p: {"table": table} if p.unit == "map" else {})
    return with_spec(net, phases=(Phase(name="settle", ticks=3), Phase(name="learn", ticks=1)))


def layers(*sizes: int, act: type[nn.Module]) -> Netlist:
    torch.manual_seed(0)
    inner = [part for pair in itertools.pairwise(sizes) for part in (nn.Linear(*pair), act())]
    return compile_netlist(nn.Sequential(*inner[:-1]).double(), (torch.randn(1, sizes[0]).double(),), name="net")


def run(folder: Path, net: Netlist, **options: object) -> tuple[str, list[str]]:
    """What the testbench says, and the lines of its trace. No warning may be given on the way."""
    files = VERILOG.emit(net, folder, **options)
    sources = [f.name for f in files if f.suffix == ".sv"]
    built = subprocess.run(["iverilog", "-g2012", "-Wall", "-o", "sim", *sources], cwd=folder, capture_output=True)
    assert (built.returncode, built.stderr.decode()) == (0, "")
    said = subprocess.run(["vvp", "-n", "sim"], cwd=folder, capture_output=True, timeout=120, check=True)
    (trace,) = folder.glob("*.trace.hex")
    return said.stdout.decode(), trace.read_text().splitlines()


def simulated(net: Netlist, presentation: dict[str, np.ndarray], ticks: int) -> list[int]:
    """Outputs, errors and parameters of each tick of the fixed-point simulator, one presentation after the other."""
    simulator = FixedSimulator(net.spec, net.tensors)
    watched = dict.fromkeys([p.population for p in net.spec.outputs.values()])
    watched |= dict.fromkeys(n for n, p in net.spec.populations.items() if p.role == "error")
    plan = [p.name for p in net.spec.phases for _ in range(p.ticks)]
    found: list[int] = []
    for t in range(ticks):
        for name, value in presentation.items():
            simulator.set(name, torch.from_numpy(value[t // len(plan) % len(value)]))
        simulator.tick(plan[t % len(plan)])
        learned = dict.fromkeys(r.param for r in net.spec.plasticity)
        for tensor in [*(simulator.states[n] for n in watched), *(simulator.params[p] for p in learned)]:
            found += tensor.to(torch.int64).reshape(-1).tolist()
    return found


def agrees(
    folder: Path, net: Netlist, ticks: int, presentation: dict[str, np.ndarray] | None = None, **options: object
) -> list[str]:
    """Run the Verilog and compare every word of every tick; return the comments of the trace."""
    presentation = presentation or presented(net)
    before = {n: a.copy() for n, a in net.tensors.items()}
    said, trace = run(folder, net, ticks=ticks, presentation=presentation, **options)
    assert said.startswith(f"PASS: {ticks} ticks")
    words = [np.array(int(w, 16), dtype=np.uint32).astype(np.int32).item() for w in trace if not w.startswith("//")]
    expected = simulated(net, presentation, ticks)
    assert words == expected
    tick = len(expected) // ticks
    assert expected[:tick] != expected[-tick:], "nothing has moved"
    assert all((net.tensors[n] == a).all() for n, a in before.items())
    return [line for line in trace if line.startswith("//")]


@needs_iverilog
def test_a_net_with_hardware_for_every_synapse(tmp_path: Path) -> None:
    agrees(tmp_path, paced(layers(4, 8, 3, act=nn.Tanh), table=None), 100)


@pytest.mark.slow
@needs_iverilog
def test_the_multiplier_that_walks_through_a_larger_net(tmp_path: Path) -> None:
    large = paced(layers(64, 16, 10, act=nn.ReLU))
    clocks = agrees(tmp_path, large, 100, form="sequential")
    text = (tmp_path / "pc_net.sv").read_text()
    said = [int(n) for n in re.findall(r"^// (\d+) clocks a tick", text, re.MULTILINE)]
    assert clocks == [f"// tick {t + 1}: {said[t % 4 == 3]} clocks" for t in range(100)]
    assert said[1] < 2 * sum(a.size for a in large.tensors.values()) + 500


@needs_iverilog
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NETS)
def test_every_kind_of_unit_and_projection(name: str, form: str, tmp_path: Path) -> None:
    agrees(tmp_path, paced(net(name)), 12, form=form)


@needs_iverilog
@pytest.mark.parametrize("form", FORMS)
def test_what_no_lowering_makes(form: str, tmp_path: Path) -> None:
    """Delays, gains that are no powers of two, decay, other formats and guard bits, no leak, rules in each tick."""
    circuit = paced(net("mlp"))
    p = msgspec.structs.replace
    projections = [
        p(q, delay=i % 3, gain=-0.3 if i % 4 == 1 else q.gain) for i, q in enumerate(circuit.spec.projections)
    ]
    rules = [
        p(r, decay=0.3, rate=-0.11, phase="settle" if r.rule == "copy" else "learn") for r in circuit.spec.plasticity
    ]
    tensors = {n: p(t, bits=(6 + i, 3 + i)) for i, (n, t) in enumerate(circuit.spec.tensors.items())}
    circuit = with_spec(circuit, projections=tuple(projections), plasticity=tuple(rules), tensors=tensors)
    odd = iter([(12, 6), (17, 12), (9, 9 - 1), (20, 5)] * 5)
    circuit = with_populations(circuit, lambda n, q: {"bits": next(odd), "leak": float(n < "b"), "guard": len(n) % 2})
    agrees(tmp_path, circuit, 30, form=form)


@needs_iverilog
@pytest.mark.parametrize("form", FORMS)
def test_products_of_late_states(form: str, tmp_path: Path) -> None:
    circuit = paced(net("attention"))
    projections = [
        msgspec.structs.replace(p, delay=i % 3, gain=-0.3) if p.op == "einsum" else p
        for i, p in enumerate(circuit.spec.projections)
    ]
    assert {p.delay for p in projections if p.op == "einsum"} == {0, 1, 2}
    agrees(tmp_path, with_spec(circuit, projections=tuple(projections)), 8, form=form)


@needs_iverilog
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name,scale", [("layer norm", 1.0), ("mlp", 3e5)])
def test_calibrated_formats(name: str, scale: float, form: str, tmp_path: Path) -> None:
    """More fractional bits than bits, and fewer than none."""
    circuit = net(name)
    shown = {n: scale * a for n, a in presented(circuit).items()}
    fixed = quantise(circuit, 8, 12, presentations=[shown], table_bits=6)
    agrees(tmp_path, with_spec(fixed, phases=paced(circuit).spec.phases), 8, shown, form=form)
    fractions = [q.bits[1] for q in fixed.spec.populations.values()]
    assert (min(fractions) < 0) if scale > 1 else (max(fractions) >= 12)


@needs_iverilog
@pytest.mark.parametrize("form", FORMS)
def test_states_and_parameters_saturate(form: str, tmp_path: Path) -> None:
    circuit = with_populations(paced(net("mlp")), lambda _, p: {"bits": (8, 6)})
    rules = [msgspec.structs.replace(r, rate=64.0) for r in circuit.spec.plasticity]
    agrees(tmp_path, with_spec(circuit, plasticity=tuple(rules)), 24, form=form)
    words = set((tmp_path / "pc_mlp.expected.hex").read_text().split())
    assert {"0000007f", "ffffff80"} <= words


@needs_iverilog
@pytest.mark.parametrize("form", FORMS)
def test_names_are_data(form: str, tmp_path: Path) -> None:
    hostile = [
        "module",
        "a b",
        "a.b",
        "a_b",
        'é\n`include "/etc/passwd"',
        "*/ endmodule",
        "1",
        "\\",
        "x" * 300,
        "y" * 300,
    ]
    names = dict(zip(net("mlp").spec.populations, hostile, strict=False))
    names |= {n: f"{n}\r$finish;//" for n in ("0.weight", "2.bias")}
    text = msgspec.json.encode(paced(net("mlp")).spec).decode()
    for old, new in names.items():
        text = re.sub(
            rf'"{re.escape(old)}(:\w+)?"', lambda m, new=new: msgspec.json.encode(new + (m[1] or "")).decode(), text
        )
    spec = msgspec.structs.replace(msgspec.json.decode(text, type=Spec), name="$(reboot)\n*/")
    circuit = Netlist(spec, {names.get(n, n): a for n, a in net("mlp").tensors.items()}, {})
    agrees(tmp_path, circuit, 8, form=form)
    sources = "".join(f.read_text() for f in tmp_path.glob("*.sv"))
    assert "$finish;//" not in sources
    assert "`include" not in sources


@needs_iverilog
@pytest.mark.parametrize("form", FORMS)
def test_the_testbench_can_fail(form: str, tmp_path: Path) -> None:
    VERILOG.emit(paced(net("mlp")), tmp_path, form=form, ticks=8)
    expected = tmp_path / "pc_mlp.expected.hex"
    words = expected.read_text().splitlines()
    words[-3] = f"{int(words[-3], 16) ^ 1:08x}"
    expected.write_text("\n".join(words))
    subprocess.run(["iverilog", "-g2012", "-o", "sim", "pc_mlp.sv", "pc_mlp_tb.sv"], cwd=tmp_path, check=True)
    said = subprocess.run(["vvp", "-n", "sim"], cwd=tmp_path, capture_output=True, check=True).stdout.decode()
    assert f"FAIL: 1 of {len(words)} words differ" in said


def test_the_smallest_circuit(golden: Callable[..., None]) -> None:
    circuit = paced(net("mlp"))
    golden(to_verilog(circuit, form="parallel")["pc_mlp.sv"], "_parallel.sv")
    golden(to_verilog(circuit, form="sequential")["pc_mlp.sv"], "_sequential.sv")


@pytest.mark.parametrize("name", NETS)
def test_scalar_synapses_are_the_projections(name: str) -> None:
    circuit, rng = net(name), np.random.default_rng(0)
    spec, tensors = circuit.spec, circuit.tensors

    def random(population: str) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal((1, *spec.populations[population].shape)))

    for p in spec.projections:
        x, found = random(p.pre), synapses(p, spec, tensors)
        operand = None if p.param is None else torch.from_numpy(tensors[p.param])
        carried = x.numpy().reshape(-1)[found.pre]
        if p.with_ is not None:
            operand = random(p.with_)
        if found.other is not None:
            assert operand is not None
            carried = carried * operand.numpy().reshape(-1)[found.other]
        if p.by is not None:
            slots = tensors[str(p.index)].shape[1]
            operand = torch.from_numpy(rng.integers(0, slots, (1, *spec.populations[p.by].shape)))
            carried = carried * (operand.numpy().reshape(-1)[found.winner] == found.slot)
        total = np.zeros(spec.populations[p.target].size)
        np.add.at(total, found.post, carried)
        sent = operation(p, spec.populations, tensors).message()(x, operand)
        np.testing.assert_allclose(total, sent.numpy().reshape(-1), atol=1e-12)
    for rule in spec.plasticity:
        post, pre = random(rule.post), None if rule.pre is None else random(rule.pre)
        found, total = changes(rule, spec, tensors), np.zeros(tensors[rule.param].size)
        carried = post.numpy().reshape(-1)[found.pre]
        if pre is not None:
            carried = carried * pre.numpy().reshape(-1)[found.other]
        np.add.at(total, found.post, carried)
        room = torch.zeros(tensors[rule.param].shape).double()
        products = learning_rule(rule, spec, tensors).change()(pre, post, room)
        np.testing.assert_allclose(total, products.numpy().reshape(-1), atol=1e-12)


def test_large_circuits_share_a_multiplier() -> None:
    assert "one multiplier" in to_verilog(paced(layers(64, 32, 10, act=nn.ReLU)), ticks=1)["pc_net.sv"]
    assert "one tick a clock" in to_verilog(paced(layers(20, 10, act=nn.ReLU)), ticks=1)["pc_net.sv"]


def test_refusals(tmp_path: Path) -> None:
    circuit = with_populations(net("mlp"), lambda n, p: {"rate": 0.3} if n == "n0.e" else {})
    assert VERILOG.supports(circuit) == ("integrator n0.e has the rate 0.3, which fixed point cannot shift by",)
    with pytest.raises(CompileError, match=r"no Verilog of mlp: integrator n0\.e has the rate"):
        VERILOG.emit(circuit, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(CompileError, match="no population is called nobody"):
        VERILOG.emit(net("mlp"), tmp_path / "out", probes=["nobody"])
    rules = [msgspec.structs.replace(r, phase=p) for r in net("mlp").spec.plasticity for p in ("settle", "learn")]
    (reason, *_) = VERILOG.supports(with_spec(net("mlp"), plasticity=tuple(rules)), "sequential")
    assert reason.startswith("parameter 0.bias changes in several phases")
    assert VERILOG.supports(net("mlp"), "tree") == ("there is no tree form",)
    assert VERILOG.supports(layers(300, 100, act=nn.ReLU), "parallel")[0].endswith("take the sequential one")


def test_another_circuit_than_pccompiles_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "pc_mlp.sv").write_text("module pc_mlp; endmodule")
    with pytest.raises(CompileError, match="was not generated by pccompile"):
        VERILOG.emit(net("mlp"), tmp_path, ticks=1)
