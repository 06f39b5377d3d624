"""What the operations of an exported program are called, and where they stand in the user's code."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import fx

from pccompile.diagnostics import Location
from pccompile.frontends.imported import Locate
from pccompile.ir.names import Namer

OWN = f"{Path(__file__).parents[1]}/"
"""Where the code stands that runs in place of torch's while a model is captured."""


def label_of(n: fx.Node, op: str, locate: Locate | None, namer: Namer) -> str:
    """The module's path, where the module is torch's own and this its first operation; else path and operation."""
    base = op.split(".")[1] if "." in op else n.name
    located = locate(n) if locate else None
    if located and located.module:
        return located.module
    path, kind = _innermost(n)
    path = path.split("@")[0]
    own = kind.startswith("torch.nn.modules") and path and not _counts(n)
    if own and Namer()(path) not in namer.used:
        return path
    return f"{path}_{base}" if path else base


def place_of(n: fx.Node, locate: Locate | None) -> Location:
    """The module and the line of the user's code that an operation comes from."""
    if locate and (found := locate(n)):
        return found
    path, _ = _innermost(n)
    frames = re.findall(r'File "([^"]+)", line (\d+)', n.meta.get("stack_trace") or "")
    mine = [f for f in frames if "/torch/" not in f[0] and not f[0].startswith(("torch/", "<", OWN))]
    if not mine:
        return Location(path)
    return Location(path, mine[-1][0].rsplit("/", 1)[-1], int(mine[-1][1]))


def _innermost(n: fx.Node) -> tuple[str, str]:
    """The path and the kind of the module in whose forward an operation is."""
    stack = [v for k, v in (n.meta.get("nn_module_stack") or {}).items() if not k.startswith("_empty")]
    return (str(stack[-1][0]), str(stack[-1][1])) if stack else ("", "")


def _counts(n: fx.Node) -> bool:
    """Whether a result is a whole number, such as the batches that a batch norm has seen."""
    value = n.meta.get("val")
    return isinstance(value, torch.Tensor) and not (value.dtype.is_floating_point or value.dtype.is_complex)
