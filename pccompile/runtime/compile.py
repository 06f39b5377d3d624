"""The functions that a user calls: a model of any kind in, a module with predictive-coding gradients out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO, Literal, overload

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pccompile.backends.netlist import LOSSES, Netlist, NetlistOptions
from pccompile.circuits import lay_out
from pccompile.diagnostics import CompileError, printable
from pccompile.files.reading import open_file
from pccompile.frontends.exported import import_program
from pccompile.frontends.imported import Locate
from pccompile.frontends.onnx import OnnxModule, load_onnx
from pccompile.frontends.onnx import location_of as onnx_location
from pccompile.frontends.onnx.examples import try_inputs
from pccompile.frontends.onnx.registry import operator
from pccompile.ops import user_elementwise, user_linear
from pccompile.passes.energies import Energies
from pccompile.passes.precisions import Precision
from pccompile.pipeline import Hook, Options
from pccompile.runtime.jit import refuse_without_compiler
from pccompile.runtime.losses import SQUARED_ERROR
from pccompile.runtime.module import PCModule


@overload
def compile(
    model: Any,
    args: tuple[Any, ...] | Tensor | None = ...,
    kwargs: Mapping[str, Any] | None = ...,
    *,
    backend: Literal["torch"] = ...,
    dynamic_shapes: Any = ...,
    algorithm: str = ...,
    granularity: str | None = ...,
    loss: Callable[..., Tensor] | None = ...,
    energies: Energies = ...,
    precision: Precision = ...,
    feedback: str = ...,
    derivatives: str = ...,
    hook: Hook | None = ...,
    check: bool = ...,
    constants: Mapping[str, Any] | None = ...,
    trust_code: bool = ...,
    outside_loss: Literal["refuse", "linearise"] = ...,
    on_divergence: Literal["raise", "warn", "ignore"] = ...,
    jit: bool = ...,
    **settings: Any,
) -> PCModule: ...
@overload
def compile(
    model: Any,
    args: tuple[Any, ...] | Tensor | None = ...,
    kwargs: Mapping[str, Any] | None = ...,
    *,
    backend: Literal["netlist"],
    loss: str | None = ...,
    hook: Hook | None = ...,
    constants: Mapping[str, Any] | None = ...,
    trust_code: bool = ...,
    **settings: Any,
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
    **settings: Any,
) -> PCModule | Netlist:
    """`model` as a module whose backward pass is predictive coding; with `backend="netlist"`, as a circuit.

    model: an nn.Module, an fx.GraphModule, an ExportedProgram, a path to an .onnx or .pt2 file, or an ONNX ModelProto.
    args, kwargs: example arguments; an exported program and an ONNX file bring their own.
    dynamic_shapes: as torch.export takes it; by default dimension 0 of every input is free.
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
    settings: what the algorithm takes, such as steps and rate; `pccompile --algorithm NAME --help` lists them;
        "auto" lets the first batch with a target choose rate and steps, and chooses anew where weights that learn have
        moved the bound. A number never changes.
    A circuit has the shapes of `args`; its algorithm is fixed prediction, its loss "squared-error" (by default),
    "cross-entropy" or "none", and its settings those of NetlistOptions: rate, eta, ticks, input_errors.
    Raises CompileError with every reason why the model cannot be compiled.
    """
    if constants:
        model = _with_constants(model, constants)
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
        return _circuit(model, args, kwargs, loss, settings, hook, trust_code)
    if backend != "torch":
        raise CompileError(f"unknown backend {printable(backend)}", hint="torch or netlist")
    if jit:
        refuse_without_compiler()
    given = energies, precision, outside_loss, on_divergence, feedback, derivatives
    options = Options(algorithm, granularity, settings, *given, jit=jit)
    if isinstance(model, str | os.PathLike) and Path(model).suffix == ".pt2":
        model = load_program(Path(model), trust_code)
    if isinstance(model, ExportedProgram):
        return _from_program(model, options, loss, hook, check)
    model, args, locate = as_module(model, args, kwargs)
    pc = PCModule(model, options, loss, dynamic_shapes, locate, hook=hook, check=check)
    pc.prepare(args, kwargs)
    return said(pc)


def said(pc: PCModule) -> PCModule:
    """`pc`, once a user has been warned who gave no loss where inference needs one."""
    if pc.compiled.source.moving and pc.criterion is None:
        warnings.warn(f"{pc.options.algorithm}: {SQUARED_ERROR}", stacklevel=3)
    return pc


def _with_constants(model: Any, constants: Mapping[str, Any]) -> OnnxModule:
    """An ONNX file, loaded with some numbers fixed. Raises CompileError for another model."""
    if isinstance(model, nn.Module | ExportedProgram) or (
        isinstance(model, str | os.PathLike) and Path(model).suffix == ".pt2"
    ):
        raise CompileError("constants go with an ONNX file", hint="of a module, give the numbers as arguments")
    return load_onnx(model, constants=constants)


def as_module(
    model: Any,
    args: tuple[Any, ...] | Tensor | None,
    kwargs: Mapping[str, Any] | None,
    trust_code: bool = False,
) -> tuple[nn.Module, tuple[Any, ...], Locate | None]:
    """What `compile` takes as a module, with example arguments and with what finds the places of its operations.

    Raises CompileError where arguments are missing.
    """
    if isinstance(model, PCModule):
        model = model.__dict__["model"]
    if isinstance(args, Tensor):
        args = (args,)
    if isinstance(model, str | os.PathLike) and Path(model).suffix == ".pt2":
        model = load_program(Path(model), trust_code)
    if isinstance(model, ExportedProgram):
        examples, named = model.example_inputs or ((), {})
        if args is None and not kwargs and named:
            raise CompileError("the exported program has keyword arguments", hint="give args and kwargs")
        args = tuple(examples) if args is None else args
        model = _called(model)
    locate, loaded = None, not isinstance(model, nn.Module)
    if loaded:
        model = load_onnx(model)
    if isinstance(model, OnnxModule):
        locate = onnx_location
        if args is None:
            args = model.example_inputs()
        elif loaded:
            try_inputs(model, args)
    if args is None and kwargs is None:
        raise CompileError("example arguments are missing", hint="pccompile.compile(model, (x,))")
    return model, args or (), locate


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


def _called(program: ExportedProgram) -> nn.Module:
    try:
        return program.module()
    except Exception as e:
        raise CompileError(f"the exported program cannot be called: {printable(str(e), 120)}") from e


def load_program(path: Path, trust_code: bool) -> ExportedProgram:
    """The exported program in a .pt2 file, which may run any code. Raises CompileError, also if it is not trusted."""
    with open_file(path) as file:
        if not trust_code:
            raise CompileError(
                f"{printable(str(path))} is not opened: a .pt2 file can run any code while torch loads it",
                hint="if you trust who made it, --trust-code, or compile(..., trust_code=True)",
            )
        return _loaded(path, file)


def _loaded(path: Path, file: BinaryIO) -> ExportedProgram:
    try:
        return torch.export.load(file)
    except Exception as e:
        raise CompileError(f"{printable(str(path))} is not an exported program: {printable(str(e), 120)}") from e


def _from_program(program: ExportedProgram, options: Options, loss: Any, hook: Hook | None, check: bool) -> PCModule:
    """A module from a program that was exported before; it can be called in that one form only."""
    model = _called(program)
    imported = import_program(program, model)
    pc = PCModule(model, options, loss, recapture=False, hook=hook, check=check)
    args, kwargs = program.example_inputs or ((), {})
    pc.adopt(imported, tuple(args), kwargs)
    pc.prepare(tuple(args), kwargs)
    return said(pc)


def register_elementwise(op: Any, formula: Callable[..., Any]) -> None:
    """Teach the compiler a torch operator of your own by one sympy expression.

    op: what `torch.library.custom_op` returns. formula: from sympy symbols, one a tensor argument, to an expression,
    such as `lambda x: x * sympy.tanh(sympy.log(1 + sympy.exp(x)))`. The derivative, the local rule and the generated
    code follow; unstable textbook forms are replaced by stable ones. Raises TypeError and ValueError.
    """
    user_elementwise(op, formula)


def register_linear(op: Any, adjoint: Callable[..., Tensor]) -> None:
    """Teach the compiler a torch operator of your own that is linear in its first argument, by its adjoint.

    op: what `torch.library.custom_op` returns. adjoint: a torch function of the error of the result and the operator's
    other arguments, such as `lambda error, step: ...`; a parameter called `shape` is given the first argument's shape.
    It is traced into operations when a model is compiled. Raises TypeError.
    """
    user_linear(op, adjoint)


def register_onnx(*names: str, domain: str, weights: tuple[int, ...] = ()) -> Callable[[Callable[..., Any]], Any]:
    """A decorator that teaches the importer ONNX operators of your own domain by one torch function.

    The function takes the node, whose attributes are `node.get("alpha", 1.0)`, and the node's inputs, each annotated
    `torch.Tensor` (`torch.Tensor | None` where it may be absent). weights: inputs that are learnable even where a file
    holds them as constants. Raises TypeError for another annotation, ValueError for the domain of ONNX itself.
    """
    if domain in ("", "ai.onnx"):
        raise ValueError("operators of ONNX itself are not redefined; use a domain of your own")
    return operator(*names, domain=domain, weights=weights)
