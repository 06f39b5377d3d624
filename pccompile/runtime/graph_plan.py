"""What a call of a compiled module returns, told from fake tensors: for the graph that another compiler makes of it.

A copy of the model runs on tensors without data. So nothing of the model's changes, and lengths may stay free.
"""

from __future__ import annotations

import copy
import random
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import TracingContext, detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from pccompile.diagnostics import CompileError, first_line
from pccompile.frontends.places import SKIPPED, leaves_of
from pccompile.runtime.model_state import FORWARD_HOOKS, HOOK_TABLES, OWN, Tables

PLAIN = (int, float, bool, str, type(None))


@dataclass(frozen=True)
class Plan:
    """How a call runs as one operation of a graph.

    module: a weak reference to the compiled module. leaves: what stands at each leaf of its arguments, None for a
    tensor; spec: their structure. results: for each leaf of the result an operand or a value of the operation
    ("input" or "value", with its number), or a constant. values: the fake tensors that the operation returns;
    out_spec: the structure of the result. paths: those of the operands that are the model's.
    written: which of the operands that are no parameters a call may write. reached: which of the inputs and parameters
    a gradient comes to from any of the results.
    """

    module: weakref.ref[Any]
    spec: pytree.TreeSpec
    leaves: tuple[tuple[bool, Any], ...]
    results: tuple[tuple[str, Any], ...]
    values: tuple[Tensor, ...]
    out_spec: pytree.TreeSpec
    paths: tuple[tuple[str, ...], tuple[str, ...]]
    written: tuple[int, ...]
    reached: tuple[bool, ...]

    def tables(
        self, tables: Tables, params: Sequence[Tensor], state: Sequence[Tensor], updates: Iterable[str]
    ) -> Tables:
        """A program's tables with the operands in them. Raises CompileError for a tensor that is none of them.

        updates: the paths of the buffers that the program writes.
        """
        pc: Any = self.module()
        held = pc._cache.look(pc.__dict__["model"]).tensors
        given = zip((*self.paths[0], *self.paths[1]), (*params, *state), strict=True)
        known = {id(held[path]): t for path, t in given if path in held}
        for path, t in (*tables[0].items(), *tables[1].items()):
            if id(t) not in known and path in held:
                raise CompileError(f"{path} is another tensor than when the graph was traced")
            if id(t) not in known and t.requires_grad:
                raise CompileError(f"{path} learns and is no tensor of a module", hint="leave out fullgraph=True")
        self._refuse_updates(updates, tables[1], known, state)
        params_, state_ = ({path: known.get(id(t), t) for path, t in table.items()} for table in tables)
        return params_, state_

    def _refuse_updates(
        self, updates: Iterable[str], buffers: dict[str, Tensor], known: dict[int, Tensor], state: Sequence[Tensor]
    ) -> None:
        """Raise CompileError for a buffer that a call writes where the graph was made for one that does not."""
        written = {id(state[i]) for i in self.written}
        for path in updates:
            if id(known.get(id(buffers[path]))) not in written:
                raise CompileError(
                    f"a call within a graph writes {path}, which the graph does not know",
                    hint="leave out fullgraph=True, or run the model outside torch.compile",
                )

    def arguments(self, inputs: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the call, with these tensors in them."""
        given = iter(inputs)
        leaves = [next(given) if tensor else leaf for tensor, leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return args, kwargs

    def chosen(self, result: Any) -> list[Tensor]:
        """What the operation returns of the model's result. Raises CompileError for one of another form."""
        leaves, spec = pytree.tree_flatten(result)
        if spec != self.out_spec:
            raise _other("has another structure")
        found: dict[int, Tensor] = {}
        for leaf, (kind, which) in zip(leaves, self.results, strict=True):
            if isinstance(leaf, Tensor) is (kind == "constant"):
                raise _other("has a tensor where there was none, or the other way round")
            if kind == "constant" and type(which) in PLAIN and leaf != which:
                raise _other(f"has {leaf!r} where there was {which!r}")
            if kind == "value":
                found.setdefault(which, leaf)
        for i, value in found.items():
            if value.dtype != self.values[i].dtype or value.dim() != self.values[i].dim():
                raise _other("has a tensor of another dtype or number of dimensions")
        return [laid_out(found[i], order_of(v)) for i, v in enumerate(self.values)]

    def result(self, inputs: Sequence[Tensor], values: Sequence[Tensor]) -> Any:
        """The model's result. What carries no gradient in eager torch carries none."""
        kept = [v if own.requires_grad else v.detach() for v, own in zip(values, self.values, strict=True)]
        table = {"input": inputs, "value": kept}
        leaves = [which if kind == "constant" else table[kind][which] for kind, which in self.results]
        return pytree.tree_unflatten(leaves, self.out_spec)


def _other(how: str) -> CompileError:
    what = f"a result that was traced {how} than at the trace"
    return CompileError(what.replace("another", "another one"), hint="leave out fullgraph=True")


def order_of(t: Tensor) -> torch.memory_format:
    """The order in which an operation returns a tensor's entries."""
    if not t.is_contiguous() and t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def laid_out(t: Tensor, order: torch.memory_format) -> Tensor:
    """`t` with its entries in this order."""
    return t.contiguous(memory_format=order)


def refusal(pc: Any) -> str:
    """Why no call of a compiled module can be an operation of a graph, as it is now; '' where it can."""
    model: nn.Module = pc.__dict__["model"]
    if pc._cache.places:
        places = ", ".join(str(p) for p in pc._cache.places[:1])
        return f"it writes the attribute {places}, which later calls read"
    if type(pc._modules) is not dict:
        return "it has weights of its own beside the model's"
    tables = [t for m in (model, pc) for n in m.modules() for t in HOOK_TABLES if n.__dict__[t]]
    if tables or any(torch.nn.modules.module.__dict__[f"_global{t}"] for t in FORWARD_HOOKS):
        return "it has hooks, which run in eager torch only"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "it cannot be transformed by torch.func"
    return ""


def plan(
    pc: Any, args: Any, kwargs: Any, params: dict[str, Tensor], state: dict[str, Tensor]
) -> tuple[Plan, list[Tensor]]:
    """How a call of `pc` runs as an operation, and the tensors among its arguments.

    Raises CompileError where it cannot, for a reason that these arguments tell.
    """
    model: nn.Module = pc.__dict__["model"]
    leaves, spec = pytree.tree_flatten((args, kwargs))
    leaves = [int(leaf) if isinstance(leaf, torch.SymInt) else leaf for leaf in leaves]
    if foreign := next((leaf for leaf in leaves if not isinstance(leaf, (Tensor, *PLAIN))), None):
        raise CompileError(f"an argument is a {type(foreign).__name__}")
    inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if len({id(t) for t in inputs}) < len(inputs):
        raise CompileError("two arguments are one tensor")
    mode = _mode([*inputs, *params.values(), *state.values()])
    with _disable_current_modes(), mode:
        fakes = {id(t): _fake(t) for t in (*inputs, *params.values(), *state.values())}
        own = [fakes[id(t)] for t in inputs]
        twin, beside = _twin(model, {path: fakes[id(t)] for path, t in (*params.items(), *state.items())}, pc)
        given = iter(own)
        call = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        result = _run(twin, *pytree.tree_unflatten(call, spec))
        _refuse_writes(own, [fakes[id(t)] for t in params.values()], beside)
        results, values, out_spec = _results(result, own, list(fakes.values()))
        written = _written(model, state, fakes)
        reached = _reached(values, [*own, *(fakes[id(t)] for t in params.values())])
    taken = tuple((True, None) if isinstance(leaf, Tensor) else (False, leaf) for leaf in leaves)
    paths = tuple(params), tuple(state)
    return Plan(weakref.ref(pc), spec, taken, results, values, out_spec, paths, written, reached), inputs


def _mode(tensors: list[Tensor]) -> FakeTensorMode:
    context = TracingContext.try_get()
    mode = context.fake_mode if context is not None and context.fake_mode is not None else detect_fake_mode(tensors)
    assert mode is not None
    return mode


def _fake(t: Tensor) -> Tensor:
    """A tensor without data like `t`, which autograd knows nothing else of."""
    made = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device)
    return made.requires_grad_(t.requires_grad)


def _twin(model: nn.Module, tensors: dict[str, Tensor], pc: Any) -> tuple[nn.Module, list[Tensor]]:
    """A copy of the model that holds these tensors, and further ones where it has some in lists and dictionaries.

    Raises CompileError for a model that cannot be copied.
    """
    held = pc._cache.look(model).tensors
    memo: dict[int, Any] = {id(held[path]): fake for path, fake in tensors.items()}
    attributes = [v for m in model.modules() for k, v in m.__dict__.items() if k not in SKIPPED]
    contained = [leaf for v in attributes for leaf in leaves_of(v)[0] if isinstance(leaf, Tensor)]
    beside = {id(t): _fake(t) for t in (*held.values(), *contained) if id(t) not in memo}
    try:
        return copy.deepcopy(model, memo | beside), list(beside.values())
    except Exception as e:
        raise CompileError(f"{type(model).__name__} cannot be copied: {first_line(e)}") from e


def _run(twin: nn.Module, args: Any, kwargs: Any) -> Any:
    """What a model of fake tensors returns. Raises CompileError where it does not run, or writes into itself."""
    before = [_attributes(m) for m in twin.modules()]
    drawn = random.getstate()
    try:
        result = twin(*args, **kwargs)
    except CompileError:
        raise
    except Exception as e:
        raise CompileError(f"it does not run on tensors without data: {first_line(e)}") from e
    finally:
        random.setstate(drawn)
    if [_attributes(m) for m in twin.modules()] != before:
        raise CompileError("it writes into attributes, which later calls may read")
    return result


def _attributes(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module, as far as a call may not change them."""
    own = {k: v for k, v in module.__dict__.items() if k not in OWN}
    tensors = {(t, k): id(v) for t in ("_parameters", "_buffers") for k, v in module.__dict__[t].items()}
    copied = {k: copy.copy(v) if type(v) in (list, dict, set) else v for k, v in own.items()}
    return {k: _Same(v) for k, v in copied.items()} | {".".join(k): v for k, v in tensors.items()}


class _Same:
    """An attribute's value, equal to itself only; plain containers are so where their entries are."""

    def __init__(self, value: Any) -> None:
        self.kind = type(value)
        if self.kind in (list, set):
            self.value: Any = [id(v) if not isinstance(v, PLAIN) else v for v in value]
        elif self.kind is dict:
            self.value = {k: id(v) if not isinstance(v, PLAIN) else v for k, v in value.items()}
        else:
            self.value = value if isinstance(value, PLAIN) else id(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and (self.kind, self.value) == (other.kind, other.value)

    __hash__ = None  # type: ignore[assignment]


def _written(model: nn.Module, state: dict[str, Tensor], fakes: dict[int, Tensor]) -> tuple[int, ...]:
    """Which of the model's tensors a call may write: buffers in training mode, since batch norm's counts as no write.

    Raises CompileError for one that learns.
    """
    if learns := next((path for path, t in state.items() if t.requires_grad), None):
        raise CompileError(f"{learns} requires a gradient and is no parameter")
    training = any(m.training for m in model.modules())
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)} if training else set[str]()
    return tuple(i for i, (path, t) in enumerate(state.items()) if path in buffers or fakes[id(t)]._version)


def _refuse_writes(inputs: list[Tensor], params: list[Tensor], beside: list[Tensor]) -> None:
    """Raise CompileError where a call writes into its arguments, a parameter, or a tensor in a list."""
    if any(t._version for t in beside):
        raise CompileError("it changes a tensor in place that is neither a parameter nor a buffer")
    if any(t._version for t in inputs):
        raise CompileError("it changes an argument in place")
    if any(t._version for t in params):
        raise CompileError("it changes a parameter in place")


def _results(
    result: Any, inputs: list[Tensor], operands: list[Tensor]
) -> tuple[tuple[tuple[str, Any], ...], tuple[Tensor, ...], pytree.TreeSpec]:
    """What stands at each leaf of a result, the values among them, and its structure."""
    leaves, spec = pytree.tree_flatten(result)
    places = {id(t): i for i, t in enumerate(inputs)}
    values: list[Tensor] = []
    found: list[tuple[str, Any]] = []
    memories = {_memory(t) for t in operands}
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            found.append(("constant", leaf))
        elif id(leaf) in places:
            found.append(("input", places[id(leaf)]))
        else:
            index = next((i for i, v in enumerate(values) if v is leaf), len(values))
            if index == len(values):
                if _memory(leaf) in memories:
                    raise CompileError("it returns a view of an argument, of a tensor of its own, or two of one value")
                memories.add(_memory(leaf))
                values.append(leaf)
            found.append(("value", index))
    return tuple(found), tuple(values), spec


def _reached(values: Sequence[Tensor], leaves: Sequence[Tensor]) -> tuple[bool, ...]:
    """Which of `leaves` autograd comes to from any of `values`."""
    stack, seen, found = [v.grad_fn for v in values if v.grad_fn is not None], set[Any](), set[int]()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            found.add(id(leaf))
        stack += [child for child, _ in node.next_functions if child is not None]
    return tuple(id(t) in found for t in leaves)


def _memory(t: Tensor) -> int:
    return int(t.untyped_storage()._cdata)
