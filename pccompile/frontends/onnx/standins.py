"""Operators on element types that torch does not compute with: text, numbers of few bits, wide unsigned integers.

The operator computes on tensors that stand for them, and results are turned back. Strings are stood for by their ranks
among all that the operator reads, so that equality and order hold; narrow numbers by the wider type that holds them;
unsigned integers of more than 8 bits by int64. Which results have to be turned back is what ONNX's definition of the
operator says: those whose type has the same variable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx.registry import Node, Operator
from pccompile.frontends.onnx.values import (
    Host,
    LowPrecision,
    StringArray,
    Value,
    as_tensor,
    described,
    tracing,
    type_name,
)

UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
MODULAR = frozenset(
    {"Add", "Sub", "Mul", "Sum", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "Equal", "Where", "Concat"}
    | {"Reshape", "Transpose", "Gather", "GatherElements", "GatherND", "Slice", "Split", "Squeeze", "Unsqueeze", "Tile"}
    | {"Expand", "Flatten", "MatMul", "Gemm", "ScatterND", "ScatterElements", "Pad", "Trilu", "Compress"}
)
"""Operators for which a uint64 may as well be the int64 of the same bits."""

Back = Callable[[Any], Value]


def computed(node: Node, operator: Operator, values: list[Value], run: Callable[..., list[Value]]) -> Any:
    """What `operator` returns for `values`, by way of stand-ins where they hold what torch does not compute with."""
    foreign = [i for i, v in enumerate(values) if is_foreign(v) and operator.kind(i) in ("Tensor", "Operand")]
    if not foreign:
        return operator(node, values, run)
    variables, results = type_variables(node.op_type, node.domain, node.opset)
    values, backs = list(values), {}
    for variable in {variable_of(variables, i) for i in foreign}:
        places = [i for i, v in enumerate(values) if v is not None and variable_of(variables, i) == variable]
        check(node, variable, [values[i] for i in places])
        stood, backs[variable] = stand_ins(node, [values[i] for i in places])
        for place, tensor in zip(places, stood, strict=True):
            values[place] = tensor
    outputs = operator(node, values, run)
    outputs = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
    return [
        backs[v](o) if (v := variable_of(results, i)) in backs and isinstance(o, Tensor) else o
        for i, o in enumerate(outputs)
    ]


def is_foreign(value: Value) -> bool:
    """Whether torch does not compute with values of this type."""
    return isinstance(value, (StringArray, LowPrecision)) or (
        isinstance(value, (Tensor, Host)) and value.dtype in UNSIGNED
    )


Variables = tuple[tuple[str, ...], bool]


@cache
def type_variables(op_type: str, domain: str, opset: int) -> tuple[Variables, Variables]:
    """The type variables of an operator's inputs and outputs, and whether the last of them repeats."""
    try:
        schema = onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return ((), False), ((), False)
    many = onnx.defs.OpSchema.FormalParameterOption.Variadic
    return tuple(  # type: ignore[return-value]
        (tuple(f.type_str for f in formals), bool(formals) and formals[-1].option == many)
        for formals in (schema.inputs, schema.outputs)
    )


def variable_of(variables: Variables, index: int) -> str:
    """The type variable of argument `index`; of what ONNX does not know, none that anything shares."""
    names, repeats = variables
    if index < len(names):
        return names[index]
    return names[-1] if repeats else f"#{index}"


@cache
def allowed(op_type: str, domain: str, opset: int, variable: str, kind: str) -> bool:
    """Whether ONNX's definition of an operator lets a type variable be the element type `kind`."""
    try:
        constraints = onnx.defs.get_schema(op_type, opset, domain).type_constraints
    except onnx.defs.SchemaError:
        return False
    wanted = f"tensor({kind})"
    return variable == wanted or any(
        c.type_param_str == variable and wanted in c.allowed_type_strs for c in constraints
    )


def check(node: Node, variable: str, values: Sequence[Value]) -> None:
    """Raise CompileError where the operator is not defined for the values' element type."""
    for value in values:
        if isinstance(value, (StringArray, LowPrecision)):
            kind = type_name(value.code) if isinstance(value, LowPrecision) else "string"
            if not allowed(node.op_type, node.domain, node.opset, variable, kind):
                raise CompileError(f"{node.op_type} does not take {described(value)}")


def stand_ins(node: Node, values: Sequence[Value]) -> tuple[list[Tensor], Back]:
    """The tensors that stand for values of one element type, and what turns such a tensor back."""
    texts = [v for v in values if isinstance(v, StringArray)]
    if texts:
        if len(texts) < len(values):
            raise CompileError(f"{node.op_type} of {', '.join(map(described, values))}")
        return ranked(texts)
    codes = {v.code for v in values if isinstance(v, LowPrecision)}
    if codes:
        if len(codes) > 1 or not all(isinstance(v, LowPrecision) for v in values):
            raise CompileError(f"{node.op_type} of {', '.join(map(described, values))}")
        (code,) = codes
        return [v.tensor for v in values if isinstance(v, LowPrecision)], lambda t: LowPrecision(t, code)
    tensors = [as_tensor(v) for v in values]
    dtype = tensors[0].dtype
    if dtype is not torch.uint64:
        return [t.to(torch.int64) for t in tensors], lambda t: t.to(dtype)
    signed = [t.view(torch.int64) for t in tensors]
    if node.op_type not in MODULAR and (any(map(tracing, tensors)) or any(bool((t < 0).any()) for t in signed)):
        raise CompileError(f"{node.op_type} of uint64, which is or may be beyond 2**63 - 1")
    return signed, lambda t: t.view(torch.uint64)


def ranked(texts: Sequence[StringArray]) -> tuple[list[Tensor], Back]:
    """The ranks of strings among all of `texts` and the empty string, whose rank is 0, and what turns ranks back."""
    everything = np.concatenate([np.array([""], dtype=object), *(t.array.reshape(-1) for t in texts)])
    words, ranks = np.unique(everything, return_inverse=True)
    ends = np.cumsum([t.array.size for t in texts])
    parts = np.split(ranks[1:], ends[:-1])
    tensors = [torch.from_numpy(p.reshape(t.array.shape)) for p, t in zip(parts, texts, strict=True)]

    def back(result: Tensor) -> StringArray:
        if tracing(result):
            raise CompileError("which text it is depends on the data, so the graph has no fixed form")
        return StringArray(np.asarray(words[result.numpy()], dtype=object).reshape(tuple(result.shape)))

    return tensors, back
