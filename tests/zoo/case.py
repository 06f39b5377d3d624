"""What one entry of the zoo is, and the makers of inputs, targets and losses that the entries share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils import _pytree as pytree

Make = Callable[[Generator, torch.dtype], Tensor]
Loss = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A model with everything needed to differentiate it; seeding, dtype of the parameters and the draw are the test's.

    `random` says that the forward pass draws numbers, so that two runs agree only if they share the draw.
    `refused` is the reason why torch.export does not take the model, empty where it does.
    `exported` is False where torch.export by itself does not take it, and we do.
    `oracle` builds the same function, under the same parameter names, where autograd itself is wrong on `build`.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[Generator, torch.dtype], tuple[Tensor, ...]]
    loss: Loss
    target: Make
    dynamic_batch: bool = True
    slow: bool = False
    random: bool = False
    refused: str = ""
    exported: bool = True
    oracle: Callable[[], nn.Module] | None = None


def catalogue(*cases: Case) -> dict[str, Case]:
    """The cases by name; a name given twice is an error, not a case lost."""
    named = {case.name: case for case in cases}
    if len(named) != len(cases):
        raise ValueError("two cases share a name")
    return named


def draw(*makers: Make) -> Callable[[Generator, torch.dtype], tuple[Tensor, ...]]:
    """An `inputs` that draws one tensor from each maker."""
    return lambda generator, dtype: tuple(make(generator, dtype) for make in makers)


def normal(*shape: int) -> Make:
    """Standard normal numbers."""
    return lambda generator, dtype: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def positive(*shape: int) -> Make:
    """Uniform numbers between 0.5 and 1.5."""
    return lambda generator, dtype: torch.rand(shape, generator=generator, dtype=torch.float64).add(0.5).to(dtype)


def grid(*shape: int) -> Make:
    """Whole numbers from -2 to 2 as floats: full of ties and of exact zeros."""
    return lambda generator, dtype: torch.randint(-2, 3, shape, generator=generator).to(dtype)


def tokens(count: int, *shape: int) -> Make:
    """Integers below `count`: tokens, class labels or indices."""
    return lambda generator, dtype: torch.randint(count, shape, generator=generator)


def bits(*shape: int) -> Make:
    """A boolean mask."""
    return lambda generator, dtype: torch.rand(shape, generator=generator) < 0.6


def constant(*rows: Any) -> Make:
    """These very numbers, cast to the dtype."""
    return lambda generator, dtype: torch.tensor(rows, dtype=dtype)


NUMBERS = normal(4096)  # the target of `squared_error`, whatever the shape of the output


def squared_error(output: Any, target: Tensor) -> Tensor:
    """½ Σ (leaf - t)² over every floating leaf of the output, t read off the flat target one leaf after the other."""
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    total, start = target.new_zeros(()), 0
    for leaf in leaves:
        wanted = target[start : start + leaf.numel()].reshape(leaf.shape)
        total, start = total + 0.5 * ((leaf - wanted) ** 2).sum(), start + leaf.numel()
    return total


def token_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of logits `[batch, time, classes]` against labels `[batch, time]`."""
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def own_loss(output: Tensor, target: Tensor) -> Tensor:
    """The output itself: the model computes its loss."""
    return output


class OneLayer(nn.Module):
    """The body of most traps: `fc` maps `[batch, 4]` to `[batch, 5]`; `forward` is the trap."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 5)


def collect(table: dict[str, Case]) -> Callable[..., Callable[[type[nn.Module]], type[nn.Module]]]:
    """A decorator that enters a module into `table` under a name, with the inputs drawn from the makers given."""

    def trap(name: str, *makers: Make, loss: Loss = squared_error, target: Make = NUMBERS, **fields: Any) -> Any:
        def register(module: type[nn.Module]) -> type[nn.Module]:
            if name in table:
                raise ValueError(f"two traps are called {name}")
            table[name] = Case(name, module, draw(*makers), loss, target, **fields)
            return module

        return register

    return trap
