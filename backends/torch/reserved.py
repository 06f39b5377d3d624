"""Names that generated files use for themselves."""

from __future__ import annotations

ARGUMENTS = (
    *("params", "buffers", "inputs", "outputs", "context", "output_errors", "errors", "values", "targets", "gradients"),
    *(
        "loss",
        "lasting",
        "device",
        "record",
        "predict",
        "clamp",
        "clamp_errors",
        "clamp_constants",
        "infer",
        "learn",
        "infer_and_learn",
        "step",
        "torch",
        "math",
        "F",
    ),
)
"""Names that a generated file uses for itself."""
STOPPING = ("settled", "done", "calm", "turn")
"""Names of a loop that ends early, and of one in which vertices wait for news."""

__all__ = ["ARGUMENTS", "STOPPING"]
