"""What to do about a model that torch.export cannot capture: what is known before, and by what it says."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from pccompile.diagnostics import CaptureError

CUT = 'torch.compile(model, backend="pccompile"), which cuts the program there'
CAUSES: tuple[tuple[str, str], ...] = (
    (
        r"Unsupported input type|not a known type|which is not supported in the output|Unsupported output type",
        "pass the tensors in it as arguments and return them so, make it a dataclass, or register its class by "
        "torch.utils._pytree.register_pytree_node",
    ),
    (
        r"\bnumpy\b|NumPy|ndarray",
        f"compute there by torch in the place of NumPy, or use {CUT}",
    ),
    (r"different devices|Device Propagation|device mismatch", "put the model and its example arguments on one device"),
    (
        r"shapes cannot be multiplied|same reduction dim|must match the size|size mismatch|expected input.*to have|"
        r"expand\(|broadcast|Given groups=|Expected \d\w* .*(input|tensor)|invalid for input of size",
        "the example arguments do not fit the model: its layers take tensors of another shape",
    ),
    (
        r"expected .*dtype|same dtype|expected scalar type|Expected tensor for argument .* scalar types",
        "give example arguments of the model's dtype",
    ),
    (r"out of memory|not enough memory|DefaultCPUAllocator", "take a smaller example: lengths stay free"),
    (
        r"no attribute|missing .*argument|unexpected keyword|takes .* argument|is not defined|not callable|not subscri",
        "call the model itself on the example arguments: where it raises this too, it or they are wrong",
    ),
)
GENERAL = (
    "rewrite data-dependent Python control flow and .item() there, compile the part of the model that has none, or use "
    + CUT
)


def hint_for(text: str) -> str:
    """What to do about an error with this text: by its first cause that is known, else what helps most often."""
    return next((hint for pattern, hint in CAUSES if re.search(pattern, text)), GENERAL)


def refuse_kinds(model: nn.Module, arguments: Any) -> None:
    """Raise CaptureError for models and arguments of a kind that has nothing to capture."""
    name = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        what = f"{name} is a script of torch.jit, which has no Python to follow"
        raise CaptureError(what, hint="give the module that was scripted")
    if any(isinstance(t, torch.Tensor) and t.is_nested for t in pytree.tree_leaves(arguments)):
        what = f"{name} is given a nested tensor, whose rows have lengths of their own"
        raise CaptureError(what, hint="pad the rows, or pass them packed (pack_padded_sequence in forward)")
