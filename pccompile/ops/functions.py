"""Gradients that a model's author decides: stop-gradients, and custom autograd Functions with their own backward.

Both are operators of ours while a model is captured, since any decomposition would look through them: `aten.detach`
becomes `aten.alias`, and a Function is traced through its forward. Afterwards a stop-gradient is an operation without
messages, and a Function's forward is written out without messages while its backward becomes the rule.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import CellType
from typing import Any

import torch
from torch.utils import _pytree as pytree

from pccompile.diagnostics import CompileError
from pccompile.ir import Arg, Node, Ref, TensorType
from pccompile.ops.builder import Builder
from pccompile.ops.held_tensors import note_backward, note_forward
from pccompile.ops.registry import Message, define
from pccompile.ops.shapes import known_shapes
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

    operator: torch._ops.OpOverload = torch.ops.pccompile.stop_gradient.default
    return operator


define(STOP, "linear", parameters=("x",), infer=lambda args, type_of: type_of(args["x"]),
             spell="x", equation="stop(x)")  # fmt: skip


@functools.cache
def overwritten() -> torch._ops.OpOverload:
    """The operator for a value that was changed in place where gradients are off: `new`, with the gradient of `old`."""

    @torch.library.custom_op("pccompile::overwritten", mutates_args=())
    def overwrite(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return new.clone()

    @overwrite.register_fake
    def _(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(new)

    operator: torch._ops.OpOverload = torch.ops.pccompile.overwritten.default
    return operator


define(
    "pccompile.overwritten.default",
    "linear",
    lambda b, n, err: {"old": err, "new": None},
    parameters=("old", "new"),
    infer=lambda args, type_of: type_of(args["new"]),
    spell="new",
    equation="y",
)


class Context:
    """What a Function's forward and backward are given as `ctx`."""

    def __init__(self, needs: Sequence[bool]) -> None:
        self.needs_input_grad = tuple(needs)
        self.saved_tensors: tuple[Any, ...] = ()
        self.materialize_grads = True
        self.without_gradient: tuple[Any, ...] = ()
        self.nonlocals: dict[str, Any] = {}

    def save_for_backward(self, *tensors: Any) -> None:
        """Keep tensors for backward."""
        self.saved_tensors = tensors

    def save_for_forward(self, *tensors: Any) -> None:
        """Tensors for forward-mode derivatives are not asked for."""

    def set_materialize_grads(self, value: bool) -> None:
        """Whether gradients that are not there are zeros, or None."""
        self.materialize_grads = value

    def mark_non_differentiable(self, *tensors: Any) -> None:
        """Results that take no gradient send none."""
        self.without_gradient = tensors

    def mark_dirty(self, *tensors: Any) -> None:
        """Refuse: an argument that is changed in place."""
        raise CompileError(
            "a custom autograd.Function changes its argument in place", hint="let it return a new tensor"
        )


@dataclass(eq=False)
class Call:
    """One call of a Function while a model was captured.

    `leaves` are its flattened arguments, None where a tensor stood; those of argument i begin at `starts[i]`. `places`
    are the tensors' places among them. `results` are what it returned that was no tensor, by place.
    """

    function: type[torch.autograd.Function]
    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec
    places: tuple[int, ...]
    arguments: tuple[int | None, ...]
    single: bool = True
    others: dict[int, Any] = field(default_factory=dict)
    autocast: dict[str, torch.dtype] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.function.__name__

    def context(self, needs: Callable[[int], bool] = lambda place: True) -> Context:
        """A new context. needs: whether the tensor at a place among the tensors is to get a gradient."""
        wanted = {argument for i, argument in enumerate(self.arguments) if needs(i)}
        return Context([i in wanted for i in range(self.spec.num_children)])

    def forward(self, tensors: Sequence[Any], ctx: Context) -> tuple[Any, ...]:
        """The tensors that the user's forward returns, under the autocast setting of the call."""
        with ExitStack() as stack:
            for device, dtype in self.autocast.items():
                stack.enter_context(torch.autocast(device, dtype=dtype, cache_enabled=False))
            return self._forward(tensors, ctx)

    def _forward(self, tensors: Sequence[Any], ctx: Context) -> tuple[Any, ...]:
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        args = pytree.tree_unflatten(leaves, self.spec)
        cells = cells_of(self.function.forward)
        before = {name: _content(cell) for name, cell in cells.items()}
        if self.function.setup_context is not torch.autograd.Function.setup_context:
            result = self.function.forward(*args)
            self.function.setup_context(ctx, tuple(args), result)
        else:
            result = self.function.forward(ctx, *args)
        ctx.nonlocals = {n: c.cell_contents for n, c in cells.items() if _content(c) is not before[n]}
        self.single = not isinstance(result, tuple)
        results = (result,) if self.single else result
        self.others = {i: r for i, r in enumerate(results) if not isinstance(r, torch.Tensor)}
        if any(isinstance(t, torch.Tensor) for r in self.others.values() for t in pytree.tree_leaves(r)):
            raise CompileError(
                f"{self}.forward returns tensors in a {type(next(iter(self.others.values()))).__name__}",
                hint="let it return a tensor, or a tuple of tensors",
            )
        return tuple(r for r in results if isinstance(r, torch.Tensor))

    def returned(self, tensors: Sequence[Any]) -> Any:
        """What the Function returns, from the tensors among it."""
        rest = iter(tensors)
        count = len(tensors) + len(self.others)
        results = tuple(self.others[i] if i in self.others else next(rest) for i in range(count))
        return results[0] if self.single else results

    def backward(self, ctx: Context, errors: Sequence[Any]) -> tuple[Any, ...]:
        """What the user's backward returns for the tensors. errors: those of the tensors that forward returned."""
        cells = cells_of(self.function.forward)
        for name, value in ctx.nonlocals.items():
            cells[name].cell_contents = value
        with torch.no_grad():
            whole = Call.returned(replace(self, single=False, others=dict.fromkeys(self.others)), errors)
            sent = self.function.backward(ctx, *whole)
        sent = sent if isinstance(sent, tuple) else (sent,)
        return tuple(None if i is None else sent[i] for i in self.arguments)


def cells_of(function: Any) -> dict[str, CellType]:
    """The variables around a function that it reads or binds anew, as torch.compile's own Functions keep tensors."""
    code = getattr(function, "__code__", None)
    return dict(zip(code.co_freevars, function.__closure__ or (), strict=True)) if code else {}


def _content(cell: CellType) -> Any:
    """What a variable is bound to, None where nothing is yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


_calls: list[Call] = []


@functools.cache
def function_operator() -> torch._ops.OpOverload:
    """The operator that stands for a call of a Function."""

    @torch.library.custom_op("pccompile::function", mutates_args=())
    def run(tensors: list[torch.Tensor], key: int) -> list[torch.Tensor]:
        results = _calls[key].forward(tensors, _calls[key].context())
        return [r.clone() for r in results]

    @run.register_fake
    def _(tensors: list[torch.Tensor], key: int) -> list[torch.Tensor]:
        results = _calls[key].forward(tensors, _calls[key].context())
        return [torch.empty_like(r) for r in results]

    operator: torch._ops.OpOverload = torch.ops.pccompile.function.default
    return operator


def record_call(function: type[torch.autograd.Function], args: tuple[Any, ...]) -> Any:
    """Run a Function as an operator that capture keeps; return what it returns.

    A tensor within a list or another container is read like any other and gets no gradient, as with autograd.
    """
    leaves, spec = pytree.tree_flatten(args)
    places = tuple(i for i, a in enumerate(leaves) if isinstance(a, torch.Tensor))
    whose = [i for i, child in enumerate(spec.children()) for _ in range(child.num_leaves)]
    arguments = tuple(whose[p] if isinstance(args[whose[p]], torch.Tensor) else None for p in places)
    tensors = [leaves[p] for p in places]
    devices = {t.device.type for t in tensors}
    casting = {d: torch.get_autocast_dtype(d) for d in devices if d != "meta" and torch.is_autocast_enabled(d)}
    rest = tuple(None if i in places else a for i, a in enumerate(leaves))
    call = Call(function, rest, spec, places, arguments, autocast=casting)
    _calls.append(call)
    return call.returned(function_operator()(tensors, len(_calls) - 1))


def call_of(key: int) -> Call:
    """The call that an imported operator stands for."""
    return _calls[key]


@dataclass(eq=False)
class Saved:
    """What a Function's forward left in its context: its entries flattened, None where a tensor stood.

    entries: the objects themselves, by name.
    """

    call: Call
    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec
    places: tuple[int, ...]
    entries: Mapping[str, Any]

    @classmethod
    def of(cls, call: Call, ctx: Context) -> tuple[Saved, list[torch.Tensor]]:
        """The entries of `ctx`, and the tensors among them."""
        leaves, spec = pytree.tree_flatten(dict(vars(ctx)))
        places = tuple(i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor))
        rest = tuple(None if i in places else leaf for i, leaf in enumerate(leaves))
        return cls(call, rest, spec, places, dict(vars(ctx))), [leaves[p] for p in places]

    def context(self, needs: Callable[[int], bool], tensors: Sequence[Any]) -> Context:
        """The context that backward is given."""
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        ctx = self.call.context(needs)
        vars(ctx).update(pytree.tree_unflatten(leaves, self.spec), needs_input_grad=ctx.needs_input_grad)
        return ctx

    @property
    def materialize(self) -> bool:
        """Whether gradients that are not there are zeros for backward."""
        return bool(pytree.tree_unflatten(self.leaves, self.spec)["materialize_grads"])

    def messages(
        self,
        kept: Sequence[Any],
        errors: Mapping[int, Any],
        zeros: Sequence[Callable[[], Any]],
        needs: Callable[[int], bool] = lambda place: True,
    ) -> tuple[Any, ...]:
        """What backward sends to the tensors. errors: by result, where there is one. zeros: what others may have."""
        absent = [zero() if self.materialize else None for zero in zeros]
        every = [errors.get(i, none) for i, none in enumerate(absent)]
        return self.call.backward(self.context(needs, kept), every)

    def __str__(self) -> str:
        return str(self.call)


def _expand(b: Builder, node: Node) -> Message:
    """The forward written out behind stop-gradients, then one value that has the user's backward for its rule.

    Several results become one flat value, since a backward need not be linear in their gradients.
    """
    call, tensors = node["key"], node["tensors"]
    assert isinstance(call, Call)
    assert isinstance(tensors, tuple)
    saved: list[Saved] = []
    marked: set[int] = set()

    def forward(*given: torch.Tensor) -> list[torch.Tensor]:
        ctx = call.context()
        results = call.forward(given, ctx)
        marked.update(i for i, r in enumerate(results) if any(r is t for t in ctx.without_gradient))
        ctx.without_gradient = ()
        entries, kept = Saved.of(call, ctx)
        saved[:] = [entries]
        return [*results, *kept]

    stopped = tuple(b(STOP, t) for t in tensors)
    tensors = tuple(s if call.arguments[i] is None else tensors[i] for i, s in enumerate(stopped))
    traced = _traced(b, forward, stopped)
    note_forward(_tensors(traced).values())
    values: list[Any] = inline(b, traced.graph, stopped, _tensors(traced))
    count = len(values) - len(saved[0].places)
    results, kept = values[:count], tuple(values[count:])
    types = [b.type(v) for v in results]
    moving = [i for i, t in enumerate(types) if t.differentiable and i not in marked]
    if not moving:
        return tuple(b(STOP, v) for v in results)
    flat = [b.view(results[i], (b.numel(b.shape(results[i])),)) for i in moving]
    whole = results[moving[0]] if len(moving) == 1 else b("aten.cat.default", tuple(flat), 0)
    result = b("pcc.function", whole, tensors, kept, saved[0], tuple(types), tuple(moving), tuple(moving))
    parts = dict(zip(moving, _parts(b, result, [types[i] for i in moving]), strict=True))
    return tuple(parts[i] if i in parts else b(STOP, v) for i, v in enumerate(results))


def _parts(b: Builder, whole: Ref, types: Sequence[TensorType]) -> list[Ref]:
    if len(types) == 1:
        return [whole]
    places = part_places(types)
    return [
        b.view(b("aten.slice.Tensor", whole, 0, start, end), t.shape)
        for t, (start, end) in zip(types, places, strict=True)
    ]


def part_places(types: Sequence[TensorType]) -> list[tuple[Any, Any]]:
    """Where each of several results begins and ends in the flat value of a Function."""
    ends = list(itertools.accumulate((Builder.numel(t.shape) for t in types), initial=0))
    return list(itertools.pairwise(ends))


def _rule(b: Builder, node: Node, err: Ref) -> Mapping[str, Message]:
    tensors, kept, saved, types, moving = (node[k] for k in ("tensors", "kept", "saved", "types", "moving"))
    assert isinstance(saved, Saved)
    assert isinstance(tensors, tuple)
    assert isinstance(kept, tuple)
    arrived = dict(zip(moving, _parts(b, err, [types[i] for i in moving]), strict=True))
    arrived = {i: part for i, part in arrived.items() if i in node["present"]}
    zeros = [functools.partial(_zeros, b, t) for t in types]
    none: list[int] = []

    def product(*given: Any) -> list[Any]:
        errors = dict(zip(arrived, given[len(kept) :], strict=True))
        sent = saved.messages(given[: len(kept)], errors, zeros, lambda i: tensors[i] in b.wants)
        none[:] = [i for i, s in enumerate(sent) if s is None]
        return [s for s in sent if s is not None]

    names = (*kept, *arrived.values())
    traced = _traced(b, product, names)
    note_backward(_tensors(traced).values())
    sent = iter(inline(b, traced.graph, names, _tensors(traced)))
    return {"tensors": tuple(None if i in none else next(sent) for i in range(len(tensors)))}


def _zeros(b: Builder, type_: TensorType) -> torch.Tensor:
    return torch.zeros([b.typer.size(d) for d in type_.shape], dtype=type_.dtype, device=b.typer.device)


def _traced(b: Builder, function: Callable[..., Any], names: Sequence[Arg]) -> torch.fx.GraphModule:
    with b.typer.mode:
        fakes = [torch.empty_like(b.typer.fake(b.type(n))) for n in names]
    with known_shapes():
        return trace(function, fakes, b.typer.mode)


def _tensors(traced: torch.fx.GraphModule) -> dict[str, torch.Tensor]:
    return {n.target: getattr(traced, n.target) for n in traced.graph.nodes if n.op == "get_attr"}


define(FUNCTION, "traced", expand=_expand, parameters=("tensors", "key"), infer=lambda args, type_of: ())
define(
    "pcc.function",
    "traced",
    _rule,
    parameters=("value", "tensors", "kept", "saved", "types", "moving", "present"),
    infer=lambda args, type_of: type_of(args["value"]),
    spell="value",
    equation="custom(x)",
)
