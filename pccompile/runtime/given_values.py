"""What a call infers and what it is given: the roles that it asks for, and the tensors of their leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pccompile.diagnostics import CompileError, printable
from pccompile.ir import PCGraph, Role
from pccompile.passes.roles import ALL, Free, Roles
from pccompile.runtime.loaded_program import Interface, Runtime


@dataclass(frozen=True)
class Given:
    """The roles of a call, with the values and the masks that it gives by name; `targets` are those of its outputs."""

    roles: Roles
    values: Mapping[str, Tensor] = field(default_factory=dict)
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    targets: tuple[Tensor, ...] = ()

    @classmethod
    def of(
        cls,
        target: Any,
        loss: Any,
        free: Free | str = (),
        clamped: Mapping[str, Tensor] | None = None,
        mask: Mapping[str, Tensor] | None = None,
        shown: bool = False,
    ) -> Given:
        """What a user has asked for. A target that is None belongs to a silent output; with a loss, to all of them.

        Raises CompileError for what is no tensor, and for a mask that is not of booleans.
        """
        free = (free,) if isinstance(free, str) else free
        priors = tuple(free.items()) if isinstance(free, Mapping) else tuple((name, None) for name in free)
        values, masks = dict(clamped or {}), dict(mask or {})
        for name, value in (*values.items(), *masks.items()):
            if not isinstance(value, Tensor):
                raise CompileError(f"what is given of {name} is {printable(repr(value), 60)}", hint="give a tensor")
        for name, m in masks.items():
            if m.dtype != torch.bool:
                hint = "give booleans, True where the value is given"
                raise CompileError(f"the mask of {name} is {str(m.dtype).removeprefix('torch.')}", hint=hint)
        leaves = [target] if loss is not None else pytree.tree_leaves(target)
        silent = frozenset(i for i, t in enumerate(leaves) if t is None)
        targets = tuple(t for t in pytree.tree_leaves(target) if isinstance(t, Tensor))
        if target is None:
            silent = frozenset((ALL,))
        return cls(Roles(priors, frozenset(values), frozenset(masks), silent, shown), values, masks, targets)

    def leaves(self, runtime: Runtime, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a call, with those that roles add. Raises CompileError for one of another shape."""
        assert runtime.compiled is not None
        pc, found = runtime.compiled.pc, dict(inputs)
        for role in pc.roles:
            if role.name in self.values:
                found[role.given] = self._fitting(pc, runtime.interface, inputs, role, self.values[role.name])
            if role.mask:
                shape = self._shape(pc, runtime.interface, inputs, role.mask)
                found[role.mask] = _expanded(role.name, self.masks[role.name], shape)
        return found

    def _fitting(
        self, pc: PCGraph, interface: Interface, inputs: Mapping[str, Tensor], role: Role, value: Tensor
    ) -> Tensor:
        shape, dtype = self._shape(pc, interface, inputs, role.given), pc.graph.inputs[role.given].dtype
        if tuple(value.shape) != shape:
            raise CompileError(f"the value of {role.name} is {list(value.shape)}, and {role.name} is {list(shape)}")
        return value.detach().to(dtype)

    @staticmethod
    def _shape(pc: PCGraph, interface: Interface, inputs: Mapping[str, Tensor], leaf: str) -> tuple[int, ...]:
        return tuple(interface.length(d, inputs) for d in pc.graph.inputs[leaf].shape)


def completed(role: Role, value: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """What a vertex is inferred to be, with what is given of it in its place."""
    if not role.given:
        return value
    given = inputs[role.given].expand(value.shape)
    return torch.where(inputs[role.mask], given, value) if role.mask else given


def _expanded(name: str, mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    try:
        return mask.expand(shape)
    except RuntimeError:
        raise CompileError(f"the mask of {name} is {list(mask.shape)}, and {name} is {list(shape)}") from None
