"""Determinants: torch factorises a matrix as it lies in memory, and its derivative formula reads the factors.

So the rule, which is traced on entries that lie row by row, holds where the factors are those of such entries.
"""

from __future__ import annotations

import torch

from pccompile.ops.registry import define


def _matrices(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64) + 2 * torch.eye(shape[-1], dtype=torch.float64)


for name in ("_linalg_det", "_linalg_slogdet"):
    define(
        f"aten.{name}.default",
        "traced",
        dense=("A",),
        samples=(lambda: (_matrices(3, 3),), lambda: (_matrices(2, 4, 4),)),
    )
