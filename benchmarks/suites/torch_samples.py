"""The samples of torch's own test databases, as modules: `op_db` for operators, `module_db` for modules."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

FLOATS = (torch.float64, torch.complex128)


@dataclass(frozen=True)
class Sample:
    """A model and the arguments of one call, those that want a gradient with `requires_grad`."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


Make = Callable[[torch.dtype], Iterator[Sample]]


@dataclass(frozen=True)
class Case:
    """One entry of a database. `make(dtype)` draws its samples, `dtypes` are the two of `FLOATS` that it takes."""

    name: str
    kind: str
    dtypes: tuple[torch.dtype, ...]
    make: Make


class Applied(nn.Module):
    """An operator on one sample: its tensors that want a gradient are arguments, the others are buffers."""

    def __init__(self, function: Callable[..., Any], arguments: Any, finish: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function, self.finish = function, finish
        leaves, self.spec = pytree.tree_flatten(arguments)
        self.leaves: list[Any] = []
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and not leaf.requires_grad:
                self.register_buffer(f"tensor{i}", leaf)
            self.leaves.append(None if isinstance(leaf, Tensor) else leaf)
        self.places = tuple(i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad)

    def forward(self, *tensors: Tensor) -> Any:
        leaves = [self._buffers.get(f"tensor{i}", leaf) for i, leaf in enumerate(self.leaves)]
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        first, args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return self.finish(self.function(first, *args, **kwargs))


def _operator(info: Any, dtype: torch.dtype) -> Iterator[Sample]:
    for s in info.sample_inputs("cpu", dtype, requires_grad=True):
        arguments = (s.input, tuple(s.args), dict(s.kwargs))
        tensors = [t for t in pytree.tree_leaves(arguments) if isinstance(t, Tensor) and t.requires_grad]
        yield Sample(Applied(info.op, arguments, s.output_process_fn_grad), tuple(map(_leaf, tensors)), {})


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def _module(info: Any, dtype: torch.dtype) -> Iterator[Sample]:
    for training in (True, False):
        for s in info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training):
            built = s.constructor_input
            model = info.module_cls(*built.args, **built.kwargs).to(dtype).train(training)
            args, kwargs = tuple(s.forward_input.args), dict(s.forward_input.kwargs)
            if info.is_lazy:
                model(*args, **kwargs)
            yield Sample(model, args, kwargs)


@functools.cache
def cases() -> dict[str, Case]:
    """Every entry that supports autograd on the CPU, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal import common_methods_invocations as database
        from torch.testing._internal.common_modules import module_db

    # torch seeds some operators within the call, which no program repeats: here the seed is set before the call
    database.wrapper_set_seed = lambda op, *args, **kwargs: op(*args, **kwargs)
    found: dict[str, Case] = {}
    for info in database.op_db:
        dtypes = tuple(d for d in FLOATS if info.supports_autograd and d in info.supported_dtypes("cpu"))
        if dtypes:
            found[info.full_name] = Case(info.full_name, "operator", dtypes, functools.partial(_operator, info))
    for info in module_db:
        found[info.name] = Case(info.name, "module", (torch.float64,), functools.partial(_module, info))
    return found
