"""The backend interface of the ONNX project: `import pccompile.onnx_backend as backend`, `backend.run_model(…)`."""

from __future__ import annotations

from pccompile.frontends.onnx.backend import (
    PredictiveCodingBackend,
    Prepared,
    is_compatible,
    prepare,
    run_model,
    run_node,
    supports_device,
)

__all__ = [
    "PredictiveCodingBackend",
    "Prepared",
    "is_compatible",
    "prepare",
    "run_model",
    "run_node",
    "supports_device",
]
