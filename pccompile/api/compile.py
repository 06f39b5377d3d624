"""`compile`: a model of any kind in, a module with predictive-coding gradients or a netlist out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Unpack, get_args, overload

from torch import Tensor
from torch.export import ExportedProgram

from pccompile.algorithms.names import AlgorithmName, AlgorithmSettings
from pccompile.api.models import as_module, called, load_program, with_constants
from pccompile.api.module import PCModule
from pccompile.api.pieces import PiecewiseModule
from pccompile.api.ways import Capture, Request, captured
from pccompile.backends.netlist import LOSSES, Netlist, NetlistOptions
from pccompile.diagnostics import CompileError, printable
from pccompile.frontends.exported import import_program
from pccompile.passes.choices import DerivativesName, FeedbackName, Granularity
from pccompile.passes.energies import Energies
from pccompile.passes.precisions import Precision
from pccompile.pipeline import Hook, Options, lay_out
from pccompile.runtime.jit import refuse_without_compiler
from pccompile.runtime.losses import SQUARED_ERROR


@overload
def compile(
    model: Any,
    args: tuple[Any, ...] | Tensor | None = ...,
    kwargs: Mapping[str, Any] | None = ...,
    *,
    backend: Literal["torch"] = ...,
    dynamic_shapes: Any = ...,
    algorithm: AlgorithmName = ...,
    granularity: Granularity | None = ...,
    loss: Callable[..., Tensor] | None = ...,
    energies: Energies = ...,
    precision: Precision = ...,
    feedback: FeedbackName = ...,
    derivatives: DerivativesName = ...,
    hook: Hook | None = ...,
    check: bool = ...,
    constants: Mapping[str, Any] | None = ...,
    trust_code: bool = ...,
    outside_loss: Literal["refuse", "linearise"] = ...,
    on_divergence: Literal["raise", "warn", "ignore"] = ...,
    jit: bool = ...,
    capture: Capture = ...,
    **settings: Unpack[AlgorithmSettings],
) -> PCModule: ...
@overload
def compile(
    model: Any,
    args: tuple[Any, ...] | Tensor | None = ...,
    kwargs: Mapping[str, Any] | None = ...,
    *,
    backend: Literal["netlist"],
    loss: Literal["squared-error", "cross-entropy", "none"] | None = ...,
    hook: Hook | None = ...,
    constants: Mapping[str, Any] | None = ...,
    trust_code: bool = ...,
    rate: float = ...,
    eta: float = ...,
    ticks: int = ...,
    input_errors: bool = ...,
) -> Netlist: ...
def compile(
    model: Any,
    args: tuple[Any, ...] | Tensor | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    backend: str = "torch",
    dynamic_shapes: Any = None,
    algorithm: str = "exact",
    granularity: str | None = None,
    loss: Any = None,
    energies: Energies = None,
    precision: Precision = None,
    feedback: str = "transpose",
    derivatives: str = "exact",
    hook: Hook | None = None,
    check: bool = True,
    constants: Mapping[str, Any] | None = None,
    trust_code: bool = False,
    outside_loss: str = "refuse",
    on_divergence: str = "warn",
    jit: bool = False,
    capture: Capture = "auto",
    **settings: Any,
) -> PCModule | Netlist:
    """`model` as a module whose backward pass is predictive coding; with `backend="netlist"`, as a circuit.

    model: an nn.Module, an fx.GraphModule, an ExportedProgram, a path to an .onnx or .pt2 file, or an ONNX ModelProto.
    args, kwargs: example arguments; an exported program and an ONNX file bring their own.
    dynamic_shapes: as torch.export takes it; by default batches and lengths of sequences are free (see `PCModule`).
    algorithm: "exact", "fixed-prediction", "meta-pcn", "zil", "strict", "incremental", "error-optimization", "alm",
        "nudged", "langevin" or "bidirectional" (docs/algorithms.md).
    granularity: what a vertex is, "op", "layer" or "output".
    loss: loss(output, target), a scalar, for `pc.loss(...)`.
    energies: what hidden values cost against their predictions, instead of half the squared error: one
        `pccompile.energy(...)` for all, or a table of them by vertex or module path. docs/algorithms.md says more.
    precision: the weight of squared errors: a number above 0, a tensor of them for the elements of one sample, or
        `pccompile.learned_precision(...)`, or a table of these by vertex or module path, outputs among them.
    feedback: which weights messages to values read: "transpose" (the model's own), "random", "sign", "kolen-pollack" or
        "dkp", by which they come from the output.
    derivatives: "dropped" leaves out the slopes of activations in messages. docs/algorithms.md says more of both.
    constants: numbers to which inputs or initializers of an ONNX file are fixed, by name.
    trust_code: open a .pt2 file. torch runs code that such a file contains while it loads it, so that a file from
    somebody else can do whatever you can; an .onnx file holds data only, and what it may ask for is bounded
    (`pccompile.budget`).
    check: compare outputs and gradients with eager autograd on the example, here and whenever a call in a new form is
        compiled; the model, its random streams and the arguments stay as they are. `pc.checked` says what was compared,
        `pc.notes` what could not be: docs/checking.md says what it costs and cannot see. With False, nothing is.
    outside_loss: what `backward()` of a loss taken of `pc(x)` does where inference needs the loss (strict): "refuse",
        since `pc.loss(x, target=y)` has another gradient, or "linearise", which clamps the outputs by its derivative.
    on_divergence: "warn", "raise" or "ignore" where inference ends in what is no number. "ignore" is also silent where
        a rate leaves its bound (docs/algorithms.md).
    jit: run inference and learning behind torch.compile (docs/torch_compile.md): faster steps, for seconds to minutes
        of compilation at the first call and for tensors of another form; needs a C++ compiler.
    capture: "export" captures the model whole, by torch.export; "path" too, along the path that Python takes where it
        decides by numbers, with a program for each path; "pieces" lets Dynamo cut it where Python decides by
        numbers, with a program for each piece; "auto" takes the first of export, pieces and path that has all
        gradients, and `pc.summary()` says which (docs/torch_compile.md).
    settings: what the algorithm takes, such as steps and rate; `pccompile --algorithm NAME --help` lists them;
        "auto" lets the first batch with a target choose rate and steps, and chooses anew where weights that learn have
        moved the bound. A number never changes.
    A circuit has the shapes of `args`; its algorithm is fixed prediction, its loss "squared-error" (by default),
    "cross-entropy" or "none", and its settings those of NetlistOptions: rate, eta, ticks, input_errors.
    Raises CompileError with every reason why the model cannot be compiled.
    """
    if constants:
        model = with_constants(model, constants)
    if backend == "netlist":
        if dynamic_shapes is not None or granularity is not None or algorithm not in ("exact", "fixed-prediction"):
            raise CompileError("a circuit has fixed shapes and does fixed prediction, operation by operation")
        if energies is not None or precision is not None:
            raise CompileError("a circuit knows no energy but half the squared error, and no precision")
        if feedback != "transpose" or derivatives != "exact":
            raise CompileError("a circuit has the weights of its projections in its feedback, and exact derivatives")
        if outside_loss != "refuse" or on_divergence != "warn":
            raise CompileError("a circuit has no outside_loss and no on_divergence")
        if jit:
            raise CompileError("a circuit is simulated and not compiled: it has no jit")
        if capture in ("path", "pieces"):
            raise CompileError("a circuit is made of one graph, and not of pieces or paths")
        return _circuit(model, args, kwargs, loss, settings, hook, trust_code)
    if backend != "torch":
        raise CompileError(f"unknown backend {printable(backend)}", hint="torch or netlist")
    if jit:
        refuse_without_compiler()
    given = energies, precision, outside_loss, on_divergence, feedback, derivatives
    options = Options(algorithm, granularity, settings, *given, jit=jit)
    pc = _module(model, args, kwargs, options, loss, dynamic_shapes, hook, check, trust_code, capture)
    if not isinstance(pc, PiecewiseModule) and pc.criterion is None and pc.compiled.source.moving:
        warnings.warn(f"{algorithm}: {SQUARED_ERROR}", stacklevel=2)
    return pc


def _module(
    model: Any,
    args: Any,
    kwargs: Any,
    options: Options,
    loss: Any,
    dynamic_shapes: Any,
    hook: Hook | None,
    check: bool,
    trust_code: bool,
    capture: Capture,
) -> PCModule:
    """A model, a file or an exported program as a compiled module: whole, or in pieces."""
    if capture not in get_args(Capture):
        raise CompileError(f"unknown capture {printable(str(capture))}", hint="auto, export, path or pieces")
    if isinstance(model, str | os.PathLike) and Path(model).suffix == ".pt2":
        model = load_program(Path(model), trust_code)
    if isinstance(model, ExportedProgram) and capture not in ("path", "pieces"):
        return _from_program(model, options, loss, hook, check)
    model, args, locate = as_module(model, args, kwargs)
    return captured(Request(model, args, kwargs or {}, options, loss, dynamic_shapes, locate, hook, check), capture)


def _circuit(
    model: Any, args: Any, kwargs: Any, loss: Any, settings: dict[str, Any], hook: Hook | None, trust_code: bool
) -> Netlist:
    """The netlist of a model."""
    module, args, locate = as_module(model, args, kwargs, trust_code)
    options = netlist_options(loss, settings)
    return lay_out(module, args, kwargs, options, locate, hook).netlist


def netlist_options(loss: Any, settings: Mapping[str, Any]) -> NetlistOptions:
    """How a circuit is built. Raises CompileError for a loss or a setting that it does not have."""
    if loss is not None and loss not in LOSSES:
        hint = 'or make it the last operation of the model, with loss="none" and −1 for the clamp of its output'
        raise CompileError(f"a circuit's loss is one of {', '.join(LOSSES)}", hint=hint)
    known = [f.name for f in fields(NetlistOptions) if f.name != "loss"]
    if unknown := set(settings) - set(known):
        hint = f"its settings: {', '.join(known)}"
        raise CompileError(f"a netlist has no setting {', '.join(sorted(unknown))}", hint=hint)
    return NetlistOptions(loss=loss or "squared-error", **settings)


def _from_program(program: ExportedProgram, options: Options, loss: Any, hook: Hook | None, check: bool) -> PCModule:
    """A module from a program that was exported before; it can be called in that one form only."""
    model = called(program)
    imported = import_program(program, model)
    pc = PCModule(model, options, loss, recapture=False, hook=hook, check=check)
    args, kwargs = program.example_inputs or ((), {})
    pc.adopt(imported, tuple(args), kwargs)
    pc.prepare(tuple(args), kwargs)
    return pc
