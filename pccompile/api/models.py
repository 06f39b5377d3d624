"""What may be given as a model, and what it is as a module: ONNX files, exported programs, compiled models."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeGuard

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy

from pccompile.diagnostics import CompileError, Location, listing, printable
from pccompile.files.reading import open_file, untrusted
from pccompile.frontends.imported import Locate
from pccompile.frontends.refusal_hints import refuse_kinds
from pccompile.runtime.module import CompiledModule

if TYPE_CHECKING:
    from pccompile.frontends.onnx import OnnxModule

ONNX = "pccompile.frontends.onnx"
"""Imported where an ONNX file is read, and not before: it takes time, and the package onnx."""


def load_onnx(model: Any, **how: Any) -> OnnxModule:
    """An ONNX file as a module. Raises CompileError, also where the package onnx is absent."""
    try:
        room = import_module(ONNX)
    except ModuleNotFoundError as e:
        needed = printable(e.name or "onnx")
        raise CompileError(f"{needed} is not installed: ONNX files need it", hint=f"pip install {needed}") from None
    return room.load_onnx(model, **how)  # type: ignore[no-any-return]


def is_onnx(model: Any) -> TypeGuard[OnnxModule]:
    """Whether a model came from an ONNX file; none did before that room was imported."""
    return ONNX in sys.modules and isinstance(model, sys.modules[ONNX].OnnxModule)


def as_module(
    model: Any,
    args: tuple[Any, ...] | Tensor | None,
    kwargs: Mapping[str, Any] | None,
    trust_code: bool = False,
) -> tuple[nn.Module, tuple[Any, ...], Locate | None]:
    """What `compile` takes as a module, with example arguments and with what finds the places of its operations.

    Raises CompileError where arguments are missing.
    """
    if isinstance(model, CompiledModule):
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
        model = called(model)
    locate: Locate | None = None
    loaded = not isinstance(model, nn.Module)
    if loaded:
        model = load_onnx(model)
    if is_onnx(model):
        from pccompile.frontends.onnx import location_of
        from pccompile.frontends.onnx.examples import try_inputs

        locate = location_of
        if args is None:
            args = model.example_inputs()
        elif loaded:
            try_inputs(model, args)
    if args is None and kwargs is None:
        raise CompileError("example arguments are missing", hint="pccompile.compile(model, (x,))")
    _refuse_lazy(model)
    refuse_kinds(model, (args, kwargs))
    return model, args or (), locate


def _refuse_lazy(model: nn.Module) -> None:
    """Raise CompileError for parameters and buffers that get their shapes at the model's first call."""
    waiting = [name for name, t in (*model.named_parameters(), *model.named_buffers()) if is_lazy(t)]
    if waiting:
        what = f"{listing(waiting)} {'has' if len(waiting) == 1 else 'have'} no shape before the model is first called"
        raise CompileError(what, Location(waiting[0].rpartition(".")[0]), "call the model once, then compile it")


def with_constants(model: Any, constants: Mapping[str, Any]) -> OnnxModule:
    """An ONNX file, loaded with some numbers fixed. Raises CompileError for another model."""
    if isinstance(model, nn.Module | ExportedProgram) or (
        isinstance(model, str | os.PathLike) and Path(model).suffix == ".pt2"
    ):
        raise CompileError("constants go with an ONNX file", hint="of a module, give the numbers as arguments")
    return load_onnx(model, constants=constants)


def load_program(path: Path, trust_code: bool) -> ExportedProgram:
    """The exported program in a .pt2 file, which may run any code. Raises CompileError, also if it is not trusted."""
    with open_file(path) as file:
        if not trust_code:
            raise untrusted(path)
        return _loaded(path, file)


def _loaded(path: Path, file: BinaryIO) -> ExportedProgram:
    try:
        return torch.export.load(file)
    except Exception as e:
        raise CompileError(f"{printable(str(path))} is not an exported program: {printable(str(e), 120)}") from e


def called(program: ExportedProgram) -> nn.Module:
    """An exported program as a module. Raises CompileError where it cannot be called."""
    try:
        return program.module()
    except Exception as e:
        raise CompileError(f"the exported program cannot be called: {printable(str(e), 120)}") from e
