"""Functions replaced by what they consist of, and old operator sets by newer ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import onnx
import onnx.defs
import onnx.inliner
import onnx.shape_inference
import onnx.version_converter

from pccompile.diagnostics import CompileError, Location, listing
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
        while bodies := function_bodies(model):
            model = onnx.shape_inference.infer_shapes(model)  # some bodies depend on types
            if with_own_bodies(model, bodies):
                model = onnx.inliner.inline_local_functions(model)
            else:
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
    """Give nodes whose body depends on their inputs' types a function of their own, in place; how many.

    The inliner would ask for the types itself, but knows none of initializers, of what a subgraph makes, and of inputs
    that are absent, and fails.
    """
    versions = {o.domain: o.version for o in model.opset_import}
    domain = OWN_DOMAIN
    while domain in versions:
        domain += "_"
    count = 0
    for node, types in typed_nodes(model.graph, {}):
        if (node.domain, node.op_type) not in bodies:
            continue
        # Any: what bodies need is absent from onnx's type stubs
        schema: Any = onnx.defs.get_schema(node.op_type, versions[node.domain], node.domain)
        if not schema.has_context_dependent_function:
            continue
        version = max(v for v in schema.context_dependent_function_opset_versions if v <= versions[node.domain])
        known = [types.get(i, onnx.TypeProto()).SerializeToString() for i in node.input]
        try:
            body = schema.get_context_dependent_function_with_opset_version(version, node.SerializeToString(), known)
        except Exception as error:
            unknown = listing([i for i in node.input if i and i not in types])
            reason = f"the type of {unknown} is unknown" if unknown else first_line(error)
            raise CompileError(
                f"{node.op_type} is defined by other operators according to its inputs' types, and {reason}",
                Location(checks.label(node)),
            ) from None
        function = onnx.FunctionProto.FromString(body)
        for opset in function.opset_import:  # that of the body's first version, which holds for the model's too
            opset.version = versions.get(opset.domain, opset.version)
        count += 1
        function.domain, function.name = domain, f"{node.op_type}_{count}"
        node.domain, node.op_type = function.domain, function.name
        model.functions.append(function)
    if count:
        model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    return count


def typed_nodes(
    graph: onnx.GraphProto, outer: Mapping[str, onnx.TypeProto]
) -> Iterator[tuple[onnx.NodeProto, Mapping[str, onnx.TypeProto]]]:
    """Each node, subgraphs' nodes included, with the types of the values that it can read, as far as they are known."""
    types = dict(outer)
    types |= {v.name: v.type for v in (*graph.value_info, *graph.output, *graph.input) if v.HasField("type")}
    tensors = [(t.name, t.data_type, t.dims) for t in graph.initializer]
    tensors += [(t.values.name, t.values.data_type, t.dims) for t in graph.sparse_initializer]
    types |= {name: onnx.helper.make_tensor_type_proto(code, list(sizes)) for name, code, sizes in tensors}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from typed_nodes(attribute.g, types)
        yield node, types
