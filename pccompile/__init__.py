"""pccompile turns any differentiable model into predictive-coding form.

pc = pccompile.compile(model, (x,))
loss = criterion(pc(x), y); loss.backward()      # predictive-coding gradients in the model's own parameters
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pccompile.algorithms.meta_pcn import normalise_weights
    from pccompile.algorithms.names import AlgorithmName
    from pccompile.api.compile import compile
    from pccompile.api.layer_parallel import layer_parallel
    from pccompile.api.module import PCModule
    from pccompile.api.register import register_elementwise, register_linear, register_onnx
    from pccompile.api.temporal_coding import Temporal
    from pccompile.backends.netlist import Netlist
    from pccompile.diagnostics import CompileError
    from pccompile.explorer import explore_circuit
    from pccompile.frontends.onnx import load_onnx
    from pccompile.limits import budget
    from pccompile.ops.energies import energy, learned_precision
    from pccompile.report.circuit import CircuitReport, verify_circuit
    from pccompile.report.model_comparison import ModelComparison, compare_models
    from pccompile.report.recorder import Recorder
    from pccompile.report.recorder_callbacks import TensorBoard, lightning_callback, trainer_callback
    from pccompile.report.run_comparison import compare_runs
    from pccompile.report.trace import Trace
    from pccompile.report.verify import VerifyReport, verify
    from pccompile.runtime.mupc import mupc
    from pccompile.runtime.neighbours import Asynchronous
    from pccompile.runtime.settle import Settled

__version__ = "0.1.0"
_WHERE = {
    "AlgorithmName": "pccompile.algorithms.names",
    "Asynchronous": "pccompile.runtime.neighbours",
    "CircuitReport": "pccompile.report.circuit",
    "CompileError": "pccompile.diagnostics",
    "ModelComparison": "pccompile.report.model_comparison",
    "Netlist": "pccompile.backends.netlist",
    "PCModule": "pccompile.api.module",
    "Settled": "pccompile.runtime.settle",
    "Recorder": "pccompile.report.recorder",
    "Temporal": "pccompile.api.temporal_coding",
    "Trace": "pccompile.report.trace",
    "VerifyReport": "pccompile.report.verify",
    "budget": "pccompile.limits",
    "compile": "pccompile.api.compile",
    "energy": "pccompile.ops.energies",
    "explore_circuit": "pccompile.explorer",
    "layer_parallel": "pccompile.api.layer_parallel",
    "learned_precision": "pccompile.ops.energies",
    "load_onnx": "pccompile.frontends.onnx",
    "mupc": "pccompile.runtime.mupc",
    "normalise_weights": "pccompile.algorithms.meta_pcn",
    "register_elementwise": "pccompile.api.register",
    "register_linear": "pccompile.api.register",
    "register_onnx": "pccompile.api.register",
    "TensorBoard": "pccompile.report.recorder_callbacks",
    "compare_models": "pccompile.report.model_comparison",
    "compare_runs": "pccompile.report.run_comparison",
    "lightning_callback": "pccompile.report.recorder_callbacks",
    "trainer_callback": "pccompile.report.recorder_callbacks",
    "verify": "pccompile.report.verify",
    "verify_circuit": "pccompile.report.circuit",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used: torch takes seconds."""
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'pccompile' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_WHERE]


__all__ = [
    "AlgorithmName",
    "Asynchronous",
    "CircuitReport",
    "CompileError",
    "ModelComparison",
    "Netlist",
    "PCModule",
    "Recorder",
    "Settled",
    "Temporal",
    "TensorBoard",
    "Trace",
    "VerifyReport",
    "budget",
    "compare_models",
    "compare_runs",
    "compile",
    "energy",
    "explore_circuit",
    "layer_parallel",
    "learned_precision",
    "lightning_callback",
    "load_onnx",
    "mupc",
    "normalise_weights",
    "register_elementwise",
    "register_linear",
    "register_onnx",
    "trainer_callback",
    "verify",
    "verify_circuit",
]
