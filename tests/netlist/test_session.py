"""Sessions: presentations one after another, out of step, in fixed point."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pccompile.backends.netlist import Asynchrony, Netlist, NetlistOptions
from pccompile.backends.netlist.simulate.formats import fitting
from pccompile.diagnostics import CompileError
from pccompile.pipeline import compile_netlist


class Branches(nn.Module):
    """A residual block whose branch is gated by the stream itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        h = h + torch.sigmoid(self.gate(h)) * h
        return self.last(F.max_pool1d(h, 2, 1, 1)[..., :6] + h)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def compiled(model, **options):
    torch.manual_seed(0)
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    return compile_netlist(model.double(), (torch.randn(1, 4).double(),), options=NetlistOptions(**options))


def asked(net, result):
    """Each parameter's change in a step of size 1."""
    return {r.param: (result.params[r.param] - net.tensors[r.param]) / r.rate for r in net.spec.plasticity}


def squared(model, x, t):
    model.zero_grad()
    (0.5 * ((t - model(x)) ** 2).sum()).backward()
    return {n: -p.grad.numpy() for n, p in model.named_parameters()}


def batch(n):
    return torch.randn(n, 4).double(), torch.randn(n, 3).double()


@pytest.mark.parametrize("make, spread", [(mlp, 0.3), (Branches, 0.0)])
def test_losses_delays_and_uneven_rates_leave_the_gradient_exact(make, spread):
    model = make()
    net, (x, t) = compiled(model, rate=0.5), batch(3)
    out_of_step = Asynchrony(loss=0.3, delay=20, spread=spread)
    result = net.simulate(x, t, ticks=600, learn=True, asynchronous=out_of_step, seed=1)
    for name, gradient in squared(model, x, t).items():
        assert np.abs(asked(net, result)[name] - gradient).max() < 1e-6, name


def test_the_seed_decides_what_happens_out_of_step():
    net, (x, t) = compiled(mlp()), batch(1)
    runs = [net.simulate(x, t, ticks=5, asynchronous=Asynchrony(loss=0.5), seed=s).states for s in (1, 1, 2)]
    assert all(np.array_equal(runs[0][n], runs[1][n]) for n in runs[0])
    assert any(not np.array_equal(runs[0][n], runs[2][n]) for n in runs[0])


def test_without_a_message_a_receiver_keeps_the_last():
    net, (x, t) = compiled(mlp()), batch(1)
    session = net.session(asynchronous=Asynchrony(activity=1.0, loss=0.999999))
    session.present(x, t)
    session.run(ticks=3)
    assert not session.states["n1.v"].any()


@pytest.mark.parametrize("wrong", [{"loss": 1.0}, {"delay": -1}, {"activity": 0.0}, {"spread": 1.0}])
def test_asynchrony_that_cannot_settle_is_refused(wrong):
    with pytest.raises(CompileError, match="can be simulated"):
        Asynchrony(**wrong)


def test_a_session_learns_as_one_simulation_after_another():
    net, batches = compiled(mlp()), [batch(2) for _ in range(3)]
    session, one_by_one = net.session(replicas=2), net
    for x, t in batches:
        session.present(x, t)
        session.run(ticks=200, learn=True)
        one_by_one = one_by_one.learned(one_by_one.simulate(x, t, ticks=200, learn=True))
    made = session.netlist()
    assert isinstance(made, Netlist)
    for name, array in made.tensors.items():
        np.testing.assert_allclose(array, one_by_one.tensors[name], atol=1e-12)
        assert not np.array_equal(array, net.tensors[name])


def test_what_a_session_gives_is_its_own():
    net, (x, t) = compiled(mlp()), batch(1)
    session = net.session()
    session.present(x, t)
    session.run(ticks=50, learn=True)
    before, kept = session.params, session.states
    session.run(ticks=0, learn=True)
    assert not np.array_equal(before["0.weight"], session.params["0.weight"])
    session.reset()
    assert kept["n0.e"].any()
    assert not session.states["n0.e"].any()


def test_unchanged_inputs_are_not_computed_again():
    net, (x, t) = compiled(mlp()), batch(1)
    session = net.session()
    session.present(x, t)
    session.run(ticks=1)
    states = session.simulator.states
    before = states["n2.v"]
    session.run(ticks=1)
    assert states["n2.v"] is before
    session.run(ticks=1, learn=True)
    session.run(ticks=1)
    assert states["n2.v"] is not before
    expected = net.learned(net.simulate(x, t, ticks=2, learn=True)).simulate(x, ticks=1).outputs
    np.testing.assert_allclose(session.simulator.states["n2.v"].numpy(), next(iter(expected.values())), atol=0.05)


def test_the_wrong_number_of_presentations_is_refused():
    session = compiled(mlp()).session(replicas=4)
    with pytest.raises(CompileError, match="has 3 presentations, the session has 4 replicas"):
        session.present(*batch(3))
    with pytest.raises(CompileError, match="no population is called nobody"):
        session.run(trace=["nobody"])


def test_progress_is_silent_where_nobody_watches(capfd):
    compiled(mlp()).simulate(*batch(1), ticks=5, progress=True)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("make", [mlp, Branches])
def test_quantised_circuits_find_the_gradient(make):
    model = make()
    net, (x, t) = compiled(model), batch(4)
    exact, fine = net.simulate(x, t, ticks=200, learn=True), net.simulate(x, t, ticks=200, learn=True, bits=(16, 22))
    coarse = net.quantise(presentations=[net.presentation(x, t)], headroom=1.0).simulate(x, t, ticks=200, learn=True)
    for name, value in exact.states.items():
        for made, most in ((fine, 0.003), (coarse, 0.05)):
            assert np.linalg.norm(made.states[name] - value) < most * np.linalg.norm(value), name


def test_each_population_gets_the_finest_fraction_that_fits():
    net, (x, t) = compiled(mlp()), batch(8)
    made = net.quantise(presentations=[net.presentation(x, t)], margin=2.0)
    assert made.quantised
    assert not net.quantised
    result = net.simulate(x, t)
    for name in ("input.v", "n2.e"):
        assert made.spec.populations[name].bits == fitting(result.states[name], 16, 2.0)
    for name, array in made.tensors.items():
        total, fraction = made.spec.tensors[name].bits
        assert (array * 2.0**fraction == np.round(array * 2.0**fraction)).all()
        assert total == (8 if "weight" in name else 16)


def test_a_table_reaches_as_far_as_its_function_bends():
    net = compiled(nn.Sequential(nn.Linear(4, 8), nn.Softplus(), nn.Linear(8, 3), nn.Tanh()))
    made = net.quantise(presentations=[net.presentation(100 * torch.randn(8, 4).double())])
    reach = {p.function: p.table[1] for p in made.spec.populations.values() if p.table}
    assert reach["tanh(x)"] <= 3
    assert max(reach.values()) > 5


def test_stochastic_rounding_learns_where_the_nearest_integer_stalls():
    net, (x, t) = compiled(mlp(), eta=2.0**-9), batch(4)
    made = net.quantise(presentations=[net.presentation(x, t)])
    moved = {}
    for rounding in ("nearest", "stochastic"):
        session = made.session(replicas=4, rounding=rounding)
        session.present(x, t)
        session.run(ticks=100)
        for _ in range(60):
            session.run(ticks=0, learn=True)
        moved[rounding] = np.abs(session.params["0.weight"] - made.tensors["0.weight"]).max()
    assert moved["nearest"] == 0
    assert moved["stochastic"] > 0


def test_fixed_point_out_of_step_settles_near_where_it_settles_in_step():
    net, (x, t) = compiled(mlp(), rate=0.5), batch(2)
    made = net.quantise(presentations=[net.presentation(x, t)])
    expected = made.simulate(x, t, ticks=100).states
    found = made.simulate(x, t, ticks=200, asynchronous=Asynchrony(loss=0.3, delay=5), seed=1).states
    for name, population in made.spec.populations.items():
        off = np.abs(found[name] - expected[name]).max()
        assert off <= (4 * 2.0 ** -population.bits[1] if population.role in ("error", "gate") else 0), name
    with pytest.raises(CompileError, match="no spread"):
        made.simulate(x, t, asynchronous=Asynchrony(spread=0.1))
