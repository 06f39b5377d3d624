"""Small networks, and the comparisons that tests share."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Gradients = dict[str, Tensor | None]


class Residual(nn.Module):
    """Two skips, of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        h = h + F.gelu(self.b(h))
        return self.d(h + torch.sigmoid(self.c(torch.sin(h))))


class Transformer(nn.Module):
    """One block with attention, a layer norm and a feedforward part."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v))
        return self.down(F.gelu(self.up(self.norm(x))))


class ConvNet(nn.Module):
    """Convolutions, pooling, batch norm and a classifier."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.fc = nn.Conv2d(width, 2 * width, 3), nn.Linear(2 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.norm(self.conv1(x))), 2)
        return self.fc(torch.relu(self.conv2(x)).mean((2, 3)))


def mlp() -> nn.Module:
    """4-6-6-3 with tanh and softplus."""
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Softplus(), nn.Linear(6, 3))


def seeded(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """A model with the same parameters on every call."""
    torch.manual_seed(seed)
    return make().to(dtype)


Step = tuple[Any, ...]
UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "sine": torch.sin,
    "relu": torch.relu,
    "softmax": lambda a: torch.softmax(a, 1),
    "view": lambda a: a.reshape(-1, 3, 1).transpose(1, 2).squeeze(1),
    "rotate": lambda a: torch.cat([a[:, 1:], a[:, :1]], 1),
    "flip": lambda a: a.t().flip(0).t(),
    "split": lambda a: (lambda first, rest: torch.cat([rest, first * 2], 1))(*a.split([1, 2], 1)),
    "spread": lambda a: a.sum(1, keepdim=True).expand(-1, 3) / 3,
    "cumulate": lambda a: a.cumsum(1) / 3,
    "maximum": lambda a: a + a.amax(1, keepdim=True),
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - 0.5 * b,
    "multiply": lambda a, b: torch.tanh(a) * b,
    "column": lambda a, b: torch.tanh(a) * b[:, :1],
    "centre": lambda a, b: a - b.mean(0, keepdim=True),
    "attend": lambda a, b: torch.softmax(a @ b.t(), 1) @ b,
    "larger": torch.maximum,
    "choose": lambda a, b: torch.where(a > 0.1, a, b),
    "detach": lambda a, b: a.detach() * torch.sigmoid(b),
    "write": lambda a, b: a.clone().mul_(0.5).add_(b),
    "write_view": lambda a, b: _write_column(a, b),
}


def _write_column(a: Tensor, b: Tensor) -> Tensor:
    result = a * 1.0
    result[:, 0] = b[:, 1]
    result[:, 1:].add_(b[:, :1])
    return result


class Recipe(nn.Module):
    """A network from a list of steps. Every value is `[batch, 3]`; a step names its kind and the values that it reads.

    "layer" has a weight of its own, "tied" shares one with all other tied steps, "scale" is a product with a vector.
    `outputs` are positions among the values; the last value is an output too, through a layer.
    """

    def __init__(self, steps: Sequence[Step], outputs: Sequence[int] = ()) -> None:
        super().__init__()
        self.steps, self.outputs = tuple(steps), tuple(outputs)
        self.layers = nn.ModuleList(nn.Linear(3, 3) for s in steps if s[0] == "layer")
        self.tied, self.scale, self.head = nn.Linear(3, 3), nn.Parameter(torch.rand(3) + 0.5), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values, layers = [x], iter(self.layers)
        for kind, *at in self.steps:
            args = [values[i] for i in at]
            if kind in UNARY:
                values.append(UNARY[kind](args[0]))
            elif kind in BINARY:
                values.append(BINARY[kind](*args))
            elif kind == "layer":
                values.append(next(layers)(args[0]))
            else:
                values.append(self.tied(args[0]) if kind == "tied" else args[0] * self.scale)
        return (self.head(values[-1]), *(values[1 + i] * 1 for i in self.outputs))


def random_recipe(seed: int, length: int = 7) -> Recipe:
    """A random network with fan-out, skips and products."""
    draw = random.Random(seed)
    steps: list[Step] = [("layer", 0)]
    for i in range(1, length):
        kind = draw.choice(["layer", "tanh", "add", "multiply", "tied", "column"])
        steps.append((kind, i, *([draw.randint(0, i)] if kind in BINARY else [])))
    return Recipe(steps, [draw.randrange(length)])


def half_squares(output: Any, target: Any = None) -> Tensor:
    """½ Σ ‖output − target‖² over all leaves; without a target, of the output alone."""
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    targets = [torch.zeros_like(leaf) for leaf in leaves] if target is None else pytree.tree_leaves(target)
    return sum((0.5 * ((o - t) ** 2).sum() for o, t in zip(leaves, targets, strict=True)), torch.zeros(()))


def gradients(module: nn.Module, loss: Tensor) -> Gradients:
    """The gradient of each parameter that learns, by name; None where the loss does not reach."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))


def distance(found: Gradients, wanted: Gradients, floor: float = 1e-6) -> float:
    """The worst relative difference of two sets of gradients; inf where one has a gradient that the other lacks.

    A gradient that is 0 up to rounding is compared with the largest one, times `floor`.
    """
    assert found.keys() == wanted.keys()
    largest = max((float(w.norm()) for w in wanted.values() if w is not None and w.numel()), default=0.0)
    return max((_relative(found[name], wanted[name], floor * largest) for name in wanted), default=0.0)


def _relative(found: Tensor | None, wanted: Tensor | None, least: float) -> float:
    if found is None or wanted is None:
        return 0.0 if found is wanted else float("inf")
    assert found.shape == wanted.shape
    difference = float((found - wanted).norm())
    scale = max(float(wanted.norm()), least, 1e-30)
    return difference / scale if difference == difference else float("inf")


def cosine(found: Gradients, wanted: Gradients) -> float:
    """The cosine between two sets of gradients."""
    return float(F.cosine_similarity(_flat(found.values()), _flat(wanted.values()), dim=0))


def _flat(tensors: Iterable[Tensor | None]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors if t is not None])


class Busy(nn.Module):
    """Has everything that a forward pass may touch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.drop = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.3)
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(torch.tanh(self.norm(self.fc(x)))))
