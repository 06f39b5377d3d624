"""Forward hooks while a model is captured: those that change what is computed are traced, those that look on run later.

A hook that only looks on (an activation recorder) must run at each call, with the module and with what it would see in
eager torch. While a model is captured, such a hook is not run; what it would see becomes outputs of the program,
without a gradient. One that changes values is traced with the model; where it does anything besides, it runs again
afterwards for that, and what it returns then is dropped. So does one of an installed package that forward tells
something in the call, as transformers tells its hooks where to collect hidden states: forward reads what they collect.
"""

from __future__ import annotations

import dis
import inspect
import threading
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils import _pytree as pytree

from pccompile.diagnostics import CompileError, Location
from pccompile.frontends.code_reads import CodeReads, functions_in, functions_of, names_in
from pccompile.frontends.snapshots import CONSTANT, Describer, Snapshots, is_foreign, is_own_code
from pccompile.ops.functions import stop_gradient

HOOKS = ("_forward_pre_hooks", "_forward_hooks")
PURE = frozenset(
    (
        *("len", "isinstance", "issubclass", "tuple", "list", "dict", "set", "range", "zip", "enumerate", "type"),
        *("max", "min", "sum", "abs", "float", "int", "bool", "getattr", "hasattr", "next", "iter", "map", "any"),
        *("filter", "all", "sorted", "reversed", "round", "slice", "super", "str", "repr", "ValueError", "TypeError"),
    )
)
"""Builtins that leave nothing behind."""


@dataclass(eq=False)
class Observation:
    """A call of a hook that is to run after the program: `leaves` are positions among what it is shown, or constants.

    `spec` puts the leaves together to the hook's arguments after the module; `final` are the positions of what is
    written over a leaf later in forward, which a hook that keeps the tensor sees in eager torch. `traced` says that its
    result is in the program already.
    """

    hook: Callable[..., Any]
    module: nn.Module
    path: str
    spec: pytree.TreeSpec
    leaves: list[tuple[bool, Any]]
    learning: frozenset[int]
    final: dict[int, int] = field(default_factory=dict)
    traced: bool = False

    @property
    def owner(self) -> str:
        """The hook and its module in words."""
        return f"the forward hook {hook_name(self.hook)} of {self.path or type(self.module).__name__}"


def hook_name(hook: Any) -> str:
    """What a person calls a hook."""
    return str(getattr(hook, "__qualname__", type(hook).__qualname__))


def _code_of(hook: Any) -> Any:
    """The function that a hook is, or the class of an object that is called."""
    return hook if hasattr(hook, "__qualname__") else type(hook)


class HookRecord:
    """What the hooks of a model did while it was captured.

    `observers` are the hooks that run after the program, `written` the attributes (path, name) that only they write.
    """

    def __init__(self, model: nn.Module, hooks: Sequence[Any]) -> None:
        self.model, self._installed = model, [h for h in hooks if not is_own_code(_code_of(h))]
        self.paths: dict[int, str] = {}
        for path, module in model.named_modules():
            self.paths.setdefault(id(module), path)
        self.observations: list[Observation] = []
        self.observers: dict[int, Any] = {}
        self.written: set[tuple[str, str]] = set()
        self._shown: list[Any] = []
        self._versions: list[tuple[Observation, int, Tensor, int]] = []
        self._read: frozenset[str] | None = None
        self._inside = False
        self._spoken: dict[int, dict[int, tuple[Any, dict[str, Any]]]] = {}
        self._thread = threading.get_ident()

    def call(self, forward: Callable[..., Any], tables: dict[str, Any], args: Any, kwargs: Any) -> Any:
        """The model's result with its own hooks, and what is to be shown to hooks."""
        self.observations, self._shown, self._versions, self._inside = [], [], [], True
        own = self.model.__dict__
        outer = {k: own.get(k) for k in ("forward", *tables)}
        own.update(tables)
        own["forward"] = forward
        self._spoken = {id(h): spoken_through(h) for h in self._installed}
        try:
            result = nn.Module._call_impl(self.model, *args, **kwargs)
        finally:
            self._inside = False
            own.update(outer)
        for observation, leaf, tensor, version in self._versions:
            if tensor._version != version:
                observation.final[leaf] = self._show(tensor)
        return (result, self._shown) if self.observations else result

    def wrapped(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """What stands in a table of hooks in place of `hook` during capture."""

        def run(module: nn.Module, *given: Any) -> Any:
            if threading.get_ident() != self._thread:
                return hook(module, *given)
            if not self._inside or id(module) not in self.paths:
                return None
            return self._run(hook, module, given)

        return run

    def _run(self, hook: Callable[..., Any], module: nn.Module, given: tuple[Any, ...]) -> Any:
        if is_foreign(_code_of(hook)):
            return hook(module, *given)
        if self._told(hook):
            result = hook(module, *given)
            self._record(hook, module, given, traced=True)
            return result
        if looks_on(hook):
            return self._record(hook, module, given)
        effects = Effects(self.model, hook)
        tensors = [t for t in pytree.tree_leaves(given) if isinstance(t, Tensor)]
        versions = [t._version for t in tensors]
        try:
            result = hook(module, *given)
        except Exception:  # it reads numbers, say: it can only look on, and what it returns is checked when it runs
            effects.undo()
            return self._record(hook, module, given)
        in_place = [t._version for t in tensors] != versions
        written = effects.attributes()
        changes = result is not None or in_place or bool(self._reads() & {name for _, name in written})
        effects_left = effects.undo(keep=self._reads() if changes else frozenset())
        if not changes:
            self.written.update((self.paths.get(id(m), ""), name) for m, name in written)
            return self._record(hook, module, given)
        if not effects_left and is_pure(hook):
            return result
        if in_place:
            raise CompileError(
                f"the forward hook {hook_name(hook)} changes a value in place and does something besides",
                Location(self.paths[id(module)]),
                "return a new value from it",
            )
        self.written.update((self.paths.get(id(m), ""), name) for m, name in written if name not in self._reads())
        self._record(hook, module, given, traced=True)
        return result

    def _told(self, hook: Any) -> bool:
        """Whether forward has set, in this call, what a hook of a package reads: it may read what the hook collects."""
        before = self._spoken.get(id(hook), {})
        now = spoken_through(hook) if before else {}
        return any(table[k] is not before[i][1].get(k) for i, (_, table) in now.items() if i in before for k in table)

    def _reads(self) -> frozenset[str]:
        """The names that the code of the model reads."""
        if self._read is None:
            kinds = {type(m) for m in self.model.modules()}
            reads = CodeReads(Describer(Snapshots()))
            reads.follow(kinds)
            own = [names_in(f.__code__)[1] for k in kinds for f in functions_of(k.__dict__.get("forward", k.forward))]
            self._read = frozenset().union(reads.names, *own)
        return self._read

    def _record(self, hook: Any, module: nn.Module, given: tuple[Any, ...], traced: bool = False) -> None:
        leaves, spec = pytree.tree_flatten(given)
        path = self.paths[id(module)]
        observation = Observation(hook, module, path, spec, [], frozenset(), traced=traced)
        learning: set[int] = set()
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor | torch.SymInt | torch.SymFloat | torch.SymBool):
                observation.leaves.append((True, self._show(leaf)))
                if isinstance(leaf, Tensor):
                    self._versions.append((observation, i, leaf, leaf._version))
                    learning.update({i} if leaf.requires_grad else ())
            elif isinstance(leaf, CONSTANT):
                observation.leaves.append((False, leaf))
            else:
                raise CompileError(
                    f"{observation.owner} is given a {type(leaf).__name__}, which torch's pytrees do not know",
                    Location(path),
                    "register it with torch.utils._pytree, or remove the hook",
                )
        observation.learning = frozenset(learning)
        self.observations.append(observation)
        self.observers[id(hook)] = hook

    def _show(self, leaf: Any) -> int:
        self._shown.append(stop_gradient()(leaf) if isinstance(leaf, Tensor) else leaf)
        return len(self._shown) - 1


class Effects:
    """What a hook changes besides what it returns: in its own variables, and attributes of the model's modules."""

    def __init__(self, model: nn.Module, hook: Any) -> None:
        self._snapshots = Snapshots()
        describe = Describer(self._snapshots)
        describe(hook)
        describe.functions.update(dict.fromkeys(functions_in(hook)))
        CodeReads(describe).follow(())
        self._modules = [(m, dict(m.__dict__)) for m in model.modules()]

    def attributes(self) -> list[tuple[nn.Module, str]]:
        """The attributes of modules that were set."""
        return [
            (m, name)
            for m, before in self._modules
            for name in m.__dict__.keys() | before.keys()
            if m.__dict__.get(name, self) is not before.get(name, self)
        ]

    def undo(self, keep: frozenset[str] = frozenset()) -> bool:
        """Put back what was changed, but for attributes in `keep`; return whether there was anything to put back."""
        changed = self._snapshots.restore()
        for m, name in self.attributes():
            if name in keep:
                continue
            changed = True
            before = next(b for other, b in self._modules if other is m)
            if name in before:
                m.__dict__[name] = before[name]
            else:
                del m.__dict__[name]
        return changed


def spoken_through(hook: Any) -> dict[int, tuple[Any, dict[str, Any]]]:
    """The objects by which others may tell a hook something: those that its code reads by name, and what they hold."""
    found: dict[int, tuple[Any, dict[str, Any]]] = {}
    for function in functions_in(hook):
        cells = [c.cell_contents for c in function.__closure__ or () if c != types.CellType()]
        named = [function.__globals__.get(n) for n in names_in(function.__code__)[0]]
        for value in (*cells, *named):
            table = getattr(value, "__dict__", None)
            if isinstance(table, dict) and not isinstance(value, nn.Module | types.FunctionType):
                variables = {k: v.get(None) for k, v in table.items() if isinstance(v, ContextVar)}
                found[id(value)] = value, {**table, **variables}
    return found


def looks_on(hook: Any) -> bool:
    """Whether a hook's code shows that it returns nothing and writes to nothing that a model could read."""
    functions = functions_in(hook)
    return bool(functions) and all(_looks_on(f.__code__) for f in functions)


def _looks_on(code: types.CodeType) -> bool:
    steps = list(dis.get_instructions(code))
    for before, step in zip([None, *steps], steps, strict=False):
        if step.opname in ("STORE_ATTR", "STORE_SUBSCR", "DELETE_ATTR", "DELETE_SUBSCR", "YIELD_VALUE"):
            return False
        none = before is not None and before.opname == "LOAD_CONST" and before.argval is None
        none = none and not step.is_jump_target
        if (step.opname == "RETURN_VALUE" and not none) or (step.opname == "RETURN_CONST" and step.argval is not None):
            return False
    names = names_in(code)[1]
    return not any(n == "setattr" or n == "data" or (n.endswith("_") and not n.endswith("__")) for n in names)


def is_pure(hook: Any) -> bool:
    """Whether a hook's code calls nothing but torch and what leaves nothing behind."""
    for function in functions_in(hook):
        for name in names_in(function.__code__)[0]:
            value = function.__globals__.get(name)
            if name not in function.__globals__:
                if name not in PURE:
                    return False
            elif callable(value) or isinstance(value, types.ModuleType):
                root = str(getattr(value, "__module__", None) or getattr(value, "__name__", ""))
                if root.partition(".")[0] not in ("torch", "math", "operator", "typing", "functools", "itertools"):
                    return False
    return True


@contextmanager
def recorded_hooks(model: nn.Module) -> Iterator[HookRecord | None]:
    """Within: forward hooks of `model` and global ones are looked at as they run. None where there are none."""
    modules = list(model.modules())
    tables = [m.__dict__[t] for m in modules for t in HOOKS]
    tables += [torch_module.__dict__[f"_global{t}"] for t in HOOKS]
    if not any(tables):
        yield None
        return
    recorder = HookRecord(model, [h for t in tables for h in t.values()])
    before = [dict(t) for t in tables]
    own, forward = {t: model.__dict__[t] for t in HOOKS}, model.forward
    instance = model.__dict__.get("forward")

    def call(*args: Any, **kwargs: Any) -> Any:
        return recorder.call(forward, own, args, kwargs)

    call.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    try:
        for table in tables:
            for key, hook in table.items():
                table[key] = recorder.wrapped(hook)
        model.__dict__.update({t: OrderedDict() for t in HOOKS})
        model.__dict__["forward"] = call
        yield recorder
    finally:
        del model.__dict__["forward"]
        model.__dict__.update({"forward": instance} if instance else {})
        model.__dict__.update(own)
        for table, hooks in zip(tables, before, strict=True):
            table.update(hooks)
