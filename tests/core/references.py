"""References for the laws of inference: canonical graphs run in plain torch, differentiated by autograd."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import sympy
import torch
from torch import Tensor

from core.models import Gradients, gradients, half_squares
from pccompile import PCModule
from pccompile.algorithms.law import path_lengths
from pccompile.ir import Node, PCGraph, Ref
from pccompile.ops import overload
from pccompile.ops.typer import split_arguments


def by_path_length(pc: PCModule, x: Tensor) -> list[Gradients]:
    """What the paths of k edges contribute to each gradient, for each k, by autograd alone.

    The gradient that arrives at a hidden value is multiplied by z there, so that a path of k edges carries z^k; the
    coefficients of the polynomial in z are found from its values.
    """
    compiled = pc.compiled
    latent = {str(v.result) for v in compiled.pc.latent}
    count = 1 + max(max(ks) for ks in path_lengths(compiled.pc).values())
    assert count < 16, "interpolation in doubles loses too many digits"

    def at(z: float) -> Gradients:
        env = given(pc, x)
        for n in compiled.graph.nodes:
            value = run(n, env)
            if n.name in latent:
                value.register_hook(lambda g: z * g)
            env[n.name] = value
        return gradients(pc, half_squares(tuple(env[o] for o in compiled.graph.outputs)))

    points = np.cos(np.pi * (np.arange(count) + 0.5) / count)
    values = [at(float(z)) for z in points]
    inverse = torch.from_numpy(np.linalg.inv(np.vander(points, increasing=True)))
    return [
        {
            name: None if values[0][name] is None else sum(inverse[k, i] * values[i][name] for i in range(count))
            for name in values[0]
        }
        for k in range(count)
    ]


def given(pc: PCModule, x: Tensor) -> dict[str, Any]:
    """The parameters, the only input and the lengths of a call, by name."""
    graph = pc.compiled.graph
    lengths = {name: x.shape[source.axis] for name, source in graph.dims.items()}
    return {**pc.compiled.imported.tensors, next(iter(graph.inputs)): x, **lengths}


def run(node: Node, env: dict[str, Any]) -> Any:
    """What a node computes in torch, from the values, parameters and lengths in `env`."""

    def read(arg: Any) -> Any:
        if isinstance(arg, tuple):
            return [read(a) for a in arg]
        if isinstance(arg, sympy.Expr):
            return int(arg.subs({s: env[str(s)] for s in arg.free_symbols}))
        return env[arg] if isinstance(arg, Ref) else arg

    args = {name: read(arg) for name, arg in node.args.items()}
    if node.op == "getitem":
        return args["of"][args["index"]]
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
    return energy + half_squares(tuple(outputs[name] for name in graph.outputs), target)
