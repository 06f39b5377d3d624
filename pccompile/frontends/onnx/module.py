"""An ONNX file as a module, with inputs on which it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pccompile.frontends.onnx.examples import example_inputs
from pccompile.frontends.onnx.open_sizes import batch_axis
from pccompile.frontends.onnx.runner import Runner


class OnnxModule(Runner):
    """A Runner of an ONNX file, which brings inputs on which it runs and says which of their sizes are free."""

    def example_inputs(
        self,
        shapes: Mapping[str, Sequence[int]] | None = None,
        seed: int = 0,
        values: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """Random inputs that fit the graph; `shapes` and `values` say sizes and numbers by input name."""
        return example_inputs(self, shapes or {}, seed, values)

    def dynamic_shapes(self, inputs: Sequence[Tensor]) -> tuple[dict[int, Any] | None, ...]:
        """What `torch.export.export` takes to leave the batch size open, each input's own batch axis considered."""
        axes = [batch_axis(entry) for entry in self.input_types]
        return tuple(
            {axis: torch.export.Dim.AUTO} if 0 <= axis < value.dim() else None
            for axis, value in zip(axes, inputs, strict=True)
        )
