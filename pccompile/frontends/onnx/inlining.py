"""Functions replaced by what they consist of, and old operator sets by newer ones."""

from __future__ import annotations

from typing import Any

import onnx
import onnx.defs
import onnx.inliner
import onnx.shape_inference
import onnx.version_converter

from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx import checks
from pccompile.frontends.onnx.registry import find
from pccompile.frontends.onnx.tensors import first_line

OLDEST_OPSET = 7
"""Older operator sets are converted: their arithmetic does not broadcast as everybody expects today."""

OWN_DOMAIN = "pccompile.bodies"


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with functions inlined and its operators at a version that has rules."""
    try:
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        model = converted(model)
        bodies = function_bodies(model)
        if bodies:
            model = onnx.shape_inference.infer_shapes(model)  # some bodies depend on types
            if with_own_bodies(model, bodies):
                model = onnx.inliner.inline_local_functions(model)
            model = onnx.inliner.inline_selected_functions(model, bodies, inline_schema_functions=True)
    except CompileError:
        raise
    except Exception as error:
        raise CompileError(f"the model's functions cannot be inlined: {first_line(error)}") from None
    return model


def converted(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with an operator set that is not older than ours."""
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), OLDEST_OPSET)
    if version >= OLDEST_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OLDEST_OPSET)
    except Exception as error:
        raise CompileError(
            f"operator set version {version} cannot be converted to {OLDEST_OPSET}: {first_line(error)}",
            hint="export the model again with a newer operator set",
        ) from None


def function_bodies(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """The operators without a rule that ONNX itself defines by others."""
    missing = {(n.domain, n.op_type) for n in checks.all_nodes(model.graph) if find(n.domain, n.op_type) is None}
    versions = {o.domain: o.version for o in model.opset_import}
    return [key for key in sorted(missing) if key[1] != "Constant" and has_body(*key, versions.get(key[0], 1))]


def has_body(domain: str, op_type: str, version: int) -> bool:
    """Whether ONNX defines an operator by others."""
    try:
        schema = onnx.defs.get_schema(op_type, version, "" if domain == "ai.onnx" else domain)
    except onnx.defs.SchemaError:
        return False
    # absent from onnx's type stubs
    return any(getattr(schema, flag) for flag in ("has_function", "has_context_dependent_function"))


def with_own_bodies(model: onnx.ModelProto, bodies: list[tuple[str, str]]) -> int:
    """Give nodes with a body and absent inputs a function of their own, in place; how many.

    The inliner asks for the types of all inputs, those that are absent among them, and fails.
    """
    types = {v.name: v.type for g in checks.graphs_of(model.graph) for v in (*g.input, *g.value_info, *g.output)}
    versions = {o.domain: o.version for o in model.opset_import}
    count = 0
    for node in list(checks.all_nodes(model.graph)):
        if (node.domain, node.op_type) not in bodies or all(node.input):
            continue
        # Any: what bodies need is absent from onnx's type stubs
        schema: Any = onnx.defs.get_schema(node.op_type, versions[node.domain], node.domain)
        if not schema.has_context_dependent_function or any(i and i not in types for i in node.input):
            continue
        given = [(types[i] if i else onnx.TypeProto()).SerializeToString() for i in node.input]
        function = onnx.FunctionProto.FromString(
            schema.get_context_dependent_function_with_opset_version(
                versions[node.domain], node.SerializeToString(), given
            )
        )
        count += 1
        function.domain, function.name = OWN_DOMAIN, f"{node.op_type}_{count}"
        node.domain, node.op_type = function.domain, function.name
        model.functions.append(function)
    if count:
        model.opset_import.append(onnx.helper.make_opsetid(OWN_DOMAIN, 1))
    return count
