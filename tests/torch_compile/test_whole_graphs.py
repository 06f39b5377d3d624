"""A compiled model within one graph of torch.compile (fullgraph=True): one operation, with eager torch's gradients."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pccompile
from pccompile import PCModule
from pccompile.diagnostics import CompileError

pytestmark = pytest.mark.usefixtures("fresh_dynamo", "silent_logs")
Unsupported = torch._dynamo.exc.Unsupported
Change = Callable[[nn.Module], Any]


class Outputs(nn.Module):
    """Several results: of two layers, one without a gradient, an argument, a number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Any]:
        return {"a": self.a(x) * scale, "b": [self.b(x).detach(), x, 7]}


class Recurrent(nn.Module):
    """Only the states of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


class Tied(nn.Module):
    """A weight that is used twice, and one buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.second(torch.tanh(self.first(x)))


class Named(nn.Module):
    """Tensors in all places that a model has for them, under names that are no identifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("a,b|c", nn.Parameter(torch.randn(4, 4)))
        self.table = nn.ParameterDict({"x|y": torch.randn(4), "p,q": torch.randn(4)})
        self.add_module("m,|", nn.Linear(4, 4))
        self.register_buffer("u|,v", torch.randn(4))
        self.plain = torch.randn(4, dtype=torch.float64)
        self.several = [torch.randn(4, dtype=torch.float64), {"k,|": torch.randn(4, dtype=torch.float64)}]

    def forward(self, x: Tensor) -> Tensor:
        mixed = x @ getattr(self, "a,b|c") + self.table["x|y"] * self.table["p,q"]
        first, rest = self.several
        return getattr(self, "m,|")(mixed) * getattr(self, "u|,v") * self.plain + first * rest["k,|"]


class Around(nn.Module):
    """A model with a compiled part that is called twice."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.before, self.part, self.after = nn.Linear(4, 4), part, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(torch.relu(self.part(self.before(x)) + self.part(x)))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4))


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2))


def dropped() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.4), nn.Linear(8, 4))


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)


def frozen() -> nn.Module:
    model = mlp()
    model[0].weight.requires_grad_(False)
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "perceptron": (mlp, (3, 4)),
    "convolutional": (convolutional, (2, 2, 5, 5)),
    "dropout": (dropped, (3, 4)),
    "encoder": (encoder, (2, 3, 4)),
    "lstm": (Recurrent, (2, 5, 4)),
    "tied": (Tied, (3, 4)),
    "frozen": (frozen, (3, 4)),
    "outputs": (Outputs, (3, 4)),
}


def drawn(shape: tuple[int, ...], seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build().double()


def whole(pc: nn.Module, backend: str = "aot_eager") -> Any:
    return torch.compile(pc, backend=backend, fullgraph=True)


def leaves(result: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor)]


def learned(run: Callable[..., Any], model: nn.Module, x: Tensor, **kwargs: Any) -> dict[str, Any]:
    """Results, gradients of parameters and of the input, and what is left in the buffers."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(3)
    found = leaves(run(x, **kwargs))
    sum(t.square().sum() for t in found if t.requires_grad).backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    return {"results": [t.detach() for t in found], "x": x.grad, "gradients": gradients, "buffers": buffers}


def assert_as_eager(
    model: nn.Module, x: Tensor, changes: tuple[Change, ...] = (), backend: str = "aot_eager", **kwargs: Any
) -> PCModule:
    """What is learned at first, again, and after each change of the model."""
    plain = copy.deepcopy(model)
    pc = pccompile.compile(model, (x,), kwargs)
    run = whole(pc, backend)
    for change in (lambda m: None, lambda m: None, *changes):
        change(model)
        change(plain)
        expected = learned(plain, plain, x, **kwargs)
        torch.testing.assert_close(learned(run, model, x, **kwargs), expected, rtol=1e-9, atol=1e-9)
    return pc


@pytest.mark.quick(4)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_in_training_and_evaluation(name: str) -> None:
    build, shape = MODELS[name]
    assert_as_eager(made(build), drawn(shape), (lambda m: m.eval(), lambda m: m.train()))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_by_other_backends(name: str, backend: str) -> None:
    build, shape = MODELS[name]
    assert_as_eager(made(build), drawn(shape), (lambda m: m.eval(),), backend)


def swapped(model: Any) -> None:
    model[1] = nn.ReLU()


def replaced(model: Any) -> None:
    model[0].weight = nn.Parameter(drawn((5, 4), 7))


def fixed(model: Any) -> None:
    model[0].weight.requires_grad_(False)


def written(model: Any) -> None:
    with torch.no_grad():
        model[2].bias.add_(1)


def test_a_model_that_changes() -> None:
    assert_as_eager(made(mlp), drawn((3, 4)), (swapped, replaced, fixed, written))


def test_names_mean_nothing() -> None:
    def other(model: Any) -> None:
        model.plain = 2 * model.plain

    def inside(model: Any) -> None:
        model.several[0].mul_(3)
        model.several[1]["k,|"] = model.plain

    assert_as_eager(made(Named), drawn((3, 4)), (other, inside))


class Dotted(nn.Module):
    """A tensor under a name that no attribute of a module has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        setattr(self, "at.all", torch.ones(4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * getattr(self, "at.all")


def test_a_keyword_and_other_attributes() -> None:
    model = made(dropped)
    assert_as_eager(model, drawn((3, 4)), (lambda m: setattr(m[1], "p", 0.0), lambda m: setattr(m[1], "p", 0.7)))
    assert_as_eager(made(Outputs), drawn((3, 4)), scale=2.5)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_within_a_model_of_any_batch(backend: str) -> None:
    model = Around(made(lambda: nn.Sequential(Tied(), nn.BatchNorm1d(4)))).double()
    plain = copy.deepcopy(model)
    model.part = pccompile.compile(model.part, (drawn((3, 4)),))
    run = whole(model, backend)
    for n in (3, 5, 4, 7):
        found, expected = learned(run, model, drawn((n, 4), n)), learned(plain, plain, drawn((n, 4), n))
        for key in ("results", "x"):
            torch.testing.assert_close(found[key], expected[key], rtol=1e-9, atol=1e-9)
        for key in ("gradients", "buffers"):
            named = {k.replace("part.model.", "part."): v for k, v in found[key].items()}
            torch.testing.assert_close(named, expected[key], rtol=1e-9, atol=1e-9)


def test_two_calls_before_their_backward_passes() -> None:
    model, x = made(mlp), drawn((3, 4))
    plain = copy.deepcopy(model)
    run = whole(pccompile.compile(model, (x,)))
    first, second = (run(v).square().sum() for v in (x, 2 * x))
    (2 * second).backward()
    first.backward()
    (2 * plain(2 * x).square().sum() + plain(x).square().sum()).backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-9)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        first.backward()


def test_with_autocast_and_without_gradients() -> None:
    model, x = made(mlp).float(), drawn((3, 4)).float()
    plain = copy.deepcopy(model)
    run = whole(pccompile.compile(model, (x,)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert run(x).dtype == torch.bfloat16
        torch.testing.assert_close(learned(run, model, x), learned(plain, plain, x), rtol=2e-2, atol=2e-2)
    with torch.no_grad():
        result = run(x)
        assert not result.requires_grad
        torch.testing.assert_close(result, plain(x))
    torch.testing.assert_close(learned(run, model, x), learned(plain, plain, x))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pc: pickle.loads(pickle.dumps(pc))])
def test_copies_are_modules_of_their_own(copied: Callable[[PCModule], PCModule]) -> None:
    model, x = made(mlp), drawn((3, 4))
    pc = pccompile.compile(model, (x,))
    before = learned(whole(pc), model, x)
    other = copied(pc)
    with torch.no_grad():
        other.model[0].weight.mul_(2)
    plain = copy.deepcopy(other.model)
    torch.testing.assert_close(learned(whole(other), other.model, x), learned(plain, plain, x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(learned(whole(pc), model, x), before, rtol=0, atol=0)


@pytest.mark.quick(2)
@pytest.mark.parametrize("how", [{"algorithm": "zil"}, {"algorithm": "fixed-prediction", "steps": 3}, {"jit": True}])
def test_algorithms_are_those_of_the_module(how: dict[str, Any]) -> None:
    model, x = made(mlp), drawn((3, 4))
    pc = pccompile.compile(model, (x,), **how)
    expected = learned(pc, model, x)
    torch.testing.assert_close(learned(whole(pc), model, x), expected, rtol=1e-12, atol=1e-12)


def test_iterating_inference_by_a_linearised_loss() -> None:
    model, x = made(mlp), drawn((3, 4))
    pc = pccompile.compile(model, (x,), algorithm="strict", steps=5, rate=0.1, outside_loss="linearise")
    expected = learned(pc, model, x)
    torch.testing.assert_close(learned(whole(pc), model, x), expected, rtol=1e-12, atol=1e-12)


class Written(nn.Module):
    """Changes its argument."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.add_(1))


class Viewed(nn.Module):
    """Returns a view of its argument beside a result."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x), x[0]


@pytest.mark.parametrize(
    "build, why",
    [
        (Written, "it changes an argument in place"),
        (Viewed, "it returns a view of an argument"),
        (Dotted, "at.all has a dot in it"),
    ],
)
def test_what_is_no_operation_is_refused_with_why(build: Callable[[], nn.Module], why: str) -> None:
    model, x = made(build), drawn((3, 4))
    pc = pccompile.compile(model, (x.clone(),))
    with pytest.raises(Unsupported, match=why):
        whole(pc)(x.clone())
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(pc, backend="eager")(x.clone()), copy.deepcopy(model)(x.clone()))


def test_hooks_run_between_two_graphs() -> None:
    model, x = made(mlp), drawn((3, 4))
    pc = pccompile.compile(model, (x,))
    run = whole(pc)
    run(x)
    model[1].register_forward_hook(lambda module, args, result: 2 * result)
    with pytest.raises(Unsupported, match="it has hooks, which run in eager torch only"):
        run(x)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(pc, backend="eager")(x), model(x))


def test_our_backend_makes_no_piece_of_a_compiled_model() -> None:
    model, x = made(mlp), drawn((3, 4))
    pc = pccompile.compile(model, (x,))
    expected = learned(copy.deepcopy(model), model, x)["results"]
    torch.testing.assert_close(learned(torch.compile(pc, backend="pccompile"), model, x)["results"], expected)
    torch._dynamo.reset()
    with pytest.raises(Unsupported, match='the backend "pccompile" makes no piece of it; give it the model itself'):
        whole(pc, "pccompile")(x)


def test_second_derivatives_are_refused() -> None:
    model, x = made(mlp), drawn((3, 4)).requires_grad_()
    run = whole(pccompile.compile(model, (x.detach(),)), "eager")
    with pytest.raises(CompileError, match="cannot be differentiated twice"):
        torch.autograd.grad(run(x).square().sum(), x, create_graph=True)
