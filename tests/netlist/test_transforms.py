"""Passes on netlists: the circuit is sound afterwards, computes and learns the same, and has the form promised."""

import itertools

import numpy as np
import pytest
import torch
from helpers.cases import built, drawn
from torch import nn
from zoo import ZOO

import pccompile
from netlist.nets import NETS, again, late, net, presented, record
from pccompile.backends.netlist import Netlist, NetlistOptions
from pccompile.backends.netlist.check import check
from pccompile.backends.netlist.synapses import fan_in
from pccompile.diagnostics import CompileError
from pccompile.pipeline import compile_netlist

PLAN = (("settle", 40), ("learn", 1), ("settle", 3), ("learn", 1))


def run(net: Netlist, given: dict[str, np.ndarray]) -> tuple[dict, dict]:
    check(net.spec, net.tensors)
    simulator = net.simulator({k: v.reshape(len(v), *net.spec.populations[k].shape) for k, v in given.items()})
    simulator.run(PLAN)
    return (
        {k: v.reshape(len(v), -1).numpy() for k, v in simulator.values().items()},
        {k: v.numpy() for k, v in simulator.parameters().items()},
    )


def assert_equal(before: Netlist, after: Netlist) -> None:
    given = presented(before)
    (states, params), (others, changed) = run(before, given), run(after, given)
    moved = {r.param for r in before.spec.plasticity}
    assert moved
    assert any(not np.array_equal(params[m], before.tensors[m]) for m in moved)
    for name, state in states.items():
        np.testing.assert_allclose(others[name], state, rtol=1e-9, atol=1e-12, err_msg=name)
    for name in moved:
        np.testing.assert_allclose(changed[name], params[name], rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("name", NETS)
def test_flattened_circuits_are_equal(name: str) -> None:
    before, after = net(name), net(name).flatten()
    assert_equal(before, after)
    selects = {n for n, p in before.spec.populations.items() if p.unit == "select"}
    assert all(len(p.shape) == 1 for p in after.spec.populations.values())
    assert all(
        p.op == ("gather" if p.target in selects else "sparse") for p in after.spec.projections if p.op != "route"
    )
    assert all(r.rule in ("copy", "sparse") for r in after.spec.plasticity)
    assert after.flatten().spec == after.spec


def test_shared_parameters_stay_shared() -> None:
    before, after = net("cnn"), net("cnn").flatten()
    (kernel,) = (p for p in after.spec.projections if p.param == "0.weight" and not p.transpose)
    elements = after.tensors[str(kernel.elements)]
    assert before.tensors["0.weight"].size == 36 == len(set(elements.tolist()))
    assert elements.size > 36
    assert after.tensors["0.weight"] is before.tensors["0.weight"]


def test_flattened_circuits_take_labels_and_give_outputs() -> None:
    before, x = net("cnn"), torch.randn(1, 2, 4, 4, dtype=torch.float64)
    results = [n.simulate(x, torch.tensor([2]), ticks=30, learn=True) for n in (before, before.flatten())]
    np.testing.assert_allclose(results[1].outputs["n4"], results[0].outputs["n4"], rtol=1e-12)
    np.testing.assert_allclose(results[1].params["0.weight"], results[0].params["0.weight"], rtol=1e-9)


def test_too_many_synapses_are_not_listed() -> None:
    refused = pytest.raises(CompileError, match=r"projection input\.v->n0\.v .* 144 synapses")
    with pccompile.budget(synapses=50), refused:
        net("cnn").flatten()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("flat", [False, True])
def test_on_off_circuits_are_equal(name: str, flat: bool) -> None:
    before = net(name).flatten() if flat else net(name)
    after = before.on_off()
    assert_equal(before, after)
    signed = {n for n, p in after.spec.populations.items() if p.role in ("error", "gate") and p.unit != "map"}
    channels = {p.target for p in after.spec.projections if p.pre in signed}
    assert all(after.spec.populations[c].function == "relu(x)" for c in channels)
    assert not signed & {n for r in after.spec.plasticity for n in (r.pre, r.post)}
    assert after.on_off().spec == after.spec


def test_channels_are_never_negative() -> None:
    after = net("attention").on_off()
    states, _ = run(after, presented(after))
    read = {p.pre for p in after.spec.projections if p.pre.endswith((".on", ".off"))}
    assert read
    assert all((states[name] >= 0).all() for name in read)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("limit", [2, 3, 7])
def test_split_circuits_are_equal(name: str, limit: int) -> None:
    before = net(name)
    widest = max((fan_in(p, before.spec, before.tensors).max(initial=0) for p in before.spec.projections
                  if before.spec.populations[p.target].unit == "select"), default=0)  # fmt: skip
    if widest > limit:
        with pytest.raises(CompileError, match=f"compares {widest} candidates; comparisons are not split to {limit}"):
            before.split_fan_in(limit)
        return
    after = before.split_fan_in(limit)
    assert_equal(before, after)
    for target, into in after.spec.into().items():
        counts = [fan_in(p, after.spec, after.tensors) for p in into]
        assert sum(counts, np.zeros(1)).max(initial=0) <= limit, target
    assert after.split_fan_in(limit).spec == after.spec


def test_a_limit_that_leaves_nothing_to_add() -> None:
    with pytest.raises(CompileError, match="a limit of 1 leaves nothing to add up"):
        net("mlp").split_fan_in(1)


def test_routes_back_are_split_too() -> None:
    x, options = torch.randn(1, 6, dtype=torch.float64), NetlistOptions(rate=0.5)
    before = compile_netlist(_Windows().double(), (x,), options=options)
    assert max(fan_in(p, before.spec, before.tensors).max() for p in before.spec.projections if p.op == "route") == 5
    assert_equal(before, before.split_fan_in(4))


def test_routes_are_split_too() -> None:
    r = record(net("ranked"))
    (route,) = (p for p in r["projections"] if p["post"] == "gather.v:in")
    r["projections"].append({**route, "name": "another", "pre": "a.v", "gain": 0.5})
    before = again(r, net("ranked"))
    after = before.split_fan_in(7)
    assert len([p for p in after.spec.projections if p.op == "route" and p.target == "gather.in.part"]) == 2
    assert_equal(before, after)


class _Windows(nn.Module):
    """Overlapping windows of few candidates, in which one unit is a candidate of many."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x)
        return y[:, torch.tensor([[0, 1], [0, 2], [0, 3], [0, 4], [0, 5]])].amax(-1)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", [n for n in NETS if n != "dropout"])
def test_feedback_of_its_own_that_starts_equal_stays_equal(name: str, flat: bool) -> None:
    before = net(name).flatten() if flat else net(name)
    after = before.untie("mirror")
    assert_equal(before, after)
    feedback = {p.param for p in after.spec.projections if p.param in after.spec.plastic()
                and after.spec.populations[p.target].role == "error"}  # fmt: skip
    assert feedback.isdisjoint(before.tensors)
    _, params = run(after, presented(after))
    for b in feedback:
        np.testing.assert_allclose(params[b], params[b.removesuffix(".feedback")], rtol=0, atol=1e-15)


def test_kolen_pollack_feedback_comes_to_match() -> None:
    before = net("mlp")
    after = before.untie("kolen-pollack", "random", decay=0.5)
    rate = after.spec.plasticity[0].rate
    simulator = after.simulator(presented(after))
    gaps = []
    for _ in range(100):
        gaps.append(simulator.params["2.weight"] - simulator.params["2.weight.feedback"])
        simulator.run([("settle", 5), ("learn", 1)])
    for first, second in itertools.pairwise(gaps):
        torch.testing.assert_close(second, (1 - rate * 0.5) * first, rtol=1e-9, atol=1e-12)
    assert gaps[0].abs().max() > 0.1
    assert gaps[-1].abs().max() < 0.05 * gaps[0].abs().max()


def test_decay_is_that_of_the_rate() -> None:
    after = net("mlp").untie("kolen-pollack", decay=0.25)
    (rule,) = (r for r in after.spec.plasticity if r.param == "2.weight")
    still = after.simulator({})  # inputs and targets 0
    still.params["2.bias"].zero_()
    still.params["0.bias"].zero_()
    still.run([("settle", 3), ("learn", 1)])
    np.testing.assert_allclose(still.params["2.weight"], after.tensors["2.weight"] * (1 - rule.rate * 0.25), rtol=1e-12)


def test_random_feedback_is_drawn_anew_alike() -> None:
    first, second, third = (net("mlp").untie("mirror", "random", seed=s) for s in (1, 1, 2))
    name = "2.weight.feedback"
    assert (first.tensors[name] == second.tensors[name]).all()
    assert (first.tensors[name] != third.tensors[name]).all()
    assert (first.tensors[name] != net("mlp").tensors["2.weight"]).all()


@pytest.mark.parametrize("options", [{"mode": "mirrored"}, {"init": "ones"}, {"decay": 0.0}, {"decay": 1.0}])
def test_what_cannot_be_untied(options: dict) -> None:
    with pytest.raises(CompileError):
        net("mlp").untie(**options)


@pytest.mark.parametrize("name", ["mlp_prelu", "scalar", "attention", "weight_norm_hooked"])
def test_passes_on_other_models(name: str) -> None:
    case = ZOO[name]
    inputs, _ = drawn(case, torch.float64)
    before = compile_netlist(built(case.build, torch.float64), inputs, options=NetlistOptions(loss="none", rate=0.5))
    for after in (before.flatten(), before.on_off(), before.untie("mirror"), before.split_fan_in(16)):
        assert_equal(before, after)


@pytest.mark.parametrize("name", ["mlp", "ranked", "layer norm"])
def test_passes_keep_delays_gains_and_leaks(name: str) -> None:
    before = late(name)
    for after in (before.flatten(), before.on_off(), before.untie("mirror"), before.split_fan_in(5)):
        assert_equal(before, after)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_flattened_circuits_are_equal_to_the_last_bit_in_fixed_point(name: str) -> None:
    given = presented(net(name))
    before = net(name).quantise(8, 16, presentations=[given])
    (states, params), (others, changed) = run(before, given), run(before.flatten(), given)
    assert all((others[k] == v).all() for k, v in states.items())
    assert all((changed[k] == v).all() for k, v in params.items())
    assert any((params[k] != before.tensors[k]).any() for k in before.spec.plastic())


def test_passes_follow_one_another() -> None:
    before = net("cnn")
    for after in (before.untie("mirror").flatten().on_off(), before.on_off().untie("mirror").split_fan_in(9).flatten(),
                  before.split_fan_in(9).on_off().flatten().untie("mirror")):  # fmt: skip
        assert_equal(before, after)
