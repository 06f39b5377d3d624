"""If, Loop and Scan: branches chosen and iterations unrolled while the graph is traced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx.graph import OnnxGraph
from pccompile.frontends.onnx.registry import Node, operator
from pccompile.frontends.onnx.scope import Made, Scope
from pccompile.frontends.onnx.values import Value, as_host, as_tensor, host_of
from pccompile.limits import limit, spend

FIX = "make it a constant: --constant NAME=VALUE, or load_onnx(..., constants={input name: value}), fixes an input"


@operator("If", control=True)
def if_(node: Node, run: Scope, condition: Value) -> list[Value]:
    """The outputs of the branch that the condition chooses."""
    yes, no = node.get("then_branch"), node.get("else_branch")
    try:
        chosen = as_host(condition, "the condition of If").item()
    except CompileError:
        return by_data(node, run, as_tensor(condition), yes, no)
    return run(yes if chosen else no, [])


def by_data(node: Node, run: Scope, condition: Tensor, yes: OnnxGraph, no: OnnxGraph) -> list[Value]:
    """The outputs of the branch that a traced condition chooses when the program runs.

    Where `torch.cond` cannot have the branches, both run, and each element is taken from the one that is chosen.
    """
    results, made = both(node, run, condition.reshape(()), yes, no)
    if get_proxy_mode() is None:
        return results
    return run.choose(node, condition, (yes, no), made) or results


def both(
    node: Node, run: Scope, condition: Tensor, yes: OnnxGraph, no: OnnxGraph
) -> tuple[list[Value], tuple[list[Tensor], list[Tensor]]]:
    """The outputs of two branches, each element taken from the one that a traced condition chooses.

    Also the tensors that each branch made of numbers.
    """
    try:
        with Made() as first:
            chosen = run.guarded(node, yes, condition)
        with Made() as second:
            other = run.guarded(node, no, condition.logical_not())
        pairs = list(zip(chosen, other, strict=True))
    except CompileError as error:
        raise CompileError(
            f"the condition of If depends on the data, and a branch fails on these inputs: {error.problems[0].what}",
            hint=FIX,
        ) from None
    results: list[Value] = []
    for one, two in pairs:
        a, b = as_tensor(one), as_tensor(two)
        if a.dim() != b.dim() or any(m != n for m, n in zip(a.shape, b.shape, strict=True)):
            shapes = f"{list(a.shape)} and {list(b.shape)}"
            raise CompileError(
                f"the condition of If depends on the data, its branches differ in shape: {shapes}", hint=FIX
            )
        results.append(torch.where(condition, a, b))
    return results, (first.tensors, second.tensors)


@operator("Loop", control=True)
def loop(node: Node, run: Scope, trips: Value = None, condition: Value = None, *carried: Value) -> list[Value]:
    """The last carried values and the stacked outputs of a loop, unrolled; its end must be known while tracing."""
    body = node.get("body")
    most = None if trips is None else as_host(trips, "the number of Loop iterations").item()
    if most is not None and condition is None and most > limit("steps"):
        spend("steps", most, "Loop")  # no condition given: it rarely ends before, and each step is one node at least
    going = condition is None or bool(as_host(condition, "the condition of Loop").item())
    state = list(carried)
    collected: list[list[Tensor]] = [[] for _ in body.outputs[1 + len(state) :]]
    iteration = 0
    while going and (most is None or iteration < most):
        spend("steps", 1 + len(body.nodes), "Loop")
        results = run(body, [host_of(iteration), host_of(True, torch.bool), *state])
        going = bool(as_host(results[0], "the condition of Loop").item())
        state = results[1 : 1 + len(state)]
        for items, value in zip(collected, results[1 + len(state) :], strict=True):
            items.append(as_tensor(value))
        iteration += 1
    return [*state, *(torch.stack(items) if items else torch.zeros(0) for items in collected)]


@operator("Scan", control=True)
def scan(node: Node, run: Scope, *values: Value) -> list[Value]:
    """The last states and the stacked outputs of a scan, unrolled over the length of its inputs."""
    if node.opset < 9:
        return batched_scan(node, run, values[0], [as_tensor(v) for v in values[1:]])
    return scanned(node, run, list(values))


def batched_scan(node: Node, run: Scope, lengths: Value, values: list[Tensor]) -> list[Value]:
    """Scan as of opset 8: one for each sample of a batch, with lengths of their own."""
    size = values[0].shape[0]
    count = scan_inputs(node, values)
    states = len(values) - count
    steps = values[-1].shape[1]
    ends = [steps] * size if lengths is None else as_host(lengths, "the lengths of Scan").tolist()
    backwards = node.get("directions") or [0] * count
    one = replace(node, attributes={**node.attributes, "scan_input_directions": backwards}, opset=9)
    samples = []
    for sample, end in enumerate(ends):
        own: list[Value] = [v[sample] if i < states else v[sample, :end] for i, v in enumerate(values)]
        results = [as_tensor(r) for r in scanned(one, run, own)]
        padding = [0, 0] * (max(r.dim() for r in results) - 1) + [0, steps - end]
        samples.append([r if i < states else F.pad(r, padding[-2 * r.dim() :]) for i, r in enumerate(results)])
    return [torch.stack(group) for group in zip(*samples, strict=True)]


def scan_inputs(node: Node, values: Sequence[Value]) -> int:
    """How many of the values are scanned, the last ones. Raises CompileError for a number that cannot be."""
    count = int(node.get("num_scan_inputs"))
    if not 0 < count <= len(values):
        raise CompileError(f"Scan says that {count} of its {len(values)} inputs are scanned")
    return count


def scanned(node: Node, run: Scope, values: list[Value]) -> list[Value]:
    """The last states and the stacked outputs of one scan."""
    body, count = node.get("body"), scan_inputs(node, values)
    state = values[: len(values) - count]
    sources = [as_tensor(v) for v in values[len(values) - count :]]
    axes = node.get("scan_input_axes") or [0] * count
    backwards = node.get("scan_input_directions") or [0] * count
    length = int(sources[0].shape[axes[0]])
    outputs = len(body.outputs) - len(state)
    collected: list[list[Tensor]] = [[] for _ in range(outputs)]
    spend("steps", length * (1 + len(body.nodes)), "Scan")
    for step in range(length):
        slices: list[Value] = [
            source.select(axis, length - 1 - step if flipped else step)
            for source, axis, flipped in zip(sources, axes, backwards, strict=True)
        ]
        results = run(body, [*state, *slices])
        state = results[: len(state)]
        for items, value in zip(collected, results[len(state) :], strict=True):
            items.append(as_tensor(value))
    flips = node.get("scan_output_directions") or [0] * outputs
    places = node.get("scan_output_axes") or [0] * outputs
    stacked = [
        torch.stack(items[::-1] if flipped else items, axis)
        for items, flipped, axis in zip(collected, flips, places, strict=True)
    ]
    return [*state, *stacked]
