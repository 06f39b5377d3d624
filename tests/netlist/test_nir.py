"""NIR says linear circuits, read back they settle to our states; all else is refused by name."""

from collections import defaultdict

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pccompile.backends.netlist import Netlist, NetlistOptions
from pccompile.backends.netlist.export import exporter
from pccompile.diagnostics import CompileError
from pccompile.pipeline import compile_netlist

nir = pytest.importorskip("nir", reason="NIR is not installed: pip install 'pccompile[nir]'")


def compute(node: object, x: torch.Tensor) -> torch.Tensor:
    """What a node without state makes of its input."""

    def tensor(name: str) -> torch.Tensor:
        return torch.as_tensor(np.asarray(getattr(node, name)), dtype=torch.float64)

    match type(node).__name__:
        case "Linear":
            return tensor("weight") @ x
        case "Affine":
            return tensor("weight") @ x + tensor("bias")
        case "Scale":
            return tensor("scale") * x
        case "Threshold":
            return (x > tensor("threshold")).double()
        case "Conv2d":
            options = [tuple(map(int, np.ravel(getattr(node, n)))) for n in ("stride", "padding", "dilation")]
            return F.conv2d(x[None], tensor("weight"), tensor("bias"), *options, int(node.groups))[0]
        case "SumPool2d":
            kernel, stride = (tuple(map(int, a)) for a in (node.kernel_size, node.stride))
            return F.avg_pool2d(x[None], kernel, stride, divisor_override=1)[0]
        case "Flatten":
            return x.flatten(int(node.start_dim))
        case "Output":
            return x
    raise AssertionError(type(node))


def run(graph: object, inputs: dict[str, np.ndarray], ticks: int, dt: float = 0.001) -> dict[str, np.ndarray]:
    """The outputs of a graph, by forward Euler from 0."""
    into = defaultdict(list)
    for pre, post in graph.edges:
        into[post].append(pre)
    state = {n: torch.zeros([int(i) for i in np.ravel(node.input_type["input"])], dtype=torch.float64)
             for n, node in graph.nodes.items() if isinstance(node, nir.LI | nir.I)}  # fmt: skip
    past = {n: [] for n, node in graph.nodes.items() if isinstance(node, nir.Delay)}
    for _ in range(ticks):
        now = {**state}

        def value(name: str, now: dict[str, torch.Tensor] = now) -> torch.Tensor:
            if name not in now:
                node = graph.nodes[name]
                if isinstance(node, nir.Input):
                    now[name] = torch.from_numpy(inputs[name].reshape([int(i) for i in node.input_type["input"]]))
                elif name in past:
                    late = int(np.round(node.delay.flat[0] / dt))
                    now[name] = past[name][-late] if len(past[name]) >= late else torch.zeros(node.delay.shape).double()
                else:
                    now[name] = compute(node, sum(map(value, into[name])))
            return now[name]

        sums = {n: sum(map(value, into[n])) for n in (*state, *past)}
        result = {n: value(n) for n, node in graph.nodes.items() if isinstance(node, nir.Output)}
        for n, s in state.items():
            node = graph.nodes[n]
            if isinstance(node, nir.LI):
                state[n] = s + dt / torch.from_numpy(node.tau) * (-s + torch.from_numpy(node.r) * sums[n])
            else:
                state[n] = s + dt * torch.from_numpy(node.r) * sums[n]
        for n, values in past.items():
            values.append(sums[n])
    return {n: r.numpy().ravel() for n, r in result.items()}


def frozen(net: Netlist) -> Netlist:
    return Netlist(msgspec.structs.replace(net.spec, plasticity=()), net.tensors)


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.AvgPool2d(2), nn.Conv2d(3, 2, 2, dilation=2), nn.Flatten(),
                         nn.Linear(8, 2))  # fmt: skip


def strided() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, groups=2), nn.Conv2d(4, 2, (2, 1), bias=False), nn.Flatten())


MODELS = {
    "dense": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)), (1, 4)),
    "samples": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3, bias=False)), (3, 4)),
    "conv": (conv, (1, 2, 8, 8)),
    "strided": (strided, (1, 2, 7, 7)),
}


def case(name: str) -> tuple[Netlist, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model, x = make().double(), torch.randn(shape, dtype=torch.float64)
    net = frozen(compile_netlist(model, (x,), options=NetlistOptions(rate=0.25)))
    return net, x, torch.randn_like(model(x))


@pytest.mark.parametrize("name", MODELS)
def test_a_file_read_back_settles_to_our_states(name: str, tmp_path) -> None:
    net, x, t = case(name)
    (path,) = exporter("nir").emit(net, tmp_path)
    graph = nir.read(path)
    assert {type(n).__name__ for n in graph.nodes.values()} >= {"Input", "Output", "LI", "Scale"}
    inputs = {n: v[0] for n, v in net.presentation(x, t).items()}
    assert set(inputs) == set(graph.inputs)
    for ticks in (3, 150):
        ours = net.simulate(x, t, ticks=ticks + 1).states
        before = net.simulate(x, t, ticks=ticks).states
        for key, got in run(graph, inputs, ticks + 1).items():
            population = key.removesuffix(".output")
            latched = before if net.spec.populations[population].unit == "integrator" else ours
            assert got == pytest.approx(latched[population].ravel(), abs=1e-12), key
    assert len(graph.outputs) == len([p for p in net.spec.populations.values() if p.role == "error"]) + 1


def test_convolutions_and_pools_stay_what_they_are() -> None:
    graph = case("conv")[0].to_nir()
    kinds = [type(n).__name__ for n in graph.nodes.values()]
    assert kinds.count("Conv2d") == 2
    assert kinds.count("SumPool2d") == 1


def test_delays_and_perfect_integrators() -> None:
    net, x, t = case("dense")
    change = {"n0.e": {"leak": 0.0, "rate": 0.3}}
    populations = {n: msgspec.structs.replace(p, **change.get(n, {})) for n, p in net.spec.populations.items()}
    projections = tuple(msgspec.structs.replace(p, delay=i % 3) for i, p in enumerate(net.spec.projections))
    net = Netlist(msgspec.structs.replace(net.spec, populations=populations, projections=projections), net.tensors)
    graph = net.to_nir()
    assert {"I", "Delay"} <= {type(n).__name__ for n in graph.nodes.values()}
    got = run(graph, {n: v[0] for n, v in net.presentation(x, t).items()}, 13)["n0.e.output"]
    assert got == pytest.approx(net.simulate(x, t, ticks=12).states["n0.e"].ravel(), abs=1e-12)
    assert np.abs(got).max() > 0.1


def test_a_step_is_a_threshold() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    net = compile_netlist(model, (torch.randn(1, 3).double(),))
    graph = net.to_nir(strict=False)
    assert any(isinstance(n, nir.Threshold) for n in graph.nodes.values())


def test_what_nir_cannot_say_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    net = compile_netlist(model, (torch.randn(1, 3).double(),))
    with pytest.raises(CompileError) as e:
        net.to_nir()
    assert [p.what for p in e.value.problems] == [
        "NIR cannot say population n1.v: the elementwise function tanh(x)",
        "NIR cannot say population n1.d: the elementwise function 1 - tanh(x)**2",
        "NIR cannot say population n1.g: product units",
        "NIR cannot say parameter 0.bias: plasticity",
        "NIR cannot say parameter 0.weight: plasticity",
        "NIR cannot say parameter 2.bias: plasticity",
        "NIR cannot say parameter 2.weight: plasticity, tied over 2 projections",
    ]
    assert len(exporter("nir").supports(net)) == 7


def test_what_is_left_out_is_listed(tmp_path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.MaxPool1d(2), nn.Tanh(), nn.Linear(2, 2)).double()
    net = compile_netlist(model, (torch.randn(1, 3).double(),))
    (path,) = exporter("nir").emit(net, tmp_path, strict=False)
    graph = nir.read(path)
    dropped = graph.metadata["dropped"].splitlines()
    assert any("select" in line for line in dropped)
    assert any("a choice of synapses" in line for line in dropped)
    assert dropped[: len(exporter("nir").supports(net))] == list(exporter("nir").supports(net))
    tanh = next(n for n, p in net.spec.populations.items() if p.function == "tanh(x)")
    assert isinstance(graph.nodes[tanh], nir.Input)


def test_the_same_file_twice(tmp_path) -> None:
    paths = [exporter("nir").emit(case("conv")[0], tmp_path / n)[0] for n in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()
