"""Gradients of the ONNX project's own operator cases.

The compiled model's gradients are compared with central differences of `onnx.reference.ReferenceEvaluator`, which
shares no code with ours. Both run in float64: `widened` turns every floating-point type of a case into it. A case is
judged where the reference yields what the case expects and draws nothing at random, by those inputs by which it is
differentiable: two step sizes and both one-sided slopes agree.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx
import torch
from onnx import AttributeProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

import pccompile
from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx import load_onnx
from pccompile.frontends.onnx.graph import TYPES, uses
from pccompile.frontends.onnx.registry import find
from pccompile.ops import OPS
from suites.onnx_forward import cases as all_cases
from suites.rows import Row

KIND = "gradient"
Arrays = dict[str, Any]
NARROW = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
FLOATS = NARROW | {TensorProto.DOUBLE}
DIRECTIONS = 3
"""Random directions an input, dense ones: an entry that is wrong shows in each of them."""

LARGE = 4096
"""Inputs with more entries get one direction."""

STEPS = (2e-6, 1e-5)
SIDE = 2e-7
TOLERANCE = 1e-4
SOUND = TOLERANCE / 3
"""How far the reference's own slopes may lie apart."""

NOISE = 1e-9
"""Differences below this share of the outputs are rounding."""


class NotJudged(Exception):
    """The reference has no derivative here that could be compared with, and why."""


@cache
def cases() -> Mapping[str, Any]:
    """The cases with a float tensor among the inputs and among the outputs, those with function bodies left out."""
    return {
        n: c for n, c in all_cases().items() if c.kind == "node" and "_expanded" not in n and _has_floats(c.model.graph)
    }


def gradient(name: str) -> list[Row]:
    """The row of one case, or none where there is nothing to judge."""
    case = cases().get(name)
    if case is None:
        return []
    start = time.process_time()
    try:
        slopes = Slopes(case, formal(case.model))
        status, reason = judged(case.model, slopes)
    except NotJudged:
        return []
    passed = int(status == "pass")
    return [Row(name, KIND, status, passed, 1, time.process_time() - start, reason)]


def judged(model: onnx.ModelProto, slopes: Slopes) -> tuple[str, str]:
    """The status of a case, and why."""
    try:
        found = gradients(model, slopes)
    except NotJudged:
        raise
    except CompileError as error:
        text = error.problems[0].what
        return ("not capturable" if text.startswith("torch.export cannot") else "refused"), str(error).split("\n")[0]
    except Exception as error:
        return "fail", f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[
            :200
        ]
    wrong = [
        f"{name}: slopes {_short(got)}, the reference's {_short(wanted)}"
        for name, (got, wanted) in slopes.compared(found).items()
        if np.abs(got - wanted).max() > TOLERANCE * np.abs(wanted).max() + slopes.noise
    ]
    return ("wrong", "; ".join(wrong)) if wrong else ("pass", "")


# the reference


class Slopes:
    """Directional derivatives of a weighted sum of the float outputs, by central differences of the reference."""

    def __init__(self, case: Any, still: frozenset[str]) -> None:
        self.feed, self.still, self.rng = arrays(case), still, np.random.default_rng(0)
        self.run = reference(widened(case.model))
        first = self.outputs({})
        if not expected(case, first):
            raise NotJudged("the reference does not yield what the case expects")
        draw = self.rng.standard_normal
        self.weights = [np.asarray(draw(o.shape) * np.isfinite(o)) if is_float(o) else None for o in first]
        self.noise = NOISE * (1 + sum(np.abs(p).sum() for p in self.products(first)))
        moving = {n: a for n, a in self.feed.items() if is_float(a) and np.isfinite(a).any() and n not in still}
        self.directions = {n: self.drawn(a) for n, a in moving.items()}
        if not moving:
            raise NotJudged("no number can be moved")
        self.known: Arrays = {}
        for name, directions in self.directions.items():
            try:
                self.known[name] = self.slopes(name, directions)
            except NotJudged as error:
                reason = error
        if not self.known:
            raise reason

    def products(self, found: Sequence[Any]) -> list[Any]:
        """The float outputs times their weights, what is not finite left out."""
        pairs = [(o, w) for o, w in zip(found, self.weights, strict=True) if w is not None]
        if any(o.shape != w.shape for o, w in pairs):
            raise NotJudged("the outputs' shape depends on the numbers")
        return [np.asarray(np.where(w == 0, 0, o) * w) for o, w in pairs]

    def outputs(self, moved: Arrays) -> list[Any]:
        """The outputs, the tensors in `moved` replaced."""
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                found = self.run({**self.feed, **moved})
        except Exception as error:
            raise NotJudged(f"the reference fails: {type(error).__name__}") from error
        return [np.asarray(o) for o in found if not isinstance(o, list) and o is not None]

    def drawn(self, array: Any) -> list[Any]:
        """Dense unit directions, 0 where an entry is not finite."""
        count = min(DIRECTIONS, array.size) if array.size <= LARGE else 1
        made = [self.rng.standard_normal(array.shape) * np.isfinite(array) for _ in range(count)]
        return [d / np.linalg.norm(d) for d in made]

    def slopes(self, name: str, directions: Sequence[Any]) -> Any:
        """The central difference along each direction. Raises NotJudged where it is no derivative."""
        size = max(1.0, float(np.abs(self.feed[name][np.isfinite(self.feed[name])]).max()))
        rows = np.array(
            [[self.slope(name, d, size * h) for h in STEPS] + self.sides(name, d, size * SIDE) for d in directions]
        )
        limit = SOUND * np.abs(rows[:, 0]).max() + self.noise
        if not np.isfinite(rows).all() or np.ptp(rows, axis=1).max() > limit:
            raise NotJudged(f"{name}: no derivative, {_short(rows.reshape(-1))}")
        return rows[:, 0]

    def slope(self, name: str, direction: Any, step: float) -> float:
        """The central difference."""
        return (self.total(name, step * direction) - self.total(name, -step * direction)) / (2 * step)

    def sides(self, name: str, direction: Any, step: float) -> list[float]:
        """The slopes to the right and to the left, the mean curvature taken out."""
        here, right, left = (self.total(name, s * step * direction) for s in (0, 1, -1))
        return [(right - here) / step, (here - left) / step]

    def total(self, name: str, shift: Any) -> float:
        """The weighted sum of the outputs with one input moved."""
        return float(sum(p.sum() for p in self.products(self.outputs({name: self.feed[name] + shift}))))

    def compared(self, found: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """For each input that has a gradient, its slopes and the reference's."""
        return {
            n: (np.array([(g * d).sum() for d in self.directions[n]]), self.known[n])
            for n, g in found.items()
            if n in self.known
        }


class LpNormalization(OpRun):
    """As the specification has it: onnx 1.23's own leaves out the absolute value, so that p = 1 has no kink at 0."""

    op_domain = ""

    def _run(self, x: Any, axis: int = -1, p: int = 2) -> tuple[Any]:
        norm = np.linalg.norm(x, p, axis, keepdims=True)
        return (np.where(norm == 0, 0, x / norm),)


def reference(model: onnx.ModelProto) -> Any:
    """The reference's run of `model` on a dict of arrays."""
    try:
        evaluator = ReferenceEvaluator(model, new_ops=[LpNormalization])
    except Exception as error:
        raise NotJudged(f"the reference fails: {type(error).__name__}") from error
    return lambda feed: evaluator.run(None, feed)


# ours


def gradients(model: onnx.ModelProto, slopes: Slopes) -> dict[str, Any]:
    """The compiled model's gradient for each float input that is data; one that arrives nowhere is zero."""
    pc, inputs = compiled(model, slopes)
    if any(n.op in OPS and OPS[n.op].random for n in pc.compiled.graph.nodes):
        raise NotJudged("random numbers are drawn")
    results = pc(*inputs.values())
    results = results if isinstance(results, tuple) else (results,)
    pairs = [(r, torch.from_numpy(w)) for r, w in zip(results, slopes.weights, strict=True) if w is not None]
    total = sum((torch.where(w == 0, 0, r) * w).sum() for r, w in pairs)
    wanted = {n: t for n, t in inputs.items() if t.requires_grad}
    if not total.requires_grad:
        return {n: np.zeros(t.shape) for n, t in wanted.items()}
    found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    return {n: np.zeros(t.shape) if g is None else g.numpy() for (n, t), g in zip(wanted.items(), found, strict=True)}


def compiled(model: onnx.ModelProto, slopes: Slopes) -> tuple[pccompile.PCModule, dict[str, torch.Tensor]]:
    """The compiled model and its inputs, fixed where they are formal or no numbers of torch's; where the model asks for
    more, all integers are fixed."""  # fmt: skip
    least = slopes.still | {n for n, a in slopes.feed.items() if np.asarray(a).dtype.isbuiltin != 1}
    integers = frozenset(n for n, a in slopes.feed.items() if not is_float(a))
    for fixed in (least, least | integers):
        module = load_onnx(model, constants={n: slopes.feed[n] for n in fixed}, dtype=torch.float64)
        inputs = {t.name: torch.from_numpy(np.array(slopes.feed[t.name])) for t in module.input_types}
        inputs = {n: t.requires_grad_(t.is_floating_point()) for n, t in inputs.items()}
        try:
            return pccompile.compile(module, tuple(inputs.values())), inputs
        except CompileError as error:
            if fixed >= integers or "depends on the data" not in str(error):
                raise
    raise AssertionError


def formal(model: onnx.ModelProto) -> frozenset[str]:
    """The inputs that decide the graph's form rather than flow through it: shapes, axes, scales of Resize."""
    try:
        readers = uses(load_onnx(model).graph)
    except CompileError:
        return frozenset()
    slots = {n: [(find(k.domain, k.op_type), i) for k, i in readers.get(n, ())] for n in readers}
    given = {i.name for i in model.graph.input}
    return frozenset(
        n for n, read in slots.items() if n in given and all(op is not None and op.kind(i) == "Host" for op, i in read)
    )


# float64


def arrays(case: Any) -> Arrays:
    """The first data set's inputs by name, floats in float64."""
    given = [numpy_helper.to_array(v) if isinstance(v, TensorProto) else v for v in case.data_sets[0][0]]
    named = dict(zip([i.name for i in case.model.graph.input], given, strict=False))
    return {n: wide(np.asarray(a)) if isinstance(a, np.ndarray | np.generic) else a for n, a in named.items()}


def wide(array: Any) -> Any:
    """`array`, a float one in float64."""
    narrow = array.dtype.name in ("float16", "bfloat16", "float32")
    return array.astype(np.float64) if narrow else array


def expected(case: Any, found: Sequence[Any]) -> bool:
    """Whether `found` are the outputs that the case holds, as far as its precision goes."""
    held = [numpy_helper.to_array(v) if isinstance(v, TensorProto) else v for v in case.data_sets[0][1]]
    held = [np.asarray(v) for v in held if not isinstance(v, list) and v is not None]
    coarse = any(a.dtype.name in ("float16", "bfloat16") for a in (*held, *map(np.asarray, case.data_sets[0][0])))
    limit = 1e-2 if coarse else max(case.rtol, 1e-4)
    return all(
        a.shape == b.shape and (not is_float(wide(a)) or np.allclose(wide(a), b, limit, limit, equal_nan=True))
        for a, b in zip(held, found, strict=True)
    )


def is_float(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.name in ("float16", "float32", "float64")


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with float64 for every narrower floating-point type."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _widen_graph(copy.graph)
    return copy


def _widen_graph(graph: onnx.GraphProto) -> None:
    for entry in (*graph.input, *graph.output, *graph.value_info):
        _widen_type(entry.type)
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                _widen_tensor(attribute.t)
            elif attribute.type == AttributeProto.GRAPH:
                _widen_graph(attribute.g)
            elif attribute.name in TYPES and attribute.i in NARROW:
                attribute.i = TensorProto.DOUBLE


def _widen_type(entry: onnx.TypeProto) -> None:
    kind = entry.WhichOneof("value")
    if kind == "tensor_type" and entry.tensor_type.elem_type in NARROW:
        entry.tensor_type.elem_type = TensorProto.DOUBLE
    elif kind in ("sequence_type", "optional_type"):
        _widen_type(getattr(entry, kind).elem_type)


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in NARROW:
        tensor.CopyFrom(numpy_helper.from_array(wide(numpy_helper.to_array(tensor)), tensor.name))


def _has_floats(graph: onnx.GraphProto) -> bool:
    return all(any(e.type.tensor_type.elem_type in FLOATS for e in side) for side in (graph.input, graph.output))


def _short(numbers: Any) -> str:
    return "[" + ", ".join(f"{x:.6g}" for x in numbers) + "]"
