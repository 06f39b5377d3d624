"""Gradients that a model's author decides: stop-gradients, and custom autograd Functions with their own backward.

Both are operators of ours while a model is captured, since any decomposition would look through them: `aten.detach`
becomes `aten.alias`, and a Function is traced through its forward. Afterwards a stop-gradient is an operation without
messages, and a Function's forward is written out without messages while its backward becomes the rule.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from pccompile.diagnostics import CompileError
from pccompile.ir import Arg, Node, Ref, TensorType
from pccompile.ops.builder import Builder
from pccompile.ops.registry import Message, OpDef, define
from pccompile.ops.trace import inline, trace

STOP, FUNCTION = "pccompile.stop_gradient.default", "pccompile.function.default"


@functools.cache
def stop_gradient() -> torch._ops.OpOverload:
    """The operator that copies its argument and through which no error passes."""

    @torch.library.custom_op("pccompile::stop_gradient", mutates_args=())
    def barrier(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @barrier.register_fake
    def _(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    found: torch._ops.OpOverload = torch.ops.pccompile.stop_gradient.default
    return found


define(OpDef(STOP, "linear", parameters=("x",), infer=lambda args, type_of: type_of(args["x"]),
             spell=lambda t, a: str(t["x"]), equation="stop(x)"))  # fmt: skip


@functools.cache
def overwritten() -> torch._ops.OpOverload:
    """The operator for a value that was changed in place where gradients are off: `new`, with the gradient of `old`."""

    @torch.library.custom_op("pccompile::overwritten", mutates_args=())
    def overwrite(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return new.clone()

    @overwrite.register_fake
    def _(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(new)

    found: torch._ops.OpOverload = torch.ops.pccompile.overwritten.default
    return found


define(
    OpDef(
        "pccompile.overwritten.default",
        "linear",
        lambda b, n, err: {"old": err, "new": None},
        parameters=("old", "new"),
        infer=lambda args, type_of: type_of(args["new"]),
        spell=lambda t, a: str(t["new"]),
        equation="y",
    )
)


class Context:
    """What a Function's forward and backward are given as `ctx`."""

    def __init__(self, needs: Sequence[bool]) -> None:
        self.needs_input_grad = tuple(needs)
        self.saved_tensors: tuple[Any, ...] = ()
        self.still: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        """Keep tensors for backward."""
        self.saved_tensors = tensors

    def set_materialize_grads(self, value: bool) -> None:
        """Gradients are always there."""

    def mark_non_differentiable(self, *tensors: Any) -> None:
        """Note results that take no gradient."""
        self.still = tensors

    def mark_dirty(self, *tensors: Any) -> None:
        """Refuse: an argument that is changed in place."""
        raise CompileError(
            "a custom autograd.Function changes its argument in place", hint="let it return a new tensor"
        )


@dataclass(eq=False)
class Call:
    """One call of a Function while a model was captured.

    `template` has the arguments, None where a tensor stood; `still` are the results that take no gradient.
    """

    function: type[torch.autograd.Function]
    template: tuple[Any, ...]
    places: tuple[int, ...]
    single: bool = True
    still: tuple[int, ...] = ()
    autocast: dict[str, torch.dtype] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.function.__name__

    def forward(self, tensors: Sequence[Any], ctx: Context) -> tuple[Any, ...]:
        """The results of the user's forward, under the autocast setting of the call."""
        with ExitStack() as stack:
            for device, dtype in self.autocast.items():
                stack.enter_context(torch.autocast(device, dtype=dtype, cache_enabled=False))
            return self._forward(tensors, ctx)

    def _forward(self, tensors: Sequence[Any], ctx: Context) -> tuple[Any, ...]:
        args = list(self.template)
        for place, tensor in zip(self.places, tensors, strict=True):
            args[place] = tensor
        if self.function.setup_context is not torch.autograd.Function.setup_context:
            result = self.function.forward(*args)
            self.function.setup_context(ctx, tuple(args), result)
        else:
            result = self.function.forward(ctx, *args)
        self.single = not isinstance(result, tuple)
        results = (result,) if self.single else result
        if not all(isinstance(r, torch.Tensor) for r in results):
            raise CompileError(f"{self}.forward returns something that is no tensor")
        self.still = tuple(i for i, r in enumerate(results) if any(r is t for t in ctx.still))
        return tuple(results)

    def backward(self, tensors: Sequence[Any], errors: Sequence[Any]) -> tuple[Any, ...]:
        """What the user's backward returns for the tensor arguments."""
        ctx = Context([i in self.places for i in range(len(self.template))])
        with torch.no_grad():
            self.forward(tensors, ctx)
            sent = self.function.backward(ctx, *errors)
        sent = sent if isinstance(sent, tuple) else (sent,)
        return tuple(sent[p] for p in self.places)


_calls: list[Call] = []


@functools.cache
def function_operator() -> torch._ops.OpOverload:
    """The operator that stands for a call of a Function."""

    @torch.library.custom_op("pccompile::function", mutates_args=())
    def run(tensors: list[torch.Tensor], key: int) -> list[torch.Tensor]:
        results = _calls[key].forward(tensors, Context([True] * len(_calls[key].template)))
        return [r.clone() for r in results]

    @run.register_fake
    def _(tensors: list[torch.Tensor], key: int) -> list[torch.Tensor]:
        results = _calls[key].forward(tensors, Context([True] * len(_calls[key].template)))
        return [torch.empty_like(r) for r in results]

    found: torch._ops.OpOverload = torch.ops.pccompile.function.default
    return found


def record_call(function: type[torch.autograd.Function], args: tuple[Any, ...]) -> Any:
    """Run a Function as an operator that capture keeps; return what it returns."""
    places = tuple(i for i, a in enumerate(args) if isinstance(a, torch.Tensor))
    template = tuple(None if i in places else a for i, a in enumerate(args))
    devices = {a.device.type for a in args if isinstance(a, torch.Tensor)}
    casting = {d: torch.get_autocast_dtype(d) for d in devices if d != "meta" and torch.is_autocast_enabled(d)}
    _calls.append(Call(function, template, places, autocast=casting))
    results = function_operator()([args[p] for p in places], len(_calls) - 1)
    results = [stop_gradient()(r) if i in _calls[-1].still else r for i, r in enumerate(results)]
    return results[0] if _calls[-1].single else tuple(results)


def call_of(key: int) -> Call:
    """The call that an imported operator stands for."""
    return _calls[key]


def _expand(b: Builder, node: Node) -> Message:
    """The forward written out behind stop-gradients, then one value that has the user's backward for its rule.

    Several results become one flat value, since a backward need not be linear in their gradients.
    """
    call, tensors = node["key"], node["tensors"]
    assert isinstance(call, Call)
    assert isinstance(tensors, tuple)
    assert isinstance(node.type, tuple)
    stopped = tuple(b(STOP, t) for t in tensors)
    traced = _traced(b, lambda *ts: list(call.forward(ts, Context([True] * len(call.template)))), stopped)
    values: list[Any] = inline(b, traced.graph, stopped, _tensors(traced))
    types = [b.type(v) for v in values]
    whole = (
        values[0]
        if len(values) == 1
        else b("aten.cat.default", tuple(b.view(v, (b.numel(b.shape(v)),)) for v in values), 0)
    )
    result = b("pcc.function", whole, tensors, call, tuple(types))
    return tuple(_parts(b, result, types))


def _parts(b: Builder, whole: Ref, types: Sequence[TensorType]) -> list[Ref]:
    if len(types) == 1:
        return [whole]
    start: Any = 0
    parts = []
    for t in types:
        size = b.numel(t.shape)
        parts.append(b.view(b("aten.slice.Tensor", whole, 0, start, start + size), t.shape))
        start = start + size
    return parts


def _rule(b: Builder, node: Node, err: Ref) -> Mapping[str, Message]:
    call, tensors, types = node["call"], node["tensors"], node["types"]
    assert isinstance(call, Call)
    assert isinstance(tensors, tuple)
    errors = _parts(b, err, types)
    none: list[int] = []

    def product(*given: Any) -> list[Any]:
        sent = call.backward(given[: len(tensors)], given[len(tensors) :])
        none.extend(i for i, s in enumerate(sent) if s is None)
        return [s for s in sent if s is not None]

    names = (*tensors, *errors)
    traced = _traced(b, product, names)
    sent = iter(inline(b, traced.graph, names, _tensors(traced)))
    return {"tensors": tuple(None if i in none else next(sent) for i in range(len(tensors)))}


def _traced(b: Builder, function: Callable[..., Any], names: Sequence[Arg]) -> torch.fx.GraphModule:
    with b.typer.mode:
        fakes = [torch.empty_like(b.typer.fake(b.type(n))) for n in names]
    return trace(function, fakes, b.typer.mode)


def _tensors(traced: torch.fx.GraphModule) -> dict[str, torch.Tensor]:
    return {n.target: getattr(traced, n.target) for n in traced.graph.nodes if n.op == "get_attr"}


define(OpDef(FUNCTION, "traced", expand=_expand, parameters=("tensors", "key"), infer=lambda args, type_of: ()))
define(
    OpDef(
        "pcc.function",
        "traced",
        _rule,
        parameters=("value", "tensors", "call", "types"),
        infer=lambda args, type_of: type_of(args["value"]),
        spell=lambda t, a: str(t["value"]),
        equation="custom(x)",
    )
)
