"""A call of a compiled module while Dynamo traces: one operation of its graph, or a refusal that says why."""

from __future__ import annotations

import itertools
import uuid
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.decorators import nonstrict_trace
from torch._dynamo.source import ConstantSource
from torch._guards import Guard, TracingContext
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from pccompile.diagnostics import CompileError
from pccompile.runtime.dynamo_notes import compiles_here
from pccompile.runtime.graph_operator import MODULES, PLANS, setting
from pccompile.runtime.graph_plan import Plan, laid_out, order_of, plan, refusal
from pccompile.runtime.model_state import ModelState

_PROCESS = uuid.uuid4().hex
"""In each name: compiled graphs may be kept on disk, where another process must not take them for its own."""
_numbers = itertools.count()
_reasons: dict[str, str] = {}
AS_IT_IS = "a compiled model runs as it is here, between two graphs, which fullgraph=True forbids: "
HERE = AS_IT_IS + 'the backend "pccompile" makes no piece of it; give it the model itself'
BETWEEN_PATHS, BETWEEN_GROUPS = "..", "..."
"""No name of a module or a tensor is empty or has a dot in it, so no path has two side by side."""
Paths = tuple[tuple[str, ...], ...]


def register(pc: Any) -> str:
    """The name by which graphs find a compiled module."""
    name = f"{_PROCESS}:{next(_numbers)}"
    MODULES[name] = pc
    return name


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
def obstacle(name: str) -> str:
    """Why no call of a module can be an operation of the graph that Dynamo traces now; '' where one may be.

    A backend of this package makes pieces of graphs, and has no rule for an operation that is a whole program.
    """
    if compiles_here():
        return HERE
    pc = MODULES[name]
    for path in itertools.chain(*operands(name)):
        if tensor_at(pc, path) is None:
            return f"{AS_IT_IS}the name of its tensor {path} has a dot in it"
    return ""


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
def listed(name: str) -> str:
    """The paths of operands as one word, which Dynamo takes for a constant."""
    return BETWEEN_GROUPS.join(BETWEEN_PATHS.join(paths) for paths in operands(name))


def operands(name: str) -> Paths:
    """The paths of parameters, and of other tensors that the model holds; each tensor once."""
    pc = MODULES[name]
    model: nn.Module = pc.__dict__["model"]
    registered = {id(p) for p in model.parameters()}
    found: tuple[dict[int, str], dict[int, str]] = {}, {}
    for path, t in pc._cache.look(model).tensors.items():
        found[0 if id(t) in registered else 1].setdefault(id(t), path)
    return tuple(found[0].values()), tuple(found[1].values())


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
def reason_for(name: str) -> str:
    """Why the call that was described last is no operation of a graph; '' where it is."""
    return _reasons.pop(name, "")


def tensors_at(pc: Any, paths: str) -> list[Tensor]:
    """The tensors under these paths; Dynamo follows each."""
    return [tensor_at(pc, path) for path in paths.split(BETWEEN_PATHS) if path]


def tensor_at(pc: Any, path: str) -> Any:
    """The tensor under a path; None where attributes do not lead there."""
    found = pc
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def traced_call(pc: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the module returns, while Dynamo traces."""
    if not torch.compiler.is_dynamo_compiling():
        return pc.called(*args, **kwargs)
    if torch.compiler.is_exporting():
        return pc.__dict__["model"](*args, **kwargs)
    reason = obstacle(name)
    if reason:
        torch._dynamo.graph_break(msg=reason)
        return pc.called(*args, **kwargs)
    params, state = (tensors_at(pc, group) for group in listed(name).split(BETWEEN_GROUPS))
    describe(name, args, kwargs, params, state)
    reason = reason_for(name)
    if reason:
        torch._dynamo.graph_break(msg=reason)
        return pc.called(*args, **kwargs)
    return one_operation(name, args, kwargs, params, state)


@nonstrict_trace
def describe(name: str, args: Any, kwargs: Any, params: Sequence[Tensor], state: Sequence[Tensor]) -> tuple[()]:
    """Note why a call is no operation, while Dynamo traces it, and let Dynamo guard what the answer rests on."""
    pc = MODULES.get(name)
    if pc is None or not any(isinstance(t, FakeTensor) for t in (*params, *state, *_tensors((args, kwargs)))):
        return ()
    guard_state(pc)
    _reasons[name] = ""
    try:
        if reason := refusal(pc):
            raise CompileError(reason)
        planned(pc, operands(name), args, kwargs, params, state)
    except CompileError as e:
        _reasons[name] = AS_IT_IS + e.problems[0].what
    return ()


@nonstrict_trace
def one_operation(name: str, args: Any, kwargs: Any, params: Sequence[Tensor], state: Sequence[Tensor]) -> Any:
    """The call: run as it is by a graph that runs operation by operation, and one operation in all others."""
    pc = MODULES.get(name)
    if pc is None:
        raise CompileError("the compiled model of this graph is gone", hint="keep it as long as what contains it")
    if not any(isinstance(t, FakeTensor | FunctionalTensor) for t in (*params, *state, *_tensors((args, kwargs)))):
        return torch.utils._pytree.tree_map_only(Tensor, _ordered, pc.called(*args, **kwargs))
    own, inputs = planned(pc, operands(name), args, kwargs, params, state)
    number = f"{name}:{next(_numbers)}"
    PLANS.setdefault(pc, {})[number] = own
    MODULES[number] = pc
    grad = torch.is_grad_enabled()
    learning = [t.requires_grad and r and grad for t, r in zip((*inputs, *params), own.reached, strict=True)]
    given = number, setting([*inputs, *params]), learning, inputs, list(params), list(state)
    values = torch.ops.pccompile.call(*given)
    with torch.no_grad():
        for i, left in zip(own.written, values[len(own.values) : -1], strict=True):
            state[i].copy_(left)
    return own.result(inputs, values[: len(own.values)])


def _ordered(t: Tensor) -> Tensor:
    return laid_out(t, order_of(t))


def planned(
    pc: Any, paths: Paths, args: Any, kwargs: Any, params: Sequence[Tensor], state: Sequence[Tensor]
) -> tuple[Plan, list[Tensor]]:
    """How a call runs as an operation whose operands stand under these paths."""
    named = (dict(zip(p, t, strict=True)) for p, t in zip(paths, (params, state), strict=True))
    return plan(pc, args, kwargs, *named)


def _tensors(values: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(values) if isinstance(t, Tensor)]


def guard_state(pc: Any) -> None:
    """Let the frame that Dynamo compiles now be compiled anew where the model has changed in anything that is compared.

    Dynamo itself guards what its trace has read, which is less: modes, hooks and attributes are read by no trace.
    """
    context = TracingContext.try_get()
    if context is None:
        return
    holds = _holds(pc)

    def create(builder: Any, guard: Guard) -> None:
        parts = ["___pccompile_holds()"]
        builder.add_python_lambda_leaf_guard_to_root(parts, parts, {"___pccompile_holds": holds})

    number = next(_numbers)
    context.guards_context.dynamo_guards.add(Guard(ConstantSource(f"pccompile_{number}"), create))


def _holds(pc: Any) -> Any:
    """Whether a compiled module's model is as it is now."""
    alive, cache = weakref.ref(pc), pc._cache
    model: nn.Module = pc.__dict__["model"]
    state = ModelState(model, cache.written, cache.observers)
    learns = [p.requires_grad for p in model.parameters()]

    def holds() -> bool:
        now = alive()
        if now is None or now._cache is not cache or cache.places:
            return False
        return state.holds() and [p.requires_grad for p in now.__dict__["model"].parameters()] == learns

    return holds
