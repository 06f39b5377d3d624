"""What another runtime makes of an ONNX file: onnxruntime, or the slow reference of the onnx package."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from onnx.version_converter import convert_version
from torch import Tensor

from pccompile.diagnostics import CompileError, printable
from pccompile.frontends.onnx import OnnxModule, randomize
from pccompile.frontends.onnx.boundary import from_numpy, to_numpy
from pccompile.frontends.onnx.given_numbers import with_initializers
from pccompile.frontends.onnx.names import lookup
from pccompile.frontends.onnx.runner import as_output
from pccompile.frontends.onnx.values import DTYPES
from pccompile.ops import definition
from pccompile.report.gradients import Bench
from pccompile.report.judgement import Engine, judge
from pccompile.report.tables import count
from pccompile.report.verify import Forward, VerifyReport, verify
from pccompile.runtime.module import CompiledModule

INSTALL = 'pip install "pccompile[check]"'
SECONDS = 60.0
"""What the reference evaluator may take: it is there to be right, not to be fast."""

VERSIONS = (21, 25)
"""The evaluator knows some operators in newer versions only: a file is converted to these until it runs."""

Run = Callable[["onnx.ModelProto | Path", list[str], Mapping[str, Any]], Sequence[Any]]
NARROWER: dict[int, frozenset[int]] = {
    TensorProto.FLOAT: frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16}),
    TensorProto.DOUBLE: frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT}),
}
TYPES = frozenset({"to", "dtype", "output_datatype", "output_dtype", "stash_type", "softmax_precision", "precision"})
"""Attributes that name an element type."""
IMPLIED = {
    "HannWindow": "output_datatype",
    "HammingWindow": "output_datatype",
    "BlackmanWindow": "output_datatype",
    "MelWeightMatrix": "output_datatype",
}
"""Operators that yield float32 where this attribute is absent."""


def require_onnxruntime() -> None:
    """Raise CompileError where onnxruntime is not installed."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        raise CompileError(
            "--verify compares ONNX files with onnxruntime, which is not installed", hint=INSTALL
        ) from None


def constant_weights(module: OnnxModule) -> list[str]:
    """The weights, of more than one entry, that are one number throughout: gradients through them mean nothing."""
    weights = {n: lookup(module, path) for n, path in module.parameter_names.items()}
    return [n for n, w in weights.items() if w.dim() > 1 and w.numel() > 1 and bool((w == w.reshape(-1)[0]).all())]


class File:
    """An ONNX file as other engines run it, with the inputs of a module, and its weights where they were drawn anew."""

    def __init__(self, path: Path, module: OnnxModule, inputs: Sequence[Tensor], redrawn: bool) -> None:
        self.path, self.names = path, list(module.output_names)
        self.notes: list[str] = []
        self.feed: dict[str, Any] = {n: to_numpy(as_output(v)) for n, v in module.fixed_inputs.items()}
        self.feed |= {t.name: to_numpy(x.cpu()) for t, x in zip(module.input_types, inputs, strict=True)}
        self.changed = with_initializers(onnx.load(path), module.replaced) if module.replaced else None
        self.fits = True
        if redrawn:
            self.changed = with_weights(self.changed or onnx.load(path), module)
            self.fits = self.changed is not None

    def outputs(self) -> tuple[str, list[Tensor] | None]:
        """Who could run the file as it is, onnxruntime or the slow reference of the onnx package, and the outputs."""
        if not self.fits:
            self.notes.append(
                "the forward pass was not compared with onnxruntime: the re-drawn weights do not fit into the file"
            )
            return "", None
        for name, run in (("onnxruntime", _onnxruntime), ("onnx.reference", _reference)):
            outputs = self.run(name, run, self.changed if self.changed is not None else self.path, self.feed)
            if outputs is not None:
                return name, outputs
        return "", None

    def engines(self, coarsest: torch.dtype) -> Iterator[Engine]:
        """Those that can run the file in wider numbers, the faster one first."""
        if not self.fits:
            return
        if torch.finfo(coarsest).bits < 32:
            yield "onnxruntime in float32", partial(self.wider, _onnxruntime, TensorProto.FLOAT), torch.float32
        yield "onnx.reference in float64", partial(self.wider, _reference, TensorProto.DOUBLE), torch.float64

    def wider(self, run: Run, code: int) -> list[Tensor] | None:
        """The outputs of the file in wider numbers, None where this engine cannot."""
        model = widened(self.changed if self.changed is not None else onnx.load(self.path), code)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(code)
        feed = {n: a.astype(dtype) if _is_narrower(a, code) else a for n, a in self.feed.items()}
        name = "onnxruntime in float32" if code == TensorProto.FLOAT else "onnx.reference in float64"
        return self.run(name, run, model, feed)

    def run(self, name: str, run: Run, model: onnx.ModelProto | Path, feed: Mapping[str, Any]) -> list[Tensor] | None:
        """The outputs of an engine, None where it cannot; the notes then say why."""
        try:
            results = run(model, self.names, feed)
        except Exception as e:
            line = (str(e).strip().splitlines() or [type(e).__name__])[0]
            self.notes.append(f"{name} cannot run the file: {printable(line, 160)}")
            return None
        if not all(isinstance(r, np.ndarray | np.generic) and np.asarray(r).dtype.kind not in "OUS" for r in results):
            self.notes.append(f"{name} returns what is no tensor")
            return None
        return [from_numpy(r) for r in results]


def _is_narrower(array: Any, code: int) -> bool:
    return onnx.helper.np_dtype_to_tensor_dtype(array.dtype) in NARROWER[code]


def _onnxruntime(model: onnx.ModelProto | Path, names: list[str], feed: Mapping[str, Any]) -> Sequence[Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    known = {i.name for i in session.get_inputs()}
    return session.run(names, {k: v for k, v in feed.items() if k in known})  # type: ignore[no-any-return]


def _reference(model: onnx.ModelProto | Path, names: list[str], feed: Mapping[str, Any]) -> Sequence[Any]:
    """Raises TimeoutError where it takes too long, and what the evaluator raises where it cannot run the file."""
    source = onnx.load(model) if isinstance(model, Path) else model
    failure: Exception | None = None
    for version in (None, *VERSIONS):
        try:
            return _evaluated(source if version is None else convert_version(source, version), names, feed)
        except TimeoutError:
            raise
        except Exception as e:
            failure = failure or e
    assert failure is not None
    raise failure


def _evaluated(model: onnx.ModelProto, names: list[str], feed: Mapping[str, Any]) -> Sequence[Any]:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(model)
    end = time.monotonic() + SECONDS
    evaluator.rt_nodes_ = [_Timed(node, end) for node in evaluator.rt_nodes_]
    known = set(evaluator.input_names)
    return list(evaluator.run(names, {k: v for k, v in feed.items() if k in known}))


class _Timed:
    """A node of the reference evaluator that does not begin after `end`."""

    def __init__(self, node: Any, end: float) -> None:
        self.node, self.end = node, end

    def __getattr__(self, name: str) -> Any:
        return getattr(self.node, name)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        if time.monotonic() > self.end:
            raise TimeoutError(f"it takes more than {SECONDS:.0f} s")
        return self.node.run(*args, **kwargs)


def with_weights(model: onnx.ModelProto, module: OnnxModule) -> onnx.ModelProto | None:
    """`model` with the weights that `module` has now, as initializers; None where it does not know them all."""
    kept = {c.name: lookup(module, c.path) for c in module.graph.constants.values() if c.path}
    graph = model.graph
    made = {o for n in graph.node for o in n.output} | {i.name for i in graph.initializer}
    if not set(kept) <= made or any(len(n.output) > 1 and set(n.output) & set(kept) for n in graph.node):
        return None
    nodes = [n for n in graph.node if not set(n.output) & set(kept)]
    initializers = [i for i in graph.initializer if i.name not in kept]
    initializers += [numpy_helper.from_array(to_numpy(t.cpu()), name) for name, t in kept.items()]
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.node[:], changed.graph.initializer[:]
    changed.graph.node.extend(nodes)
    changed.graph.initializer.extend(initializers)
    return changed


def verify_file(pc: CompiledModule, path: Path, args: tuple[Tensor, ...], seed: int, **settings: Any) -> VerifyReport:
    """`report.verify.verify` for a compiled ONNX file, its forward pass against another runtime's.

    Weights that are one number throughout are drawn anew meanwhile.
    """
    module = pc.__dict__["model"]
    assert isinstance(module, OnnxModule)
    notes: list[str] = []
    constant = constant_weights(module)
    if constant:
        notes.append(f"drawn anew: {count(len(constant), 'weight')} of one number throughout")
    with ExitStack() as stack:
        drawn = stack.enter_context(redrawn(module, seed)) if constant else []
        notes += scaled(pc, drawn, args, seed)
        if any(definition(n.op).random for n in pc.compiled.graph.nodes):
            notes.append("the model draws random numbers: its outputs were compared with its own in torch")
            return verify(pc, args, seed=seed, notes=notes, **settings)

        def verdict(own: Bench, wide: Bench) -> tuple[Forward, list[str]]:
            file = File(path, module, args, bool(constant))
            name, expected = file.outputs()
            forward, said = judge(own, wide, coarsest(module), name, expected, file.engines(coarsest(module)))
            return forward, [*file.notes, *said]

        return verify(pc, args, seed=seed, notes=notes, judge=verdict, **settings)


def coarsest(module: OnnxModule) -> torch.dtype:
    """The floating-point type of fewest digits that the file names."""
    graphs = list(module.graph.subgraphs())
    types = [t.dtype for t in module.input_types] + [
        c.dtype for g in graphs for c in g.constants.values() if not c.code
    ]
    for node in (n for g in graphs for n in g.nodes):
        codes = [v for k, v in node.attributes.items() if k in TYPES and isinstance(v, int)]
        types += [DTYPES[code] for code in codes if code in DTYPES]
    floating = [t for t in types if t.is_floating_point]
    return max(floating, key=lambda t: torch.finfo(t).eps, default=torch.float32)


@contextmanager
def redrawn(module: OnnxModule, seed: int) -> Iterator[list[Tensor]]:
    """Weights of one number throughout are random inside; gives those."""
    tensors = [*module.parameters(), *module.buffers()]
    before = [
        (t, t.detach().reshape(-1)[0].clone()) for t in tensors if t.numel() > 1 and bool((t == t.reshape(-1)[0]).all())
    ]
    randomize(module, seed)
    try:
        yield [tensor for tensor, _ in before]
    finally:
        with torch.no_grad():
            for tensor, value in before:
                tensor.fill_(value)


def scaled(pc: CompiledModule, drawn: list[Tensor], args: tuple[Tensor, ...], seed: int) -> list[str]:
    """Shrink `drawn` weights until most gradients are not 0: a saturated softmax would let nothing through."""
    weights = [t for t in drawn if t.dim() > 1]
    factor = 1.0
    while weights and factor > 0.02:
        gradients = Bench(pc, args, {}, None, None, seed).autograd().values()
        if 2 * sum(g is not None and bool(g.any()) for g in gradients) > len(gradients):
            break
        factor *= 0.7
        with torch.no_grad():
            for weight in weights:
                weight.mul_(0.7)
    return [f"the weights were scaled by {factor:.2g}, as the outputs were saturated"] if factor < 1 else []


def widened(model: onnx.ModelProto, code: int) -> onnx.ModelProto:
    """A copy of `model` whose floating-point numbers, where they are narrower, have ONNX's element type `code`.

    Another engine can so say what the file computes but for rounding.
    """
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    widen_graph(wide.graph, code)
    for function in wide.functions:
        widen_nodes(function.node, code)
        for entry in function.value_info:
            widen_type(entry.type, code)
    return wide


def widen_graph(graph: onnx.GraphProto, code: int) -> None:
    """Change a graph and its subgraphs in place."""
    for tensor in graph.initializer:
        widen_tensor(tensor, code)
    for sparse in graph.sparse_initializer:
        widen_tensor(sparse.values, code)
    for entry in (*graph.input, *graph.output, *graph.value_info):
        widen_type(entry.type, code)
    widen_nodes(graph.node, code)


def widen_nodes(nodes: Iterable[onnx.NodeProto], code: int) -> None:
    """Change what the attributes of nodes hold and name, in place."""
    for node in nodes:
        for attribute in node.attribute:
            widen_attribute(attribute, code)
        names = {a.name for a in node.attribute}
        if code == TensorProto.DOUBLE and not node.domain:
            if node.op_type == "ConstantOfShape" and "value" not in names:
                zero = numpy_helper.from_array(np.zeros(1))
                node.attribute.append(onnx.helper.make_attribute("value", zero))
            implied = IMPLIED.get(node.op_type)
            if implied and implied not in names:
                node.attribute.append(onnx.helper.make_attribute(implied, code))


def widen_attribute(attribute: onnx.AttributeProto, code: int) -> None:
    """Change one attribute in place; numbers of a Constant node become a tensor."""
    kinds = onnx.AttributeProto
    match attribute.type:
        case kinds.TENSOR:
            widen_tensor(attribute.t, code)
        case kinds.TENSORS:
            for tensor in attribute.tensors:
                widen_tensor(tensor, code)
        case kinds.GRAPH:
            widen_graph(attribute.g, code)
        case kinds.TYPE_PROTO:
            widen_type(attribute.tp, code)
        case kinds.INT if attribute.name in TYPES and attribute.i in NARROWER[code]:
            attribute.i = code
        case kinds.FLOAT | kinds.FLOATS if attribute.name in ("value_float", "value_floats"):
            numbers = np.array(attribute.f if attribute.type == kinds.FLOAT else list(attribute.floats), np.float32)
            if TensorProto.FLOAT in NARROWER[code]:
                tensor = numpy_helper.from_array(numbers.astype(np.float64))
                attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))


def widen_tensor(tensor: onnx.TensorProto, code: int) -> None:
    """Change the element type of a tensor in place."""
    if tensor.data_type in NARROWER[code]:
        array: np.ndarray[Any, Any] = numpy_helper.to_array(tensor)
        wide = array.astype(onnx.helper.tensor_dtype_to_np_dtype(code))
        tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))


def widen_type(kind: onnx.TypeProto, code: int) -> None:
    """Change the element type that a type names, in place."""
    match kind.WhichOneof("value"):
        case "tensor_type" if kind.tensor_type.elem_type in NARROWER[code]:
            kind.tensor_type.elem_type = code
        case "sequence_type":
            widen_type(kind.sequence_type.elem_type, code)
        case "optional_type":
            widen_type(kind.optional_type.elem_type, code)
