"""Fills: tensors of given numbers, which read no more of an argument than its shape and type."""

from __future__ import annotations

from pccompile.ops.registry import OpDef, define

for name in ("empty", "zeros", "ones", "full"):
    for operation in (f"aten.new_{name}.default", f"aten.{name}_like.default"):
        define(OpDef(operation, "context"))
