"""Gradients of weights as the two matrices that autograd multiplies for them, where nothing else is done to those."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

SUMS = {"AddmmBackward0": "_saved_mat1", "MmBackward0": "_saved_self"}
"""Products of matrices, and where they keep the first of the two."""
TRANSPOSED = "TBackward0"
GATHERED = "torch::autograd::AccumulateGrad"


class Factors:
    """The gradient of a weight that one product of matrices reads: `left` @ `right`, once backward has run.

    stand_in: a tensor of the gradient's form with no numbers in it, for whoever would multiply the same two.
    """

    def __init__(self, weight: Tensor, values: Tensor, transposed: bool, node: Any) -> None:
        self.values, self.transposed = values.detach(), transposed
        self.error: Tensor | None = None
        self.stand_in = torch.empty(weight.shape, dtype=weight.dtype)
        self._hook = node.register_prehook(self._arrived)

    def _arrived(self, errors: tuple[Tensor | None, ...]) -> None:
        self.error = errors[0]
        self._hook.remove()

    @property
    def operands(self) -> tuple[Tensor, Tensor]:
        """`left` and `right`."""
        assert self.error is not None
        return (self.error.t(), self.values) if self.transposed else (self.values.t(), self.error)

    def product(self) -> Tensor:
        """The gradient."""
        left, right = self.operands
        return left @ right

    def sketch(self) -> Tensor:
        """The gradient applied to a vector of length one: of no larger norm, and 0 hardly ever but where that is 0."""
        left, right = self.operands
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(left.shape[0], generator=generator, dtype=torch.float64).to(left.dtype)
        direction = right.t() @ (left.t() @ start)
        return left @ (right @ torch.nn.functional.normalize(direction, dim=0))

    def stands_for(self, gradient: Tensor | None) -> bool:
        """Whether `gradient` is the stand-in."""
        mine = self.stand_in
        return gradient is not None and (gradient.data_ptr(), gradient.shape, gradient.stride()) == (
            mine.data_ptr(),
            mine.shape,
            mine.stride(),
        )


def weight_factors(outputs: Sequence[Tensor], learning: Mapping[str, Tensor]) -> dict[str, Factors]:
    """The factors by key, of those that learn and that autograd reaches in one way alone: through such a product.

    They are filled in by the next backward pass, which need not be asked for the gradients themselves.
    """
    readers, uses = _readers([o.grad_fn for o in outputs if o.grad_fn is not None])
    keys = {id(p): k for k, p in learning.items()}
    found: dict[str, Factors] = {}
    for leaf in (n for n in readers if n.name() == GATHERED and id(n.variable) in keys):
        last = readers[leaf] if readers[leaf].name() == TRANSPOSED else leaf
        node = readers.get(last)
        if uses[leaf] != 1 or uses[last] != 1 or node is None or node.name() not in SUMS:
            continue
        *_, (first, _), (second, _) = node.next_functions
        plain = getattr(node, "_saved_alpha", 1) == 1 and leaf.variable.dtype in (torch.float32, torch.float64)
        if second is last and first is not None and plain:
            values = getattr(node, SUMS[node.name()])
            found[keys[id(leaf.variable)]] = Factors(leaf.variable, values, last is not leaf, node)
    return found


def _readers(roots: Sequence[Any]) -> tuple[dict[Any, Any], Counter[Any]]:
    """For each node of autograd's graph one that it gets errors from, and from how many places it gets them."""
    readers: dict[Any, Any] = {}
    uses, seen, queue = Counter[Any](roots), set(roots), list(dict.fromkeys(roots))
    while queue:
        node = queue.pop()
        for child, _ in node.next_functions:
            if child is not None:
                uses[child] += 1
                readers[child] = node
                if child not in seen:
                    seen.add(child)
                    queue.append(child)
    return readers, uses
