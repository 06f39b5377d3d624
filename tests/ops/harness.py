"""A tiny executor: one operation with its rule, spelled as in a generated file and run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy as sp
import torch
import torch.nn.functional as F
from torch import Tensor

from pccompile.backends.torch.code import name, text
from pccompile.backends.torch.spell import Speller
from pccompile.ir import Node, Ref, Type, live
from pccompile.ops import OPS, Builder, Typer, bind, overload, traced_rule
from pccompile.ops.elementwise import number
from pccompile.ops.expressions import torch_code
from pccompile.ops.registry import Sample
from pccompile.ops.typer import split_arguments


@dataclass
class Run:
    """What an operation and its messages are when their spelling runs, and what torch makes of them."""

    node: Node
    values: dict[str, Any]
    results: list[Any]
    expected: list[Any]
    messages: dict[str, Tensor]
    gradients: dict[str, Tensor]


def arguments(
    sample: Sample, dtype: torch.dtype = torch.float64, scale: float = 1.0
) -> tuple[list[Any], dict[str, Any]]:
    """A sample's arguments in another precision and scale; where the last is a dict, it holds keyword arguments."""
    torch.manual_seed(7)
    made = list(sample())
    kwargs = made.pop() if made and isinstance(made[-1], dict) else {}
    return [_cast(a, dtype, scale) for a in made], kwargs


def _cast(a: Any, dtype: torch.dtype, scale: float) -> Any:
    if isinstance(a, list | tuple):
        return [_cast(i, dtype, scale) for i in a]
    if isinstance(a, Tensor) and a.is_complex():
        return (a * scale).to(torch.complex64 if dtype == torch.float32 else torch.complex128)
    return (a * scale).to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a


def run(
    name: str,
    args: list[Any],
    kwargs: dict[str, Any],
    reference: Callable[..., Any] | None = None,
    layout: Callable[[Tensor], Tensor] = lambda t: t,
) -> Run:
    """Run `name` and its messages, both as spelled, on tensors as `layout` places them in memory, and by autograd."""
    tensors: dict[str, Tensor] = {}
    bound = bind(name, [_named(a, tensors) for a in args], {k: _named(a, tensors) for k, a in kwargs.items()})
    typer = Typer()
    types: dict[str, Type] = {k: typer.type_of(t) for k, t in tensors.items()}
    node = Node("result", name, bound, typer.infer(name, bound, types))
    b = Builder(types, typer, "r_")
    b.add(node)
    statistics = {bound.get(k) for k in ("running_mean", "running_var")}
    leaves = [k for k, t in tensors.items() if (t.is_floating_point() or t.is_complex()) and k not in statistics]
    expected, gradients, errors = differentiate(reference or overload(name), name, bound, tensors, leaves)
    b.wants = {*gradients, "result"}
    given = {f"err{i}": e for i, e in enumerate(errors) if e is not None}
    b.types.update({k: typer.type_of(e) for k, e in given.items()})
    refs = tuple(Ref(f"err{i}") if e is not None else None for i, e in enumerate(errors))
    arrived = messages(b, node, refs if isinstance(node.type, tuple) else refs[0]) if given else {}
    placed = {k: layout(t) for k, t in {**tensors, **given}.items()}
    values = execute(live(b.nodes, ["result", *arrived.values()]), placed)
    found = {k: values[arrived[k]] if k in arrived else torch.zeros_like(tensors[k]) for k in gradients}
    whole = values["result"]
    return Run(node, values, list(whole) if isinstance(whole, list | tuple) else [whole], expected, found, gradients)


def evaluate(expr: sp.Expr, symbols: Any, ran: Run) -> Tensor:
    """An elementwise operation's expression at its arguments, through the source that would be printed for it."""
    values = {s: ran.node[a] for s, a in symbols if ran.node[a] is not None}
    numbers = {s: number(v) for s, v in values.items() if not isinstance(v, str)}
    names = {s.name: str(v) for s, v in values.items() if isinstance(v, str)}
    expr = sp.sympify(expr).xreplace(numbers)
    if expr.has(sp.zoo, sp.nan):
        return torch.tensor(torch.nan, dtype=torch.float64)
    source = torch_code(expr, names)
    return torch.as_tensor(eval(source, {"torch": torch, "F": F, "math": math, **ran.values}), dtype=torch.float64)


def _named(a: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(a, list | tuple):
        return tuple(_named(i, tensors) for i in a)
    if not isinstance(a, Tensor):
        return a
    name = Ref(f"t{len(tensors)}")
    tensors[name] = a
    return name


def _tensors(a: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(a, Ref):
        return tensors[a]
    return [_tensors(i, tensors) for i in a] if isinstance(a, tuple) else a


def differentiate(
    function: Callable[..., Any], name: str, bound: dict[str, Any], tensors: dict[str, Tensor], leaves: list[str]
) -> tuple[list[Any], dict[str, Tensor], list[Tensor | None]]:
    """Results of torch's own operator, its gradients, and the random errors that they are gradients of."""
    own = {k: t.detach().clone().requires_grad_(k in leaves) for k, t in tensors.items()}
    values = {k: _tensors(a, own) for k, a in bound.items()}
    positional, named = (
        split_arguments(overload(name), values) if name.startswith("aten.") else (list(values.values()), {})
    )
    with torch.enable_grad():
        whole = function(*positional, **named)
        results = list(whole) if isinstance(whole, list | tuple) else [whole]
        errors = [torch.randn_like(r) if isinstance(r, Tensor) and r.requires_grad else None for r in results]
        pairs = [(r, e) for r, e in zip(results, errors, strict=True) if e is not None]
        if not pairs:
            return results, {}, errors
        found = torch.autograd.grad(
            [r for r, _ in pairs], [own[k] for k in leaves], [e for _, e in pairs], allow_unused=True
        )
    gradients = {k: g for k, g in zip(leaves, found, strict=True) if g is not None}
    return [r.detach() if isinstance(r, Tensor) else r for r in results], gradients, errors


def messages(b: Builder, node: Node, err: Any) -> dict[str, Ref]:
    """The message that each tensor gets, broadcasting undone."""
    definition = OPS.get(node.op)
    rule = definition.rule if definition and definition.rule else traced_rule
    arrived: dict[str, Ref] = {}

    def deliver(argument: Any, message: Any) -> None:
        if isinstance(argument, tuple):
            for a, m in zip(argument, message or (None,) * len(argument), strict=True):
                deliver(a, m)
        elif isinstance(argument, Ref) and message is not None and argument in b.wants:
            reduced = b.reduce_to(message, b.type(argument))
            arrived[argument] = b("aten.add.Tensor", arrived[argument], reduced) if argument in arrived else reduced

    for argument, message in rule(b, node, err).items():
        deliver(node[argument], message)
    return arrived


def execute(nodes: Any, values: dict[str, Any]) -> dict[str, Any]:
    """The values of `nodes`, by running their source."""
    speller = Speller()
    lines = [f"{n.name} = {text(speller.call(n.op, n.args, name))}" for n in nodes]
    names = [f"{called} = torch.ops.{op}" for op, called in speller.kernels.items()]
    space = {"torch": torch, "F": F, "math": math, "device": torch.device("cpu"), **values}
    with torch.no_grad():
        exec("\n".join([*speller.helpers.values(), *names, *lines]), space)
    return space
