"""A model that computes in float64 throughout, also where its author asks for float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class _Double(TorchFunctionMode):
    """Within: whoever asks torch for float32 is given float64."""

    def __enter__(self) -> Any:
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.set_default_dtype(self.before)

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        named = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return function(*(torch.float64 if a is torch.float32 else a for a in args), **named)


class Doubled(nn.Module):
    """`model` in float64.

    Norms, softmax and rotary positions often ask for float32 by name; their rounding would then be all that a
    comparison of two orders of evaluation sees.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.double()

    def forward(self, **arguments: Any) -> Any:
        """What the model returns."""
        with _Double():
            return self.model(**arguments)
