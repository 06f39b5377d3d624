"""The functions that a user calls: a model of any kind in, a module with predictive-coding gradients out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pccompile.diagnostics import CompileError, printable
from pccompile.driver import Hook, Options
from pccompile.frontends.exported import import_program
from pccompile.frontends.onnx import OnnxModule, load_onnx
from pccompile.frontends.onnx import location_of as onnx_location
from pccompile.frontends.onnx.registry import operator
from pccompile.module import PCModule
from pccompile.ops import user_elementwise, user_linear


def compile(
    model: Any,
    args: tuple[Any, ...] | Tensor | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    algorithm: str = "exact",
    granularity: str | None = None,
    loss: Callable[..., Tensor] | None = None,
    hook: Hook | None = None,
    **settings: Any,
) -> PCModule:
    """`model` as a module whose backward pass is predictive coding.

    model: an nn.Module, an fx.GraphModule, an ExportedProgram, a path to an .onnx or .pt2 file, or an ONNX ModelProto.
    args, kwargs: example arguments; an exported program and an ONNX file bring their own.
    dynamic_shapes: as torch.export takes it; by default dimension 0 of every input is free.
    algorithm: "exact", "fixed-prediction" or "strict". granularity: what a vertex is, "op" or "layer".
    loss: loss(output, target), a scalar, for `pc.loss(...)`.
    settings: what the algorithm takes: steps, rate, and for fixed prediction tolerance and lowering.
    Raises CompileError with every reason why the model cannot be compiled.
    """
    options = Options(algorithm, granularity, settings)
    if isinstance(args, Tensor):
        args = (args,)
    if isinstance(model, str | os.PathLike) and Path(model).suffix == ".pt2":
        model = load_program(Path(model))
    if isinstance(model, ExportedProgram):
        return _from_program(model, options, loss, hook)
    locate = None
    if not isinstance(model, nn.Module):
        model = load_onnx(model)
    if isinstance(model, OnnxModule):
        locate = onnx_location
        args = model.example_inputs() if args is None else args
    if args is None and kwargs is None:
        raise CompileError("example arguments are missing", hint="pccompile.compile(model, (x,))")
    pc = PCModule(model, options, loss, dynamic_shapes, locate, hook=hook)
    pc.prepare(args or (), kwargs)
    return pc


def load_program(path: Path) -> ExportedProgram:
    """The exported program in a .pt2 file. Raises CompileError."""
    try:
        return torch.export.load(str(path))
    except Exception as e:
        raise CompileError(f"{printable(str(path))} is not an exported program: {printable(str(e), 120)}") from e


def _from_program(program: ExportedProgram, options: Options, loss: Any, hook: Hook | None) -> PCModule:
    """A module from a program that was exported before; it can be called in that one form only."""
    try:
        model = program.module()
    except Exception as e:
        raise CompileError(f"the exported program cannot be called: {printable(str(e), 120)}") from e
    imported = import_program(program, model)
    pc = PCModule(model, options, loss, recapture=False, hook=hook)
    args, kwargs = program.example_inputs or ((), {})
    pc.adopt(imported, tuple(args), kwargs)
    pc.prepare(tuple(args), kwargs)
    return pc


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
