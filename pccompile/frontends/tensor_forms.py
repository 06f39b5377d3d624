"""Forms of tensors, noticed when they change behind a tensor's back, as `half()` and `.data =` change them.

One comparison in C, which torch's own compiler guards its programs by, says for all tensors that nothing changed. It
also looks at what is no form (whether a tensor learns, autocast, inference mode), so that what it denies is compared
one by one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

try:
    from torch._C._dynamo.guards import TensorGuards
except ImportError:  # no public name: a torch without it compares one by one, as what it denies is anyway
    TensorGuards = None  # type: ignore[assignment, misc]

CONTEXTS = 3
"""For how many surroundings (autocast, inference mode, a set of tensors that learn) a comparison in C is kept."""

_form = operator.attrgetter("dtype", "shape", "device", "layout")


def strides(tensor: Tensor) -> tuple[int, ...] | None:
    """The strides of a tensor that has any."""
    return tensor.stride() if tensor.layout == torch.strided and not tensor.is_nested else None


def form(tensor: Tensor) -> tuple[Any, ...]:
    """Type, sizes, device, layout and strides of a tensor."""
    return *_form(tensor), strides(tensor)


class TensorForms:
    """Tensors, and the forms that they had when they were added.

    plain: those that C can compare. surroundings: the comparison in C by which all of them held last. It does so only
    where each tensor learns or not as it did when that was made, and where autocast and the like are as they were. None
    where they were compared one by one.
    """

    def __init__(self) -> None:
        self._tensors: dict[int, Tensor] = {}
        self._forms: dict[int, tuple[Any, ...]] = {}
        self._learning: dict[int, bool] = {}
        self.plain: tuple[Tensor, ...] = ()
        self._checks: tuple[Callable[..., bool], ...] = ()
        self.surroundings: Callable[..., bool] | None = None

    def add(self, tensor: Tensor, learning: bool) -> None:
        """Compare this tensor too; with `learning`, also whether it takes a gradient."""
        if learning:
            self._learning[id(tensor)] = tensor.requires_grad
        if id(tensor) in self._tensors:
            return
        self._tensors[id(tensor)], self._forms[id(tensor)] = tensor, form(tensor)
        self._checks, self.surroundings = (), None
        if type(tensor) in (Tensor, nn.Parameter) and strides(tensor) is not None:
            self.plain += (tensor,)

    def hold(self) -> bool:
        """Whether all have the forms that they had."""
        for check in self._checks:
            if check(*self.plain):
                if len(self.plain) == len(self._tensors):
                    self.surroundings = check
                    return True
                return self._same()
        self.surroundings = None
        if not self._same():
            return False
        if self.plain and TensorGuards is not None:
            self._checks = (compared_in_c(self.plain), *self._checks[: CONTEXTS - 1])
        return True

    def _same(self) -> bool:
        tensors = self._tensors
        learning = all(tensors[k].requires_grad is flag for k, flag in self._learning.items())
        return learning and all(form(t) == self._forms[k] for k, t in tensors.items())


def like(tensors: Sequence[Tensor]) -> Callable[..., bool] | None:
    """A function that says whether tensors are of the forms that these have now; None where some are no plain ones."""
    if not _are_plain(tensors):
        return None
    if TensorGuards is not None and tensors:
        return compared_in_c(tensors)
    forms = list(map(form, tensors))
    return lambda *now: list(map(form, now)) == forms


def surely_like(values: Sequence[object]) -> Callable[..., bool] | None:
    """As `like`, and whether they learn, and what surrounds them, is as it is now; None where that cannot be told.

    The function says no to what is no tensor, and takes as many values as there are here.
    """
    tensors = [v for v in values if isinstance(v, Tensor)]
    plain = bool(tensors) and len(tensors) == len(values) and _are_plain(tensors)
    return compared_in_c(tensors) if plain and TensorGuards is not None else None


def _are_plain(tensors: Sequence[Tensor]) -> bool:
    return all(type(t) in (Tensor, nn.Parameter) and strides(t) is not None for t in tensors)


def compared_in_c(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """A function that says whether tensors are like these, as they are now."""
    sizes, strides = ([list(size(t)) for t in tensors] for size in (Tensor.size, Tensor.stride))
    # without both keywords it reads what is not there
    return TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check  # type: ignore[arg-type]
