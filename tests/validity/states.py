"""How models that keep a state in themselves are compared with eager torch over several calls."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import pccompile
from pccompile import PCModule
from validity.cells import ROWS, WIDTH


def pair(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float64, **how: Any) -> tuple[nn.Module, PCModule]:
    """A model, and an equal one in predictive-coding form."""
    torch.manual_seed(0)
    eager = widened(make(), dtype)
    return eager, pccompile.compile(copy.deepcopy(eager), (torch.ones(ROWS, WIDTH, dtype=dtype),), **how)


def widened(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """`model` in another precision, states in plain attributes included."""
    memo: dict[int, Any] = {}

    def change(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value if isinstance(value, nn.Parameter) else own.get(id(value), value.to(dtype))
        if isinstance(value, tuple):
            return tuple(map(change, value))
        if isinstance(value, list) and id(value) not in memo:
            memo[id(value)] = value
            value[:] = map(change, value)
        elif isinstance(value, dict):
            value.update({k: change(v) for k, v in value.items()})
        return value

    before = {id(b): (m, n) for m in model.modules() for n, b in m._buffers.items()}
    model.to(dtype)
    own = {i: m._buffers[n] for i, (m, n) in before.items()}
    for module in model.modules():
        for name, value in module.__dict__.items():
            if not name.startswith("_"):
                module.__dict__[name] = change(value)
    return model


def data(calls: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """An input for each call."""
    return list(torch.randn(calls, ROWS, WIDTH, generator=torch.Generator().manual_seed(1), dtype=dtype))


def states(model: nn.Module) -> dict[str, Any]:
    """All that modules hold besides their parameters and torch's own tables."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        for name, value in (*module.__dict__.items(), *module._buffers.items()):
            if not name.startswith("_") and not isinstance(value, nn.Module):
                found[f"{path}.{name}"] = value
    return found


def flat(value: Any) -> list[Any]:
    """The leaves of a value, tensors without history."""
    leaves = torch.utils._pytree.tree_leaves(value)
    return [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def agree(model: nn.Module, eager: nn.Module, tolerance: float = 1e-10) -> None:
    """Assert that gradients and states are equal, and that states have a history where eager's have."""
    for (name, p), q in zip(model.named_parameters(), eager.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=tolerance, atol=tolerance)
    ours, theirs = states(model), states(eager)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        a, b = flat(ours[name]), flat(value)
        assert len(a) == len(b), name
        for x, y in zip(a, b, strict=True):
            if isinstance(y, Tensor):
                torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)
            else:
                assert x == y
                assert type(x) is type(y)
    grown = [
        [t.requires_grad for t in torch.utils._pytree.tree_leaves(s) if isinstance(t, Tensor)] for s in (ours, theirs)
    ]
    assert grown[0] == grown[1]


def detached(model: nn.Module) -> None:
    """Cut the history of every state."""
    for module in model.modules():
        for table in (module._buffers, module.__dict__):
            for name, value in table.items():
                if not name.startswith("_") and not isinstance(value, nn.Module):
                    table[name] = torch.utils._pytree.tree_map_only(Tensor, torch.Tensor.detach, value)
