"""One node run here and by onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import helper

import pccompile.onnx_backend as backend


def agree(op_type, inputs, outputs=1, domain="", version=20, rtol=1e-4, atol=1e-5, **attributes):
    """Both yield the same for the node on `inputs`, None being an absent one; `version` is that of the domain."""
    names = ["" if value is None else f"x{i}" for i, value in enumerate(inputs)]
    node = helper.make_node(op_type, names, [f"y{i}" for i in range(outputs)], domain=domain, **attributes)
    given = {name: np.asarray(value) for name, value in zip(names, inputs, strict=True) if name}
    entries = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in given.items()
    ]
    graph = helper.make_graph([node], "g", entries, [onnx.ValueInfoProto(name=n) for n in node.output])
    opsets = [helper.make_opsetid(domain, version)] + ([helper.make_opsetid("", 20)] if domain else [])
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, given)
    for got, wanted in zip(backend.run_model(made, given), expected, strict=True):
        if isinstance(wanted, list):
            assert [list(row) for row in got] == [list(row) for row in wanted]
            assert np.allclose([list(r.values()) for r in got], [list(r.values()) for r in wanted])
            continue
        assert got.dtype == wanted.dtype
        assert got.shape == wanted.shape
        if wanted.dtype == object:
            assert got.tolist() == wanted.tolist()
        else:
            assert np.allclose(got, wanted, rtol=rtol, atol=atol, equal_nan=True), (got, wanted)
