"""What a model holds now, read at every call: its mode, and its tensors by path, which may have been replaced."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def modules(model: nn.Module) -> Iterator[nn.Module]:
    """Every module, one that is used in several places as often: a faster `nn.Module.modules`."""
    yield model
    for child in model._modules.values():
        if child is not None:
            yield from modules(child)


def form(model: nn.Module) -> tuple[tuple[bool, ...], tuple[torch.dtype, ...]]:
    """What a captured program depends on: each module's training flag, and the dtypes of the parameters."""
    flags: list[bool] = []
    dtypes: dict[torch.dtype, None] = {}
    for module in modules(model):
        flags.append(module.training)
        for parameter in module._parameters.values():
            if parameter is not None:
                dtypes[parameter.dtype] = None
    return tuple(flags), tuple(dtypes)


@functools.cache
def _parts(path: str) -> tuple[tuple[str, ...], str]:
    *owners, name = path.split(".")
    return tuple(owners), name


def tensor_at(model: nn.Module, path: str) -> Tensor | None:
    """The parameter or buffer that stands at `path` now; None where there is none."""
    owners, name = _parts(path)
    for part in owners:
        child = model._modules.get(part)
        if child is None:
            return None
        model = child
    found = model._parameters.get(name)
    return model._buffers.get(name) if found is None else found
