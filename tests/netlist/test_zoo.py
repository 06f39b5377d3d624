"""Every model of the zoo as a circuit: error units and plasticity are those of autograd on the model itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.cases import built, drawn
from laws.references import survival
from torch import Tensor
from torch.utils import _pytree as pytree
from zoo import TRAPS, ZOO, Case

import pccompile
from pccompile.backends.netlist import NetlistOptions
from pccompile.backends.netlist.check import check as sound
from pccompile.pipeline import Circuitry, lay_out
from pccompile.report.circuit import TOLERANCE, reference, settled, verify_circuit

SLOW = {"vgg11_bn", "resnet18", "mobilenet_v2", "resnet50", "unrolled_lstm_50", "encoder", "unet", "densenet"}
OWN_TRAPS = ("straight_through", "gradient_reversal", "function_of_two", "stop_gradient_target", "shifted_softmax",
             "tied_transposed", "duplicate_indices", "write_through_view", "batch_norm_shared", "max_pool_ties",
             "output_and_view", "output_twice", "padding_embedding", "dropout_kinds", "casts")  # fmt: skip
KEEPING = ("spectral_norm_hooked",)
"""Models whose next call reads what forward writes: refused by name, see tests/validity/test_state_refusals.py."""
PACKED = ("packed_lstm",)
"""Models whose rows are as many as data says: refused by name, see tests/gradients/test_packed_refusals.py."""
OPTIONS = NetlistOptions(loss="none", rate=1.0, eta=1.0)


def cases(table: dict[str, Case], *names: str) -> list[Any]:
    return [
        pytest.param(case, id=name, marks=[pytest.mark.slow] if case.slow or name in SLOW else [])
        for name, case in table.items()
        if not case.refused and name not in (*KEEPING, *PACKED) and (not names or name in names)
    ]


def made(case: Case, options: NetlistOptions = OPTIONS) -> tuple[Circuitry, dict[str, Tensor], dict[str, Tensor]]:
    """The circuit, the errors of its outputs under the case's loss, and the gradients of the parameters by autograd."""
    inputs, target = drawn(case, torch.float64)
    inputs = tuple(x.detach() for x in inputs)
    model = built(case.build, torch.float64)
    torch.manual_seed(7)
    circuit = lay_out(model, inputs, options=options)
    model = built(case.oracle or case.build, torch.float64)
    torch.manual_seed(7)
    flat, spec = pytree.tree_flatten(model(*inputs))
    cut = [o.detach().requires_grad_() if isinstance(o, Tensor) and o.requires_grad else o for o in flat]
    case.loss(pytree.tree_unflatten(cut, spec), target).backward()
    pairs = [
        (o, torch.zeros_like(c) if c.grad is None else c.grad) for o, c in zip(flat, cut, strict=True) if o is not c
    ]
    torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])
    clamps = dict(zip(circuit.netlist.spec.clamps, (-g for _, g in pairs), strict=True))
    gradients = {k: p.grad if p.grad is not None else torch.zeros_like(p) for k, p in model.named_parameters()}
    return circuit, clamps, gradients


def distance(found: Tensor, expected: Tensor) -> float:
    if expected.is_complex():
        expected = torch.view_as_real(expected)
    found, expected = found.reshape(-1), expected.reshape(-1)
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-3)).item() if expected.numel() else 0.0


def check(case: Case) -> None:
    circuit, clamps, gradients = made(case)
    net = circuit.netlist
    with pccompile.budget(units=10**8, synapses=10**9):
        sound(net.spec, net.tensors)
    result, _ = settled(net, circuit.examples, clamps, OPTIONS)
    _, errors, _ = reference(circuit, OPTIONS, clamps)
    units = {p.vertex: name for name, p in net.spec.populations.items() if name == f"{p.vertex}.e"}
    assert set(errors) & set(units)
    for vertex in set(errors) & set(units):
        assert distance(torch.from_numpy(result.states[units[vertex]]), errors[vertex]) < TOLERANCE, vertex
    for path, gradient in gradients.items():
        step = net.tensors[path] - result.params[path] if path in result.params else torch.zeros_like(gradient)
        assert distance(torch.as_tensor(step), gradient) < TOLERANCE, path


@pytest.mark.quick(18)
@pytest.mark.parametrize("case", cases(ZOO))
def test_error_units_and_plasticity_are_backpropagation(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", cases(TRAPS, *OWN_TRAPS))
def test_traps(case: Case) -> None:
    check(case)


@pytest.mark.quick(8)
@pytest.mark.parametrize("name", ["mlp_tanh", "siamese", "paper_rnn", "norms", "operations", "attention"])
@pytest.mark.parametrize("rate, ticks", [(0.4, 9), (0.125, 20), (1.5, 6)])
def test_errors_follow_the_binomial_law_at_any_tick(name: str, rate: float, ticks: int) -> None:
    """A unit delay (rate 1) separates the paths by length; any other rate weights them by P[Binomial(T, rate) ≥ k]."""
    circuit, clamps, _ = made(ZOO[name])
    other = made(ZOO[name], NetlistOptions(loss="none", rate=rate))[0].netlist
    net, states = circuit.netlist, []
    simulator = net.simulator(net.presentation(circuit.examples, clamps=clamps))
    for _ in range(ticks + 1):
        states.append({n: simulator.states[n].clone() for n in simulator.integrators})
        simulator.tick("settle")
    found = other.simulate(circuit.examples, clamps=clamps, ticks=ticks).states
    for n in simulator.integrators:
        law = sum(survival(ticks, rate, k) * (states[k][n] - states[k - 1][n]) for k in range(1, ticks + 1))
        assert distance(torch.from_numpy(found[n]), torch.as_tensor(law)) < TOLERANCE, n


@pytest.mark.parametrize("loss", ["squared-error", "cross-entropy"])
def test_built_in_losses(loss: Any) -> None:
    case = ZOO["paper_cnn"]
    inputs, _ = drawn(case, torch.float64)
    report = verify_circuit(built(case.build, torch.float64), inputs, options=NetlistOptions(loss=loss, rate=1.0))
    assert report.passed, str(report)
