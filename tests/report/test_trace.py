"""A trace tells what inference did, and changes nothing."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pccompile


def mlp():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return model, torch.randn(6, 3).double(), torch.randn(6, 2).double()


def test_exact_has_one_step() -> None:
    model, x, y = mlp()
    pc = pccompile.compile(model, (x,))
    trace = pc.infer((x,), target=y)
    assert trace.steps == 1
    output = model(x)
    torch.testing.assert_close(trace.errors["n4"][1], y - output)
    torch.testing.assert_close(trace.values["n4"], torch.stack([y, y]))
    assert not trace.errors["n0"][0].any()
    h = model[:4](x).detach().requires_grad_()
    (0.5 * (y - model[4](h)).square().sum()).backward()
    torch.testing.assert_close(trace.errors["n3"][1], -h.grad)
    torch.testing.assert_close(trace.values["n3"][0], h.detach())
    with pytest.raises(pccompile.CompileError, match="takes no steps"):
        pc.infer((x,), target=y, steps=3)


def test_fixed_prediction_follows_its_law() -> None:
    model, x, y = mlp()
    pc = pccompile.compile(model, (x,), algorithm="fixed-prediction", steps=12)
    trace = pc.infer((x,), target=y)
    exact = pccompile.compile(model, (x,), granularity="layer").infer((x,), target=y)
    assert trace.steps == 12
    for t in range(13):
        torch.testing.assert_close(trace.errors["n3"][t], (1 - 0.9**t) * exact.errors["n3"][1])
        torch.testing.assert_close(trace.energy["n3"][t], 0.5 * trace.errors["n3"][t].square().sum())
    torch.testing.assert_close(trace.free_energy, sum(trace.energy.values()))
    assert pc.infer(x, target=y, steps=3, rate=1.0).steps == 3
    torch.testing.assert_close(pc.infer(x, target=y, steps=3, rate=1.0).errors["n1"][3], exact.errors["n1"][1])


def test_strict_descends_its_energy() -> None:
    model, x, y = mlp()
    pc = pccompile.compile(model, (x,), algorithm="strict")
    trace = pc.infer((x,), target=y, steps=40, rate=0.05)
    assert trace.steps == 40
    assert (trace.free_energy.diff() <= 1e-12).all()
    torch.testing.assert_close(trace.loss[0], 0.5 * (y - model(x)).square().sum().detach())
    torch.testing.assert_close(trace.values["n1"][0], model[:2](x).detach())
    for t in (0, 1, 40):  # errors and values of one state
        predicted = model[2:4](trace.values["n1"][t]).detach()
        torch.testing.assert_close(trace.errors["n3"][t], trace.values["n3"][t] - predicted)
        hidden = trace.energy["n1"][t] + trace.energy["n3"][t]
        loss = 0.5 * (y - model[4](trace.values["n3"][t])).square().sum().detach()
        torch.testing.assert_close(trace.free_energy[t], hidden + loss)
    other = pc.infer((x,), target=y, loss=lambda o, t: F.mse_loss(o, t, reduction="sum"), steps=5)
    torch.testing.assert_close(other.loss[0], 2 * trace.loss[0])


def test_the_strict_step_is_the_equation() -> None:
    model, x, y = mlp()
    trace = pccompile.compile(model, (x,), algorithm="strict").infer((x,), target=y, steps=2, rate=0.1)
    values = [trace.values[n][1].requires_grad_() for n in ("n1", "n3")]
    first = 0.5 * (values[0] - model[:2](x)).square().sum()
    second = 0.5 * (values[1] - model[2:4](values[0])).square().sum()
    energy = first + second + 0.5 * (y - model[4](values[1])).square().sum()
    slopes = torch.autograd.grad(energy, values)
    torch.testing.assert_close(trace.values["n1"][2], (values[0] - 0.1 * slopes[0]).detach())
    torch.testing.assert_close(trace.values["n3"][2], (values[1] - 0.1 * slopes[1]).detach())


def test_outside_loss() -> None:
    model, x, _ = mlp()
    classes = torch.tensor([0, 1, 1, 0, 1, 0])
    trace = pccompile.compile(model, (x,)).infer((x,), target=classes, loss=F.cross_entropy)
    output = model(x).detach().requires_grad_()
    F.cross_entropy(output, classes).backward()
    torch.testing.assert_close(trace.errors["n4"][1], -output.grad)
    with pytest.raises(pccompile.CompileError, match="not a single number"):
        pccompile.compile(model, (x,)).infer((x,), target=classes, loss=lambda o, t: o)


@pytest.mark.parametrize("algorithm", ["exact", "fixed-prediction", "strict"])
def test_nothing_changes(algorithm) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 2))
    x, y = torch.randn(4, 3), torch.randn(4, 2)
    pc = pccompile.compile(model, (x,), algorithm=algorithm)
    before, source, state = {k: v.clone() for k, v in pc.state_dict().items()}, pc.source, torch.random.get_rng_state()
    pc.infer((x,), target=y)
    assert all(torch.equal(v, before[k]) for k, v in pc.state_dict().items())
    assert pc.source == source
    assert torch.equal(state, torch.random.get_rng_state())


def test_branches_and_a_scalar() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3)

        def forward(self, x):
            h = torch.tanh(self.a(x))
            return h + x, h.mean()

    x = torch.randn(4, 3)
    for algorithm in ("exact", "fixed-prediction", "strict"):
        trace = pccompile.compile(Net(), (x,), algorithm=algorithm).infer(
            x, target=[torch.zeros(4, 3), torch.zeros(())]
        )
        assert trace.free_energy.isfinite().all()
        assert len(trace.energy) == len(trace.values)


def test_plot(tmp_path, monkeypatch) -> None:
    model, x, y = mlp()
    trace = pccompile.compile(model, (x,), algorithm="strict").infer((x,), target=y)
    picture = trace.plot(tmp_path / "energy.png")
    assert (tmp_path / "energy.png").read_bytes().startswith(b"\x89PNG")
    assert trace.plot()._repr_png_().startswith(b"\x89PNG")
    assert len(picture.axes[0].lines) == len(trace.energy) + 1
    assert repr(trace).startswith("Trace(strict, steps=20, rate=0.1: 3 vertices, free energy ")
    assert "n1" in str(trace)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(pccompile.CompileError, match="matplotlib is not installed"):
        trace.plot(tmp_path / "again.png")
