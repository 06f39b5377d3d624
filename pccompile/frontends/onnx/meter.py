"""What a graph costs when it is tried: each torch operation is counted before it is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pccompile.limits import Account

ELEMENT = 50
"""Operations that an element counts for which passes through anything but a multiplication of matrices."""

UNKNOWN = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)


class Meter(TorchDispatchMode):
    """Within: what torch computes is charged to an account. An operation beyond the budget raises BudgetError.

    Sizes come from torch's own kernels for the meta device, which compute shapes only.
    """

    def __init__(self, account: Account) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.account = account

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The operation's result."""
        kwargs = kwargs or {}
        if not func.is_view:
            bytes_, operations = cost(func, args, kwargs)
            what = f"computing {func.overloadpacket.__name__.strip('_')}"
            self.account.spend("memory", bytes_, what)
            self.account.spend("operations", operations, what)
        return func(*args, **kwargs)


def cost(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, int]:
    """Bytes of new memory and operations that an ATen operation takes."""
    inputs = list(tensors((args, kwargs)))
    read = sum(t.numel() for t in inputs)
    if any(tag in func.tags for tag in UNKNOWN):
        return (0 if read <= 1 else 8 * sum(t.numel() * max(t.dim(), 1) for t in inputs)), ELEMENT * read
    given, named = pytree.tree_map_only(Tensor, shape_only, (args, dict(kwargs)))
    if "device" in named:
        named["device"] = torch.device("meta")
    try:
        with torch._C._DisableTorchDispatch():
            result = func(*given, **named)
            multiplications = flop_registry.get(func.overloadpacket)
            flops = int(multiplications(*given, **named, out_val=result)) if multiplications else 0
    except Exception:  # what torch cannot do at all, it says itself where it is computed
        return 0, ELEMENT * read
    known = {id(t) for t in tensors((given, named))}
    made = [t for t in tensors(result) if id(t) not in known]
    written = sum(t.numel() for t in made)
    return sum(t.numel() * t.element_size() for t in made), max(flops, ELEMENT * (read + written) if not flops else 0)


def shape_only(tensor: Tensor) -> Tensor:
    """A tensor of the same shape, layout and type without numbers."""
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a nest of arguments or results."""
    return (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))
