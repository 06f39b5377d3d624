"""Automatic mixed precision: the casts that eager torch makes under autocast, written out as operations.

An exported program keeps autocast as a region, whose operations stand without their casts. Which casts an operation
makes is asked of torch itself: it is run on fake tensors under that setting, and what comes out is recorded.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pccompile.diagnostics import CompileError, RuleError, first_line
from pccompile.frontends.functional import op_name
from pccompile.frontends.user_places import place_of
from pccompile.ops.functions import stop_gradient
from pccompile.ops.packed import LAYERS
from pccompile.ops.recurrent_operators import NAMES
from pccompile.ops.signatures import overload

LEAD = {"wrap_with_autocast": 4, "wrap_with_set_grad_enabled": 1}
"""Regions, and how many settings stand before the program among their arguments."""
WHOLE = ("aten.lstm.input",)
"""Operators that have a kernel of their own on some devices, all of whose arguments are cast."""
PACKED = tuple(LAYERS.values())
"""Operators over packed sequences, for which torch casts within each step."""
CAST = torch.ops.aten._to_copy.default


@dataclass(frozen=True)
class Autocast:
    """A setting of autocast that is switched on."""

    device: str
    dtype: torch.dtype

    @contextmanager
    def on(self) -> Iterator[None]:
        """Within: autocast is on, and casts nothing once for several uses."""
        with torch.autocast(self.device, dtype=self.dtype, cache_enabled=False):
            yield


def current(device: str) -> Autocast | None:
    """The setting that holds for tensors on `device`; None where autocast is off."""
    if not torch._C._is_any_autocast_enabled():
        return None
    if device == "meta" or not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return Autocast(device, torch.get_autocast_dtype(device))


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """Within: operations on tensors on `device` keep the types of their arguments."""
    return nullcontext() if current(device) is None else torch.autocast(device, enabled=False)


def write_casts(module: fx.GraphModule, setting: Autocast | None) -> None:
    """Write out, in place, the casts of all operations in `module` that run under autocast.

    Types follow: torch.export has those of a program that Dynamo cut as they would be without autocast.
    """
    for n in list(module.graph.nodes):
        if n.op != "call_function" or n._erased:
            continue
        if isinstance(n.target, torch._ops.HigherOrderOperator):
            _write_within(module, n, setting)
        elif "_assert_tensor_metadata" in str(n.target):
            module.graph.erase_node(n)
        elif n.target is operator.getitem:
            n.meta["val"] = n.args[0].meta["val"][n.args[1]]
        elif isinstance(n.target, torch._ops.OpOverload):
            if setting is not None and n.target is not stop_gradient():
                _cast(module.graph, n, setting)
            if not n._erased and str(n.target) not in WHOLE:
                _retype(n)
    module.recompile()


def _write_within(module: fx.GraphModule, n: fx.Node, setting: Autocast | None) -> None:
    """Write the casts within the programs that `n` calls, and give `n` the types that they return."""
    lead = LEAD.get(n.target.name(), 0)  # type: ignore[union-attr]
    if lead == LEAD["wrap_with_autocast"]:
        device, dtype, enabled = n.args[:3]
        setting = Autocast(device, dtype or torch.get_autocast_dtype(device)) if enabled else None  # type: ignore[arg-type]
    for body in n.all_input_nodes:
        inner = _attribute(module, str(body.target)) if body.op == "get_attr" else None
        if not isinstance(inner, fx.GraphModule):
            continue
        places = [p for p in inner.graph.nodes if p.op == "placeholder"]
        if lead:
            for place, argument in zip(places, n.args[lead + 1 :], strict=True):
                place.meta["val"] = argument.meta["val"] if isinstance(argument, fx.Node) else argument
        write_casts(inner, setting)
        if lead:
            returned = next(p for p in inner.graph.nodes if p.op == "output").args[0]
            n.meta["val"] = fx.node.map_arg(returned, lambda p: p.meta["val"])


def _floating(values: Any) -> list[torch.Tensor]:
    return [v for v in pytree.tree_leaves(values) if isinstance(v, torch.Tensor) and v.is_floating_point()]


def _retype(n: fx.Node) -> None:
    """Give `n` the type that it has with its arguments, where these have other types than when it was captured."""
    results = _floating(n.meta.get("val"))
    read = _floating([a.meta.get("val") for a in n.all_input_nodes])
    if any(t.dtype is not r.dtype for t in read for r in results):
        args, kwargs = fx.node.map_arg((n.args, n.kwargs), lambda a: a.meta["val"])
        with torch.no_grad():
            n.meta["val"] = n.target(*args, **kwargs)  # type: ignore[operator]


def _attribute(module: torch.nn.Module, path: str) -> Any:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    return found


class _Record(TorchDispatchMode):
    """Notes the casts that an operation makes of its arguments, and whether it casts anything else."""

    def __init__(self, arguments: Sequence[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.arguments = {id(a): a for a in arguments}
        self.casts: dict[int, torch.dtype] = {}
        self.others = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`."""
        result = func(*args, **(kwargs or {}))
        if func is CAST and args[0].dtype is not result.dtype:
            if id(args[0]) in self.arguments:
                self.casts[id(args[0])] = result.dtype
            else:
                self.others = True
        return result


def _cast(graph: fx.Graph, n: fx.Node, setting: Autocast) -> None:
    """Write the casts of one operation before it, or the operation as its parts where it casts within.

    Raises CompileError for a recurrent layer over packed sequences.
    """
    if op_name(n.target) in PACKED:
        hint = "switch autocast off around it: with torch.autocast(device, enabled=False)"
        raise CompileError(
            "a recurrent layer over packed sequences under autocast is not compiled", place_of(n, None), hint
        )
    if op_name(n.target) in NAMES:  # torch casts within each step, which only its own operator shows
        n.target = overload(NAMES[op_name(n.target)])
    args, kwargs = fx.node.map_arg((n.args, n.kwargs), lambda a: a.meta["val"])
    tensors = {a: a.meta["val"] for a in n.all_input_nodes if isinstance(a.meta.get("val"), torch.Tensor)}
    if not any(t.is_floating_point() for t in tensors.values()):
        return
    record = _Record(list(tensors.values()))
    assert isinstance(n.target, torch._ops.OpOverload)
    if str(n.target) in WHOLE:
        record.casts = {id(t): setting.dtype for t in tensors.values() if t.dtype is torch.float32}
        n.meta["val"] = tuple(torch.empty_like(t, dtype=setting.dtype) for t in n.meta["val"])
    else:
        with _told(n), torch.no_grad(), setting.on(), record:
            n.target(*args, **kwargs)
    if record.others:
        with _told(n):
            _write_parts(graph, n, setting)
        return
    with graph.inserting_before(n):
        for a, tensor in tensors.items():
            if (dtype := record.casts.get(id(tensor))) is not None:
                made = graph.call_function(CAST, (a,), {"dtype": dtype})
                made.meta = {**n.meta, "val": CAST(tensor, dtype=dtype)}
                n.replace_input_with(a, made)


@contextmanager
def _told(n: fx.Node) -> Iterator[None]:
    """Within, torch is asked for the casts of one operation. Raises RuleError where it does not answer."""
    try:
        yield
    except RuntimeError as e:
        raise RuleError(
            f"the casts of {op_name(n.target)} under autocast cannot be told: {first_line(e)}",
            hint="switch autocast off around it, or compile it with dynamic_shapes that fix its sizes",
        ) from e


def _write_parts(graph: fx.Graph, n: fx.Node, setting: Autocast) -> None:
    inputs = [a for a in n.all_input_nodes if isinstance(a.meta.get("val"), torch.Tensor)]

    def run(*tensors: torch.Tensor) -> Any:
        known = dict(zip(inputs, tensors, strict=True))
        args, kwargs = fx.node.map_arg((n.args, n.kwargs), lambda a: known.get(a, a.meta["val"]))
        with setting.on():
            return n.target(*args, **kwargs)  # type: ignore[operator]

    with torch.no_grad():
        parts = make_fx(run, tracing_mode="real", _allow_non_fake_inputs=True)(*(a.meta["val"] for a in inputs))
    env: dict[fx.Node, Any] = dict(zip((p for p in parts.graph.nodes if p.op == "placeholder"), inputs, strict=True))
    with graph.inserting_before(n):
        for p in parts.graph.nodes:
            if p.op == "call_function":
                env[p] = graph.node_copy(p, env.__getitem__)
                env[p].meta = {**n.meta, "val": p.meta.get("val")}
            elif p.op == "output":
                result = fx.node.map_arg(p.args[0], env.__getitem__)
    if not isinstance(result, fx.Node):
        for part in list(n.users):
            part.replace_all_uses_with(result[part.args[1]])
            graph.erase_node(part)
    else:
        n.replace_all_uses_with(result)
    graph.erase_node(n)
