"""Predictive coding divided between 2 and 3 processes by gloo, against one process."""

from __future__ import annotations

import functools
import gc
import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers.models import ConvNet, Residual, Transformer, mlp
from helpers.processes import in_processes
from torch import Tensor, nn

import pccompile

pytestmark = pytest.mark.slow
ALGORITHMS: dict[str, dict[str, Any]] = {
    "exact": {},
    "fixed-prediction": {"steps": 7, "rate": 0.3},
    "fixed-prediction, steps": {"steps": 7, "rate": 0.3, "lowering": "relax"},
    "fixed-prediction, exponentials": {
        "steps": 30,
        "rate": 0.3,
        "lowering": "exponentials",
        "lowering_tolerance": 1e-4,
    },
    "meta-pcn": {},
    "zil": {},
    "strict": {"rate": 0.05},
    "strict, heavy-ball": {"rate": 0.05, "stepper": "heavy-ball"},
    "strict, a rate for each vertex": {"rate": {"tanh": 0.02}, "steps": 5},
    "error-optimization": {"rate": 0.05},
    "alm": {"steps": 10},
    "nudged": {"rate": 0.05},
}


def summed(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output - target).square().sum()


def labelled(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction="sum")


class Skips(nn.Module):
    """A value of the first rank that every other reads, two results, and a batch norm for each rank."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.last = (nn.Linear(4, 4) for _ in range(4))
        self.norm1, self.norm2 = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.norm1(self.first(x)))
        g = torch.tanh(self.second(h)) + h
        g = torch.tanh(self.norm2(self.third(g * h)))
        return self.last(g + h)


class Masked(nn.Module):
    """A late layer reads what carries no gradient, of an early value; and there are draws on both sides of the cut."""

    def __init__(self, draws: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.drop = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Dropout(0.5)
        self.draws = draws

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        order = h.argsort(1)
        g = torch.tanh(self.b(self.drop(h) if self.draws else h))
        return self.c((self.drop(g) if self.draws else g).gather(1, order) * (h > 0))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


Made = tuple[nn.Module, tuple[Tensor, ...], Tensor]


def made(kind: Callable[[], nn.Module], shape: tuple[int, ...] = (6, 4)) -> Made:
    """The same model, batch and target in each process, in float64."""
    torch.manual_seed(0)
    model, x = kind().double(), torch.randn(shape, dtype=torch.float64)
    model_state = {k: b.clone() for k, b in model.named_buffers()}
    target = torch.randn_like(model(x).detach())
    model.load_state_dict(model_state, strict=False)
    return model, (x,), target


def alone(case: Made, **how: Any) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
    """The loss, the gradients and the buffers of one process."""
    model, x, target = case
    pc = pccompile.compile(model, x, **{"loss": summed, "check": False, **how})
    loss = pc.loss(*x, target=target)
    loss.backward()
    return float(loss), {k: p.grad for k, p in model.named_parameters()}, dict(model.named_buffers())


def compared(make: Callable[[], Made], more: Mapping[str, Any] | None = None, **how: Any) -> Any:
    """The largest difference of this rank from one process, and the parameters that it has."""
    warnings.simplefilter("ignore")
    loss, gradients, buffers = alone(make(), **how)
    model, x, target = make()
    layers = pccompile.layer_parallel(model, x, target, **{"loss": summed, "check": False, **how}, **(more or {}))
    found = float(layers.learn(*x, target=target))
    apart = [abs(found - loss)]
    apart += [float((p.grad - gradients[k]).abs().max()) for k, p in layers.part.named_parameters()]
    apart += [float((b.double() - buffers[k].double()).abs().max()) for k, b in layers.part.named_buffers()]
    return max(apart), [k for k, _ in layers.part.named_parameters()], [k for k, _ in layers.part.named_buffers()]


def trained() -> Any:
    """Some steps of an optimizer on each rank, and another batch size, against one process."""
    model, x, target = made(Skips)
    pc = pccompile.compile(model, x, algorithm="strict", loss=summed)
    other, _, _ = made(Skips)
    layers = pccompile.layer_parallel(other, x, target, algorithm="strict", loss=summed)
    optimizers = torch.optim.SGD(model.parameters(), 0.01), torch.optim.SGD(layers.parameters(), 0.01)
    apart = []
    for size in (6, 6, 3):
        (batch,), goal = x, target[:size]
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = pc.loss(batch[:size], target=goal)
        loss.backward()
        apart.append(abs(float(loss) - float(layers.learn(batch[:size], target=goal))))
        for optimizer in optimizers:
            optimizer.step()
    output = layers.predict(x[0])
    known = dict(model.named_parameters())
    apart += [float((p - known[k]).abs().max()) for k, p in layers.part.named_parameters()]
    return max(apart), output is not None, set(layers.part.state_dict()) <= set(model.state_dict())


def drawn() -> Any:
    """Draws on both ranks: two calls from one seed agree, and the global streams stay in step."""
    model, x, target = made(functools.partial(Masked, True), (6, 4))
    layers = pccompile.layer_parallel(model, x, target, loss=summed)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(float(layers.learn(*x, target=target)))
    return losses, float(torch.rand(()))


def forgotten() -> Any:
    """Whether what other ranks own is gone once the model is."""
    model, x, target = made(mlp)
    layers = pccompile.layer_parallel(model, x, target, loss=summed)
    own = {id(p) for p in layers.parameters()}
    kept = [(id(p) in own, weakref.ref(p)) for p in model.parameters()]
    layers.learn(*x, target=target)
    del model
    gc.collect()
    return all((ref() is not None) == mine for mine, ref in kept), len(own)


def diverging() -> Any:
    """Inference that leaves the numbers on some rank stops every one."""
    model, x, target = made(mlp)
    how = {"algorithm": "strict", "rate": 50.0, "steps": 300, "on_divergence": "raise", "loss": summed}
    pccompile.layer_parallel(model, x, target, check=False, **how).learn(*x, target=target)


def hooked() -> Any:
    """A hook on a gradient, which no autograd would call."""
    model, x, target = made(mlp)
    for p in model.parameters():
        p.register_hook(lambda g: 2 * g)
    return pccompile.layer_parallel(model, x, target, loss=summed, check=False)


def wanted() -> Any:
    """A gradient of the input."""
    model, x, target = made(mlp)
    layers = pccompile.layer_parallel(model, x, target, loss=summed, check=False)
    return layers.learn(x[0].requires_grad_(), target=target)


def without_clock(algorithm: str, settings: Mapping[str, Any], **how: Any) -> Any:
    """How far an inference without a clock ends from the fixed point of one process."""
    asynchronous = pccompile.Asynchronous(**how)
    return compared(
        lambda: made(mlp), {"asynchronous": asynchronous}, algorithm=algorithm, granularity="op", **settings
    )


CLOCKS: dict[str, dict[str, Any]] = {
    "newest": {},
    "a straggler": {"pause": {1: 0.001}},
    "half lost": {"lost": 0.5, "seed": 1},
    "a straggler, most lost": {"lost": 0.8, "seed": 2, "pause": {0: 0.001}},
}
ENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "strict": ("strict", {"steps": 1500, "rate": 0.3}),
    "fixed-prediction": ("fixed-prediction", {"steps": 2000, "rate": 0.3, "lowering": "relax"}),
    "exact": ("exact", {}),
}
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "skips": (Skips, (6, 4), {"algorithm": "strict", "rate": 0.05}),
    "masks": (functools.partial(Masked, False), (6, 4), {"algorithm": "strict"}),
    "a mask, exact": (functools.partial(Masked, False), (6, 4), {}),
    "convolutions": (ConvNet, (4, 3, 8, 8), {}),
    "a transformer": (Transformer, (2, 5, 4), {"algorithm": "strict"}),
    "a transformer, fixed-prediction": (Transformer, (2, 5, 4), {"algorithm": "fixed-prediction"}),
}


def by_path() -> Any:
    ranks = {"first": 0, "norm1": 0, "second": 0, "third": 1, "norm2": 1, "last": dist.get_world_size() - 1}
    return compared(lambda: made(Skips), {"ranks": ranks})


def cases() -> dict[str, Callable[[], Any]]:
    """What every process runs."""
    found: dict[str, Callable[[], Any]] = {"by path": by_path, "trained": trained, "drawn": drawn}
    for name, settings in ALGORITHMS.items():
        algorithm = name.partition(",")[0]
        granularity = {"granularity": "op"} if "vertex" in name else {}
        found[name] = functools.partial(
            compared, lambda: made(Residual), algorithm=algorithm, **granularity, **settings
        )
    for name, (kind, shape, how) in MODELS.items():
        found[name] = functools.partial(compared, functools.partial(made, kind, shape), **how)
    found["langevin, no noise"] = functools.partial(
        compared, lambda: made(Residual), algorithm="langevin", temperature=1e-30, steps=5, burn_in=3
    )
    found["forgotten"] = forgotten
    for end, (algorithm, settings) in ENDS.items():
        for clock, how in CLOCKS.items():
            found[f"{end}, {clock}"] = functools.partial(without_clock, algorithm, settings, **how)
    return found


def refusals() -> dict[str, Callable[[], Any]]:
    """What two processes are to refuse."""
    refuse = functools.partial(compared, lambda: made(Residual))
    return {
        "tied": lambda: compared(lambda: made(Tied), {"ranks": {"a": 0, "b": 1}}),
        "back": lambda: refuse({"ranks": {"a": 1, "b": 0, "c": 0, "d": 0}}),
        "idle": lambda: refuse({"ranks": {"": 0}}),
        "nowhere": lambda: refuse({"ranks": {"e": 0}}),
        "beyond": lambda: refuse({"ranks": {"": 0, "b": 1, "c": 2, "d": 7}}),
        "tolerance": lambda: refuse(algorithm="strict", tolerance=1e-3),
        "adaptive": lambda: refuse(algorithm="strict", stepper="adaptive"),
        "auto": lambda: refuse(algorithm="strict", rate="auto"),
        "feedback": lambda: refuse(feedback="random"),
        "late zil": lambda: refuse({"asynchronous": pccompile.Asynchronous()}, algorithm="zil"),
        "small": lambda: compared(lambda: made(lambda: nn.Linear(4, 3))),
        "diverging": diverging,
        "hooked": hooked,
        "wanted": wanted,
    }


REFUSED = {
    "tied": "a.weight is read by vertices of ranks 0 and 1",
    "back": "number the ranks in the order",
    "idle": "rank 1 owns nothing",
    "nowhere": "ranks names 'e'",
    "beyond": "ranks names rank",
    "tolerance": "leave the tolerance out",
    "adaptive": "adds up a slot of all vertices",
    "auto": "give rate and steps as numbers",
    "feedback": "feedback weights",
    "late zil": "zil is not known to end",
    "small": "fewer than",
    "diverging": "not finite on",
    "hooked": "has a hook on its gradient",
    "wanted": "requires a gradient",
}


@pytest.fixture(scope="module", params=[2, 3])
def found(request: pytest.FixtureRequest) -> dict[str, list[Any]]:
    return in_processes(request.param, cases)


@pytest.fixture(scope="module")
def refused() -> dict[str, list[Any]]:
    return in_processes(2, refusals)


@pytest.mark.parametrize("name", [*ALGORITHMS, *MODELS, "langevin, no noise", "by path"])
def test_processes_in_step_do_what_one_does(found: dict[str, list[Any]], name: str) -> None:
    ranks = found[name]
    assert all(isinstance(r, tuple) for r in ranks), ranks
    assert max(apart for apart, _, _ in ranks) < 1e-10
    owned = [path for _, paths, _ in ranks for path in paths]
    assert all(paths for _, paths, _ in ranks) or name == "zil"  # where a rank may have nothing but levels
    assert len(owned) == len(set(owned))
    buffers = [path for _, _, paths in ranks for path in paths]
    assert ("norm1.running_mean" in buffers) == (name in ("skips", "by path"))


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("end", ENDS)
def test_processes_without_a_clock_end_where_one_does(found: dict[str, list[Any]], end: str, clock: str) -> None:
    ranks = found[f"{end}, {clock}"]
    assert all(isinstance(r, tuple) for r in ranks), ranks
    assert max(apart for apart, _, _ in ranks) < (1e-12 if end == "exact" else 1e-6)


def test_training_goes_on_with_other_batches(found: dict[str, list[Any]]) -> None:
    assert max(apart for apart, _, _ in found["trained"]) < 1e-10
    assert sum(has_output for _, has_output, _ in found["trained"]) == 1
    assert all(same_keys for _, _, same_keys in found["trained"])


def test_draws_are_each_ranks_own_and_follow_the_seed(found: dict[str, list[Any]]) -> None:
    (losses, after), *others = found["drawn"]
    assert losses[0] == losses[1] != losses[2]
    assert all(other == (losses, after) for other in others)


def test_a_process_keeps_no_tensor_of_another(found: dict[str, list[Any]]) -> None:
    assert all(gone for gone, _ in found["forgotten"])
    assert sum(count for _, count in found["forgotten"]) == 6


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_divided_is_refused_by_name(refused: dict[str, list[Any]], name: str) -> None:
    for said in refused[name]:
        assert str(said).startswith("CompileError: "), said
        assert REFUSED[name] in said
