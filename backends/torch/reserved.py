"""Names that generated files use for themselves, and what they say of their functions."""

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

SWEEP = "infer_and_learn"
DOC = {
    "predict": "Feed forward. Returns the outputs, and what inference and learning read of the predictions.",
    "infer": "Settle the errors. Returns the error of each vertex.",
    "learn": "The local weight updates. Returns the free-energy gradient of each parameter.",
    SWEEP: "Infer and learn in one sweep on −ε, dropping each error when it has been read. Empties `context`.",
}

__all__ = ["ARGUMENTS", "DOC", "STOPPING", "SWEEP"]
