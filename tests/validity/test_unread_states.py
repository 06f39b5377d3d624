"""States that a model writes and never reads do not change what inference by a loss computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.models import half_squares
from torch import Tensor, nn
from torch.nn.utils import prune, spectral_norm, weight_norm

import pccompile
from pccompile import CompileError

ALGORITHMS = ("strict", "alm", "nudged", "error-optimization", "langevin", "zil")


class Layers(nn.Module):
    """Two layers; what `first` does with the first one's parameters is said by its kind."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.last = first, nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


class Written(nn.Module):
    """A linear layer whose weight a function computes; `keep`: it is left in the module as well."""

    def __init__(self, layer: nn.Linear, weigh: Callable[[Any, Tensor], Tensor], keep: bool) -> None:
        super().__init__()
        self.raw, self.bias = nn.Parameter(layer.weight.detach().clone()), nn.Parameter(layer.bias.detach().clone())
        self.weigh, self.keep = weigh, keep
        self.register_buffer("mask", (torch.arange(layer.weight.numel()) % 3 > 0).view_as(layer.weight).double())
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, len(layer.weight), dtype=torch.float64)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weigh(self, self.raw)
        if self.keep:
            self.weight = weight
        return F.linear(x, weight, self.bias)


class Remembering(nn.Module):
    """Keeps what it has computed where people look at it: an attribute, a list, a dict; or nowhere."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner, self.outer, self.how = nn.Linear(6, 5), nn.Linear(5, 3), how
        self.seen: Any = None

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(x))
        if self.how == "attribute":
            self.seen = hidden
        elif self.how == "list":
            self.seen = [hidden, hidden.mean(0)]
        elif self.how == "dict":
            self.seen = {"err": hidden, "twice": 2 * hidden}
        result: Tensor = self.outer(hidden)
        return result


WEIGHTS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "masked": lambda m, w: w * m.mask,
    "scaled": lambda m, w: m.scale * w,
    "normed": lambda m, w: w / w.norm(dim=1, keepdim=True) * m.scale,
    "squashed": lambda m, w: torch.tanh(w),
}


def gradients(model: nn.Module, algorithm: str, loss: Callable[..., Tensor] = half_squares) -> dict[str, Tensor | None]:
    """After two calls: the second one finds what the first has left."""
    torch.manual_seed(3)
    x, y = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    pc = pccompile.compile(model, (x,), algorithm=algorithm, loss=loss)
    for _ in range(2):
        model.zero_grad()
        torch.manual_seed(4)
        pc.loss(x, target=y).backward()
    return {k: p.grad for k, p in model.named_parameters()}


def agree(found: dict[str, Tensor | None], expected: dict[str, Tensor | None]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-13, msg=lambda t, name=name: f"{name}: {t}")


def models(weigh: Callable[[Any, Tensor], Tensor]) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    plain = Layers(nn.Linear(6, 5)).double()
    kept, left = (Layers(Written(plain.first, weigh, keep)) for keep in (True, False))  # type: ignore[arg-type]
    kept.last, left.last = copy.deepcopy(plain.last), copy.deepcopy(plain.last)
    return kept, left


@pytest.mark.quick(6)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("weigh", WEIGHTS)
def test_a_weight_that_is_kept_is_inferred_as_one_that_is_not(weigh: str, algorithm: str) -> None:
    kept, left = models(WEIGHTS[weigh])
    agree(gradients(kept, algorithm), gradients(left, algorithm))
    torch.testing.assert_close(kept.first.weight, WEIGHTS[weigh](kept.first, kept.first.raw))  # type: ignore[arg-type]
    assert kept.first.weight.requires_grad


@pytest.mark.quick(3)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("how", ["attribute", "list", "dict"])
def test_what_a_model_remembers_is_no_vertex_of_its_own(how: str, algorithm: str) -> None:
    torch.manual_seed(0)
    remembering = Remembering(how).double()
    forgetting = copy.deepcopy(remembering)
    forgetting.how = "nowhere"
    agree(gradients(remembering, algorithm), gradients(forgetting, algorithm))


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "pruned": lambda m: prune.random_unstructured(m, "weight", amount=0.3),
    "pruned twice": lambda m: prune.l1_unstructured(prune.ln_structured(m, "weight", 0.4, n=2, dim=0), "weight", 0.2),
    "pruned bias": lambda m: prune.l1_unstructured(m, "bias", amount=0.4),
    "weight norm": weight_norm,
    "spectral norm": spectral_norm,
}


@pytest.mark.quick(2)
@pytest.mark.parametrize("hook", HOOKS)
def test_weights_that_hooks_make_learn_by_strict_inference(hook: str) -> None:
    """In the limit of a small loss, strict inference gives what backpropagation does, up to its own scale."""
    torch.manual_seed(0)
    model = Layers(nn.Linear(6, 5)).double()
    HOOKS[hook](model.first)
    twin = Layers(nn.Linear(6, 5)).double()
    HOOKS[hook](twin.first)
    twin.load_state_dict(model.state_dict())

    def small(output: Tensor, target: Tensor) -> Tensor:
        return 1e-7 * (output - target).square().sum()

    torch.manual_seed(3)
    x, y = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    pc = pccompile.compile(model, (x,), algorithm="strict", loss=small, steps=3000)
    pc.loss(x, target=y).backward()
    small(twin(x), y).backward()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-11, msg=lambda t, name=name: f"{name}: {t}")


@pytest.mark.parametrize("algorithm", ["strict", "nudged"])
def test_a_penalty_on_what_is_kept_is_refused_by_name(algorithm: str) -> None:
    kept, _ = models(WEIGHTS["masked"])
    x, y = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    pc = pccompile.compile(kept, (x,), algorithm=algorithm, loss=half_squares)
    loss = pc.loss(x, target=y) + kept.first.weight.square().sum()  # type: ignore[union-attr, operator]
    with pytest.raises(CompileError, match=r"a loss reads the state first\.weight"):
        loss.backward()


def test_a_state_that_is_read_still_hands_nothing_on() -> None:
    class Carrying(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.register_buffer("hidden", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.hidden = torch.tanh(self.layer(x) + self.hidden).mean(0)
            return self.layer(x + self.hidden)

    x = torch.randn(2, 3)
    with pytest.raises(CompileError, match="the state hidden hands a gradient on"):
        pccompile.compile(Carrying(), (x,), algorithm="strict", loss=half_squares)
