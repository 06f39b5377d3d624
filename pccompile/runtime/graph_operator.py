"""One call of a compiled module as one operation of a graph that another compiler runs, with its backward pass.

The operation runs the module as any call does, so that all that is compared at a call is compared. It takes the
model's tensors as operands: autograd sends gradients to these, and what is written is written into these.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.frontends.autocast import current, without_autocast
from pccompile.runtime.graph_plan import Plan, laid_out, order_of

TOKEN = 8
"""Bytes of the tensor that stands for a call until its backward pass."""
PLANS: weakref.WeakKeyDictionary[Any, dict[str, Plan]] = weakref.WeakKeyDictionary()
"""The plans of compiled modules, by name; they live as long as their module."""
MODULES: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
"""Compiled modules by their own names, and by those of their plans."""
_CALLS: weakref.WeakValueDictionary[int, Call] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)
_tls = threading.local()
_INCLUDED = torch._C._dispatch_tls_local_include_set()
_EXCLUDED = torch._C._dispatch_tls_local_exclude_set()


class Call(bytearray):
    """The memory of a token, which holds what autograd knows of a call: both live as long as a graph keeps the token.

    outputs: what the call returned. leaves: the operands that learn.
    """

    outputs: list[Tensor]
    leaves: list[Tensor]


def token_of(outputs: list[Tensor], leaves: list[Tensor]) -> Tensor:
    """A tensor that holds a call."""
    call, number = Call(TOKEN), next(_numbers)
    call[:] = number.to_bytes(TOKEN, "little")
    call.outputs, call.leaves = outputs, leaves
    _CALLS[number] = call
    return torch.frombuffer(call, dtype=torch.uint8)


def call_of(token: Tensor) -> Call:
    """The call that a token stands for. Raises CompileError for one that is gone."""
    call = _CALLS.get(int.from_bytes(bytes(token.tolist()), "little"))
    if call is None:
        what = "the backward pass of a compiled model runs without its forward pass: its graph was copied"
        raise CompileError(what, hint="leave out fullgraph=True, or run the model outside torch.compile")
    return call


def setting(tensors: Sequence[Tensor]) -> str:
    """The device of a call and the dtype of autocast there, as one word; no dtype where it is off."""
    device = tensors[0].device.type if tensors else "cpu"
    now = current(device)
    return f"{device}:{str(now.dtype).removeprefix('torch.') if now else ''}"


@contextmanager
def _as_in_eager(autocast: str, grad: bool) -> Iterator[None]:
    """Within: autograd works, which an operation runs below, and autocast is as it was where the call stands."""
    with ExitStack() as stack:
        stack.enter_context(torch._C._ForceDispatchKeyGuard(_INCLUDED, _EXCLUDED))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(grad))
        device, dtype = autocast.split(":")
        on = torch.autocast(device, dtype=getattr(torch, dtype)) if dtype else without_autocast(device)
        stack.enter_context(on)
        yield


def plan_of(name: str) -> tuple[Any, Plan]:
    """A compiled module and its plan of this name. Raises CompileError for a module that is gone."""
    pc = MODULES.get(name)
    if pc is None:
        raise CompileError("the compiled model of this graph is gone", hint="keep it as long as what contains it")
    return pc, PLANS[pc][name]


def _run(pc: Any, plan: Plan, inputs: Sequence[Tensor], params: Sequence[Tensor], state: Sequence[Tensor]) -> Any:
    """A call of a compiled module with these tensors in the place of the model's, as a graph hands them over.

    Raises CompileError where the program reads or writes what is no operand.
    """
    args, kwargs = plan.arguments(inputs)
    runtime, tables, named = pc._program(pc._call(args, kwargs), args, kwargs)
    runtime.writes.refuse_in_graphs()
    graph = runtime.writes.imported.graph
    own = plan.tables(tables, params, state, [graph.origin[b] for b in graph.updates])
    return runtime.interface.assemble(pc._step(runtime, own, named), named)


def _leaf(t: Tensor, learns: bool) -> Tensor:
    return t.detach().requires_grad_() if learns else t.detach()


@torch.library.custom_op("pccompile::call", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def call(
    name: str,
    autocast: str,
    learning: Sequence[bool],
    inputs: Sequence[Tensor],
    params: Sequence[Tensor],
    state: Sequence[Tensor],
) -> list[Tensor]:
    """What a compiled module returns, then what it leaves in the written ones of `state`, and the token of the call.

    name: that of a plan. autocast: what `setting` says. learning: which inputs and parameters a gradient is wanted of.
    state: buffers and other tensors of the model.
    """
    pc, plan = plan_of(name)
    flags = iter(learning)
    with _as_in_eager(autocast, any(learning)):
        own = [_leaf(t, next(flags)) for t in inputs]
        weights = [_leaf(t, next(flags)) for t in params]
        held = [t.detach().clone() if i in plan.written else t.detach() for i, t in enumerate(state)]
        values = plan.chosen(_run(pc, plan, own, weights, held))
        leaves = [t for t in (*own, *weights) if t.requires_grad]
    taken = {t.untyped_storage().data_ptr() for t in (*inputs, *params, *state) if t.numel()}
    results = [v.detach().clone() if v.untyped_storage().data_ptr() in taken else v.detach() for v in values]
    left = [held[i] for i in plan.written]
    return [*results, *left, token_of(values, leaves) if leaves else torch.zeros(TOKEN, dtype=torch.uint8)]


@call.register_fake
def _(name: str, *others: Any) -> list[Tensor]:
    _, plan = plan_of(name)
    state = others[-1]
    made = [torch.empty(v.shape, dtype=v.dtype, device=v.device, memory_format=order_of(v)) for v in plan.values]
    left = [torch.empty_like(state[i]) for i in plan.written]
    return [*made, *left, torch.empty(TOKEN, dtype=torch.uint8)]


@torch.library.custom_op("pccompile::call_backward", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def call_backward(token: Tensor, grads: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of `leaves`, the operands that learn, from those that arrive at the values of a call.

    What none of these depends on gets zeros.
    """
    made = call_of(token)
    sent = [(o, g) for o, g in zip(made.outputs, grads, strict=False) if g is not None and o.requires_grad]
    device = leaves[0].device.type if leaves else "cpu"
    with torch._C._ForceDispatchKeyGuard(_INCLUDED, _EXCLUDED), without_autocast(device):
        found: Sequence[Tensor | None] = [None] * len(made.leaves)
        if sent:
            outputs, given = zip(*sent, strict=True)
            with torch.enable_grad():
                found = torch.autograd.grad(outputs, made.leaves, given, retain_graph=True, allow_unused=True)
    seen = {g.untyped_storage().data_ptr() for g in grads if g is not None and g.numel()}
    results = []
    for g, leaf in zip(found, leaves, strict=True):
        result = torch.zeros_like(leaf, memory_format=torch.contiguous_format) if g is None else g.detach()
        result = laid_out(result, torch.contiguous_format)
        memory = result.untyped_storage().data_ptr()
        results.append(result.clone() if memory in seen and result.numel() else result)
        seen.add(results[-1].untyped_storage().data_ptr())
    return results


@call_backward.register_fake
def _(token: Tensor, grads: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> list[Tensor]:
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in leaves]


def _keep(ctx: Any, inputs: Any, output: list[Tensor]) -> None:
    _, _, learning, own, params, state = inputs
    ctx.learning, ctx.counts = tuple(learning), (len(own), len(params), len(state))
    ctx.set_materialize_grads(False)
    leaves = [t for t, learns in zip((*own, *params), learning, strict=True) if learns]
    ctx.save_for_backward(output[-1], *leaves)


def _backward(ctx: Any, grads: list[Tensor | None]) -> Any:
    token, *leaves = ctx.saved_tensors
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise CompileError("a compiled model cannot be differentiated twice (create_graph=True)")
    found = iter(torch.ops.pccompile.call_backward(token, grads[:-1], leaves))
    all_ = [next(found) if learns else None for learns in ctx.learning]
    inputs, _, state = ctx.counts
    return None, None, None, all_[:inputs], all_[inputs:], [None] * state


call.register_autograd(_backward, setup_context=_keep)
