"""References for the laws of inference: canonical graphs run in plain torch, differentiated by autograd."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import sympy
import torch
from helpers.models import Gradients, gradients, half_squares
from ops.references import REFERENCES
from torch import Tensor

from pccompile import PCModule
from pccompile.ir import DEVICE, Node, PCGraph, Ref
from pccompile.ops import overload
from pccompile.ops.functions import STOP
from pccompile.ops.random import BERNOULLI_LIKE
from pccompile.ops.typer import split_arguments
from pccompile.runtime.loaded_program import Runtime


def by_path_length(pc: PCModule, loss: Callable[[Any], Tensor], *inputs: Tensor) -> list[Gradients]:
    """What the paths of k edges contribute to each gradient, for each k, by autograd alone.

    Each vertex is run by itself on the values of a forward pass, and autograd takes what has arrived at it over k edges
    to its parents, where it has come over k + 1. Parameters go by their paths, an input x by "input x".
    """
    runtime = pc.prepare(inputs)
    graph = runtime.compiled.pc
    env = {name: v.detach() if isinstance(v, Tensor) else v for name, v in given(pc, *inputs).items()}
    for n in graph.graph.nodes:
        env[n.name] = run(n, env)
        env |= {d: env[n.name].shape[s.axis] for d, s in graph.graph.dims.items() if s.tensor == n.name}
    arrived: dict[str, dict[int, Tensor]] = {name: {} for name in (*graph.names, *graph.reached)}
    for vertex, error in zip(graph.clamped, _output_errors(runtime, env, loss), strict=True):
        arrived[vertex][0] = error
    for v in reversed(graph.vertices):
        parents = [p for p in v.parents if p in arrived]
        own = {**env, **{p: env[p].detach().requires_grad_() for p in parents}}
        for n in v.prediction:
            own[n.name] = run(n, own)
        for k, error in arrived[v.name].items():
            sent = torch.autograd.grad(own[v.result], [own[p] for p in parents], error, True, allow_unused=True)
            for p, message in zip(parents, sent, strict=True):
                if message is not None:
                    edges = k + (p in graph.names)
                    arrived[p][edges] = arrived[p].get(edges, 0) + message
    count = 1 + max(k for parts in arrived.values() for k in parts)
    names = {p: graph.graph.origin[p] if p in graph.graph.params else f"input {p}" for p in graph.reached}
    return [{key: arrived[p].get(k, torch.zeros_like(env[p])) for p, key in names.items()} for k in range(count)]


def _output_errors(runtime: Runtime, env: Mapping[str, Any], loss: Callable[[Any], Tensor]) -> list[Tensor]:
    """The gradient of the loss at each output vertex, from the values in `env`: minus its error."""
    graph, interface = runtime.compiled.pc, runtime.interface
    leaves = {o: env[o].detach().requires_grad_(env[o].is_floating_point()) for o in graph.graph.outputs}
    value = loss(interface.assemble(list(leaves.values())))
    wanted = [leaves[o.value] for o in graph.outputs]
    found = torch.autograd.grad(value, wanted, allow_unused=True)
    return [torch.zeros_like(o) if g is None else g for o, g in zip(wanted, found, strict=True)]


def given(pc: PCModule, *inputs: Tensor) -> dict[str, Any]:
    """The parameters, buffers, inputs and lengths of a call, by name."""
    runtime = pc.prepare(inputs)
    bound = runtime.interface.bind(inputs, {})
    tensors = {**runtime.compiled.imported.tensors, **bound}
    dims = runtime.compiled.graph.dims
    lengths = {name: tensors[d.tensor].shape[d.axis] for name, d in dims.items() if d.tensor in tensors}
    return {**tensors, **lengths}


class _Author(torch.autograd.Function):
    """A value whose gradient is what the backward of a model's own autograd Function says."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, saved: Any, kept: Any, *tensors: Tensor) -> Tensor:
        ctx.saved, ctx.kept = saved, kept
        return value.clone()

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Any, ...]:
        return (None, None, None, *ctx.saved.messages(ctx.kept, {0: error}, [lambda: error * 0]))


def run(node: Node, env: dict[str, Any]) -> Any:
    """What a node computes in torch, from the values, parameters and lengths in `env`."""

    def read(arg: Any) -> Any:
        if isinstance(arg, tuple):
            return [read(a) for a in arg]
        if isinstance(arg, sympy.Expr):
            return int(arg.subs({s: env[str(s)] for s in arg.free_symbols}))
        if arg is DEVICE:
            return torch.device("cpu")
        return env[arg] if isinstance(arg, Ref) else arg

    args = {name: read(arg) for name, arg in node.args.items()}
    if node.op == "getitem":
        return args["of"][args["index"]]
    if node.op == STOP:
        return args["x"].detach()
    if node.op == "pcc.function":
        return _Author.apply(args["value"], args["saved"], args["kept"], *args["tensors"])
    if node.op == BERNOULLI_LIKE:
        return torch.empty_like(args["x"]).bernoulli_(args["p"])
    if node.op in REFERENCES:
        return REFERENCES[node.op](*args.values())
    positional, named = split_arguments(overload(node.op), args)
    return overload(node.op)(*positional, **named)


def survival(steps: int, rate: float, edges: int) -> float:
    """P[Binomial(steps, rate) ≥ edges], summed as it stands, in exact arithmetic."""
    p = Fraction(rate)
    return float(sum(math.comb(steps, k) * p**k * (1 - p) ** (steps - k) for k in range(edges, steps + 1)))


def descend(pc: PCModule, x: Tensor, target: Any, steps: int, rate: float) -> tuple[Gradients, list[float]]:
    """Strict inference by autograd: the gradients of F after `steps` steps of descent over all values, and each F.

    F = Σ ½‖v − v̂(parents)‖² + L, with the squared error of the outputs to `target` as L.
    """
    graph = pc.graph
    start = given(pc, x)
    for n in graph.graph.nodes:
        start[n.name] = run(n, start)
    values = {v.name: start[v.name].detach() for v in graph.latent}
    energies = []
    for _ in range(steps):
        values = {name: v.detach().requires_grad_() for name, v in values.items()}
        energy = free_energy(graph, {**given(pc, x), **values}, values, target)
        energies.append(energy.item())
        pulls = torch.autograd.grad(energy, list(values.values()))
        values = {name: v - rate * g for (name, v), g in zip(values.items(), pulls, strict=True)}
    values = {name: v.detach() for name, v in values.items()}
    energy = free_energy(graph, {**given(pc, x), **values}, values, target)
    return gradients(pc, energy), [*energies, energy.item()]


def free_energy(graph: PCGraph, env: dict[str, Any], values: Mapping[str, Tensor], target: Any) -> Tensor:
    """F at these values."""
    energy, outputs = torch.zeros((), dtype=torch.float64), {}
    for n in graph.context:
        env[n.name] = run(n, env)
    for v in graph.vertices:
        own = dict(env)
        for n in v.prediction:
            own[n.name] = run(n, own)
        if v.name in values:
            energy = energy + half_squares(values[v.name], own[v.result])
        else:
            outputs[v.name] = own[v.result]
    return energy + half_squares(tuple(outputs[name] for name in graph.clamped), target)
