"""The ONNX project's own cases: each operator, small networks, and networks of old exporters.

Forward rows come from the project's own runner over `pccompile.onnx_backend`; kinds are the project's, except that the
networks it calls real are called light here, as their files are. Compiled rows: suites/onnx_compiled.py, gradient rows:
suites/onnx_gradients.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from suites.onnx_compiled import KIND as COMPILED
from suites.onnx_compiled import compiled
from suites.onnx_forward import KINDS, cases, forward
from suites.onnx_gradients import KIND as GRADIENT
from suites.onnx_gradients import gradient
from suites.rows import Row

EVERY = (*KINDS, COMPILED, GRADIENT)
FLOORS: Mapping[str, float] = {
    "node passed": 1868,
    "simple passed": 23,
    "pytorch-converted passed": 82,
    "pytorch-operator passed": 35,
    "light passed": 9,
    "compiled passed": 1406,
    "gradient passed": 826,
}

FORWARD = f"""The first rows come from the ONNX project's runner over `pccompile.onnx_backend`: a model as `load_onnx`
reads it, one torch operation after the other, compared at the tolerance that the case states. The cases that draw at
random are among them, and fail: what they expect was drawn by another generator. A row of kind {COMPILED} is the same
for what `pccompile.compile` makes of the model, of the cases with floats among the inputs and the outputs and tensors
of numbers throughout."""

NOTE = f"""A row of kind {GRADIENT} holds the predictive-coding gradients of a node case against central differences of
onnx.reference in float64. It is there for the cases with float inputs and outputs, function bodies left out, on which
the reference has a derivative by an input, which is then compared: both one-sided slopes and two step sizes agree, and
nothing is drawn at random. Inputs that decide a graph's form, such as shapes, axes and Resize's scales, are fixed."""


def names() -> list[str]:
    """The cases, sorted."""
    return sorted(cases())


def check(name: str, samples: int | None = None) -> list[Row]:
    """The rows of one case; a case has one sample."""
    return [forward(name), *compiled(name), *gradient(name)]


def figures(rows: Sequence[Row]) -> dict[str, float]:
    """How many cases of each kind pass."""
    passed = Counter(r.kind for r in rows if r.status == "pass")
    return {f"{kind} passed": passed[kind] for kind in EVERY if any(r.kind == kind for r in rows)}


def document(rows: Sequence[Row]) -> str:
    """The suite's section of docs/coverage.md."""
    lines = ["## ONNX", "", "| kind | cases | pass | refused | fail | wrong |", "|---|---|---|---|---|---|"]
    for kind in EVERY:
        count = Counter(r.status for r in rows if r.kind == kind)
        cells = (count["pass"], count["refused"] + count["not capturable"], count["fail"], count["wrong"])
        lines.append(f"| {kind} | {sum(count.values())} | {' | '.join(map(str, cells))} |")
    missed = [r for r in rows if r.kind in KINDS and r.status in ("fail", "wrong")]
    listed = ", ".join(f"{r.name.removeprefix('test_')}" for r in sorted(missed, key=lambda r: r.name))
    return "\n".join([*lines, "", FORWARD, "", NOTE, "", f"Failing or wrong as read: {listed or 'none'}."])
