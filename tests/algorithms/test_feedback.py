"""Messages through other weights than predictions, against networks written by hand, and what Kolen-Pollack does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pccompile
from algorithms.feedback_nets import FORWARD, Dropped, Linear, Net, feedback_of
from algorithms.nets import NETS, Gradients, Problem, apart, linear, problem, squared

KINDS = ("random", "sign", "kolen-pollack")
QUICK = {("chain", "random", True), ("dag", "sign", True), ("dag", "kolen-pollack", False)}
QUICK |= {(net, "random", True) for net in ("cnn", "lstm")} | {("gated", "transpose", True)}
CASES = [
    pytest.param(net, kind, dropped, marks=() if (net, kind, dropped) in QUICK else slow)
    for slow in [pytest.mark.slow]
    for net in FORWARD
    for kind in (*KINDS, "transpose")
    for dropped in (False, True)
    if (kind, dropped) != ("transpose", False)
]


def gradients(pc: pccompile.PCModule, p: Problem) -> Gradients:
    """The gradients of the network's own parameters."""
    pc.loss(p.x, target=p.target).backward()
    model: nn.Module = pc.__dict__["model"]
    return {n: q.grad for n, q in model.named_parameters() if q.grad is not None}


@pytest.mark.parametrize("name, kind, dropped", CASES)
def test_messages_read_other_weights(name: str, kind: str, dropped: bool) -> None:
    p = problem(name)
    pc = p.compile("exact", feedback=kind, derivatives="dropped" if dropped else "exact")
    expected = Net(p, feedback_of(pc, kind), dropped).gradients(FORWARD[name])
    assert apart(gradients(pc, p), expected) < 1e-10
    assert apart(expected, p.backprop) > 1e-2


def test_dropped_derivatives_are_none_where_nothing_is_curved() -> None:
    p = Problem(linear, (4, 5))
    assert apart(p.gradients("exact", derivatives="dropped"), p.backprop) == 0


@pytest.mark.parametrize("granularity", [pytest.param("op", marks=pytest.mark.slow), "layer"])
@pytest.mark.parametrize(
    "algorithm, settings",
    [
        ("fixed-prediction", {"rate": 1.0, "steps": 12}),
        pytest.param("fixed-prediction", {"rate": 1.0, "steps": 12, "lowering": "relax"}, marks=pytest.mark.slow),
        pytest.param("meta-pcn", {"rate": 1.0, "steps": 12}, marks=pytest.mark.slow),
        ("zil", {}),
    ],
)
def test_what_equals_exact_does_so_through_other_weights(
    algorithm: str, settings: dict[str, Any], granularity: str
) -> None:
    p = problem("gated")
    how = {"feedback": "random", "derivatives": "dropped"}
    first = gradients(_seeded(p, "exact", **how), p)
    assert apart(gradients(_seeded(p, algorithm, granularity=granularity, **how, **settings), p), first) < 1e-10


def _seeded(p: Problem, algorithm: str, **how: Any) -> pccompile.PCModule:
    torch.manual_seed(3)
    return p.compile(algorithm, **how)


@pytest.mark.parametrize("kind, dropped", [("random", True), ("sign", False), ("kolen-pollack", True)])
def test_strict_inference_is_a_loop_by_hand(kind: str, dropped: bool) -> None:
    p = problem("chain")
    steps, rate = 7, 0.1
    pc = p.compile("strict", steps=steps, rate=rate, feedback=kind, derivatives="dropped" if dropped else "exact")
    own = dict(p.model.named_parameters())
    back = feedback_of(pc, kind)

    def layer(v: Tensor, path: str) -> Tensor:
        weight = own[f"{path}.weight"]
        h = Linear.apply(v, weight, own[f"{path}.bias"], back.get(f"{path}.weight", weight.detach()))  # type: ignore[no-untyped-call]
        return Dropped.apply(h, torch.tanh) if dropped else torch.tanh(h)  # type: ignore[no-any-return,no-untyped-call]

    def free(a: Tensor, b: Tensor) -> Tensor:
        out = Linear.apply(b, own["4.weight"], own["4.bias"], back["4.weight"])  # type: ignore[no-untyped-call]
        energy = 0.5 * ((a - layer(p.x, "0")).square().sum() + (b - layer(a, "2")).square().sum())
        return energy + squared(out, p.target)  # type: ignore[no-any-return]

    a = layer(p.x, "0").detach()
    b = layer(a, "2").detach()
    for _ in range(steps):
        a, b = a.requires_grad_(), b.requires_grad_()
        down = torch.autograd.grad(free(a, b), (a, b))
        a, b = (v.detach() - rate * g for v, g in zip((a, b), down, strict=True))
    free(a, b).backward()
    assert apart(gradients(pc, p), {n: q.grad for n, q in own.items() if q.grad is not None}) < 1e-10


@pytest.mark.parametrize(
    "algorithm, settings",
    [
        ("alm", {"penalty": 1.0, "dual_rate": 0.0}),
        pytest.param("nudged", {"nudge": 1.0, "phases": "positive"}, marks=pytest.mark.slow),
        pytest.param("langevin", {"temperature": 0.0, "burn_in": 8, "steps": 1}, marks=pytest.mark.slow),
    ],
)
def test_what_equals_strict_does_so_through_other_weights(algorithm: str, settings: dict[str, Any]) -> None:
    p, how = problem("gated"), {"feedback": "random", "derivatives": "dropped", "rate": 0.1}
    steps = 9 if algorithm == "langevin" else 6
    strict = gradients(_seeded(p, "strict", steps=steps, **how), p)
    assert apart(gradients(_seeded(p, algorithm, **{"steps": steps, **settings}, **how), p), strict) < 1e-9


def test_error_optimization_ends_where_strict_does() -> None:
    p, how = problem("chain"), {"feedback": "random", "steps": 600, "rate": 0.2}
    strict, moved = (gradients(_seeded(p, a, **how), p) for a in ("strict", "error-optimization"))
    assert apart(moved, strict) < 1e-6


@pytest.mark.parametrize("algorithm", ["exact", pytest.param("strict", marks=pytest.mark.slow), "incremental"])
def test_kolen_pollack_stays_what_it_begins_with(algorithm: str) -> None:
    """B = W at first, and the same rule for both: the same as with transposes for ever."""
    p = problem("gated")
    trained = []
    for kind in ("transpose", "kolen-pollack"):
        pc = p.compile(algorithm, feedback=kind)
        _mirror(pc)
        optimizer = torch.optim.Adam(pc.parameters(), 1e-2, weight_decay=1e-3)
        for _ in range(5):
            pc.train_step((p.x,), p.target, optimizer)
        trained.append(dict(pc.__dict__["model"].named_parameters()))
    assert all(torch.equal(q, trained[0][n]) for n, q in trained[1].items())
    assert not torch.equal(trained[0]["b.weight"], p.model.get_parameter("b.weight"))


def _mirror(pc: pccompile.PCModule) -> None:
    """Let feedback weights be what they stand for."""
    with torch.no_grad():
        for path, t in pc.state_dict(keep_vars=True).items():
            if path.startswith("feedback."):
                t.copy_(pc.get_parameter(path.removeprefix("feedback.")))


@pytest.mark.parametrize("name", ["gated", *(pytest.param(n, marks=pytest.mark.slow) for n in NETS if n != "gated")])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_kolen_pollack_contracts_by_weight_decay(name: str, momentum: float) -> None:
    p = problem(name)
    pc = p.compile("strict", steps=4, feedback="kolen-pollack")
    rate, decay = 0.05, 0.4
    optimizer = torch.optim.SGD(pc.parameters(), rate, weight_decay=decay, momentum=momentum)
    paths = [k.removeprefix("feedback.") for k in pc.state_dict() if k.startswith("feedback.")]
    distance, velocity = {k: _distance(pc, k) for k in paths}, dict.fromkeys(paths, torch.zeros(()))
    for _ in range(3):
        pc.train_step((p.x,), p.target, optimizer)
        for k in paths:
            velocity[k] = momentum * velocity[k] + decay * distance[k]
            distance[k] = distance[k] - rate * velocity[k]
            assert torch.allclose(_distance(pc, k), distance[k], rtol=1e-10, atol=1e-13)
            if not momentum and distance[k].dim() > 1:  # gains of norms begin as copies
                assert distance[k].abs().max() > 0


def _distance(pc: pccompile.PCModule, path: str) -> Tensor:
    return (pc.get_parameter(path) - pc.get_parameter(f"feedback.{path}")).detach().clone()


@pytest.mark.parametrize("name", ["gated", *(pytest.param(n, marks=pytest.mark.slow) for n in ("dag", "cnn"))])
def test_no_weight_is_transported(name: str) -> None:
    p = problem(name)
    assert p.compile("exact").locality().found.transported
    for kind in ("random", "kolen-pollack"):
        assert not p.compile("exact", feedback=kind).locality().found.transported
    assert p.compile("exact", feedback="sign").locality().found.transported


def test_random_feedback_learns() -> None:
    """Feedback alignment: the weights turn until messages through B point downhill."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 2))
    x = torch.randn(64, 10)
    y = torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin()], 1)
    pc = pccompile.compile(model, (x,), loss=squared, feedback="random")
    start = copy.deepcopy(pc.state_dict())
    optimizer = torch.optim.Adam(pc.parameters(), 1e-2)
    losses = [float(pc.train_step((x,), y, optimizer)) for _ in range(200)]
    assert losses[-1] < 0.2 * losses[0]
    kept = [k for k in start if k.startswith("feedback.")]
    assert kept
    assert all(torch.equal(start[k], pc.state_dict()[k]) for k in kept)
    assert F.mse_loss(pc(x), y) < 1
