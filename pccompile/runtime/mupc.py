"""μPC as a parametrisation of a model: N(0, 1) weights times constants, in place (arXiv:2505.13124)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pccompile.analysis.mupc import factors
from pccompile.analysis.mupc_edges import Factor
from pccompile.diagnostics import CompileError, printable
from pccompile.frontends.process import capturing
from pccompile.frontends.signature import CaptureForm
from pccompile.passes.canonicalise import canonicalise
from pccompile.passes.dce import dce
from pccompile.pipeline import import_model

ATTENTION = ("1/d", "keep")


class Scaled(nn.Module):
    """A tensor times a constant: one number, or one for each of its rows."""

    def __init__(self, factor: Factor) -> None:
        super().__init__()
        self.why = factor.why
        self.scale = factor.scale
        self.rows: Tensor | None
        self.register_buffer("rows", None if factor.rows is None else torch.tensor(factor.rows), persistent=False)

    def forward(self, tensor: Tensor) -> Tensor:
        """The tensor that is used, from the one that learns."""
        if self.rows is None:
            return tensor * self.scale
        return tensor * self.rows.to(tensor.dtype).reshape(-1, *(1,) * (tensor.dim() - 1))

    def extra_repr(self) -> str:
        """The constant and where it is from."""
        return f"{self.scale:.6g}: {self.why}"


def mupc(
    model: nn.Module,
    args: tuple[Any, ...] | Tensor,
    kwargs: Mapping[str, Any] | None = None,
    *,
    attention: str = "1/d",
) -> nn.Module:
    """`model` in the μPC parametrisation, changed in place: its linear layers' weights are drawn N(0, 1) and scaled.

    args, kwargs: example arguments. attention: "1/d" scales scores so, "keep" leaves them as they are.
    Each weight W of a linear layer or a convolution becomes a·W by `torch.nn.utils.parametrize`, so that autograd, any
    optimizer and `pccompile.compile` with any algorithm see the scaled network; the a are those of
    `pccompile.analysis.mupc`. Biases, norms and embeddings keep their numbers. Weights are drawn by torch's own random
    stream. Raises CompileError, and leaves the model as it is, where a factor cannot be told: transposed convolutions,
    layers over time, weights that are computed or tied across unlike places, branches that end in a norm or a product.
    """
    if attention not in ATTENTION:
        hint = f"one of {', '.join(ATTENTION)}"
        raise CompileError(f"unknown attention {printable(repr(attention))}", hint=hint)
    with capturing():
        imported = import_model(model, (args,) if isinstance(args, Tensor) else args, kwargs, CaptureForm(free="batch"))
        graph = dce(canonicalise(imported.graph, imported.typer))
    found = {graph.origin[name]: factor for name, factor in factors(graph, attention == ATTENTION[0]).items()}
    if not found:
        raise CompileError("mupc: the model has no linear layer and no convolution")
    places = _places(model, found)
    for path, (module, name) in places.items():
        parameter = getattr(module, name)
        if parameter.dim() > 1 or not found[path].why.startswith("bias"):
            nn.init.normal_(parameter)
        parametrize.register_parametrization(module, name, Scaled(found[path]).to(parameter.device))
    return model


def _places(model: nn.Module, found: Mapping[str, Factor]) -> dict[str, tuple[nn.Module, str]]:
    """The module that has each parameter, and its name there. Raises CompileError for one that several modules have."""
    homes: dict[int, list[str]] = {}
    for path, own in model.named_parameters(remove_duplicate=False):
        homes.setdefault(id(own), []).append(path)
    places: dict[str, tuple[nn.Module, str]] = {}
    for path in found:
        above, _, name = path.rpartition(".")
        module: nn.Module | None = dict(model.named_modules()).get(above)
        parameter = None if module is None else module._parameters.get(name)
        if module is None or parameter is None:
            raise CompileError(f"mupc: {path} is no parameter of a module", hint="give an nn.Module")
        if len(homes[id(parameter)]) > 1:
            raise CompileError(f"mupc: {' and '.join(homes[id(parameter)])} are one weight", hint="untie them")
        places[path] = module, name
    return places
