"""A model run on trial: afterwards it is as it was, and so are the random streams and the arguments."""

from __future__ import annotations

import copy
import dataclasses
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pccompile.runtime.weight_factors import Factors, weight_factors

Change = Callable[[Tensor], Tensor]
SEED = 20
"""The seed of trial runs: two of them draw the same numbers."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
HARMLESS = ("torch.nn.utils.", "torch.export.", "torch._export.")
"""Where hooks come from that only compute a parameter or look at the arguments."""


class Copies:
    """Copies that share memory, and containers, where the originals do. Parameters stand for themselves."""

    def __init__(self) -> None:
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._tensors: dict[int, tuple[Tensor, Tensor]] = {}
        self._containers: dict[int, tuple[Any, Any]] = {}

    def tensor(self, original: Tensor) -> Tensor:
        """The copy of one tensor."""
        if isinstance(original, nn.Parameter) or type(original) is not Tensor:
            return original
        if id(original) not in self._tensors:
            self._tensors[id(original)] = original, self._copy(original.detach())
        return self._tensors[id(original)][1]

    def _copy(self, original: Tensor) -> Tensor:
        if original.layout is not torch.strided or original.is_meta or original.is_conj() or original.is_neg():
            return original.clone()
        storage = original.untyped_storage()
        if storage.data_ptr() not in self._storages:
            self._storages[storage.data_ptr()] = storage.clone()
        with torch.no_grad():
            empty = torch.empty(0, dtype=original.dtype, device=original.device)
            where = original.storage_offset(), original.shape, original.stride()
            return empty.set_(self._storages[storage.data_ptr()], *where)

    def value(self, original: Any, depth: int = 4) -> Any:
        """The copy of an attribute: tensors, containers and plain records; anything else stands for itself."""
        if isinstance(original, Tensor):
            return self.tensor(original)
        if depth == 0 or isinstance(original, nn.Module | type):
            return original
        if id(original) not in self._containers:
            self._containers[id(original)] = original, self._container(original, depth)
        return self._containers[id(original)][1]

    def _container(self, original: Any, depth: int) -> Any:
        if type(original) in (list, tuple, deque, set):
            parts = [self.value(v, depth - 1) for v in original]
            return deque(parts, original.maxlen) if isinstance(original, deque) else type(original)(parts)
        if isinstance(original, dict):
            table = copy.copy(original)
            table.update({k: self.value(v, depth - 1) for k, v in original.items()})
            return table
        record = isinstance(original, SimpleNamespace) or dataclasses.is_dataclass(original)
        if record and hasattr(original, "__dict__"):
            twin: Any = copy.copy(original)
            for k, v in vars(original).items():
                object.__setattr__(twin, k, self.value(v, depth - 1))
            return twin
        return original


TABLES = ("_parameters", "_buffers", "_modules")


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Within, `model` works on copies of its buffers and attributes; its parameters are its own, without hooks.

    Afterwards its tables, attributes, flags and hooks are what they were, and no generator has moved. Numbers that are
    drawn within start from one seed.
    """
    modules = list(model.modules())
    attributes = {m: dict(m.__dict__) for m in modules}
    tables = {m: {t: dict(m.__dict__[t]) for t in TABLES} for m in modules}
    parameters = list(model.parameters())
    flags = [(p, p.requires_grad, p._backward_hooks) for p in parameters]
    copies = Copies()
    with ExitStack() as stack:
        stack.enter_context(streams([*parameters, *model.buffers()]))
        stack.enter_context(full_digits())
        try:
            for p, _, hooks in flags:
                if hooks:
                    p._backward_hooks = None
            for m in modules:
                for name, buffer in m._buffers.items():
                    m._buffers[name] = None if buffer is None else copies.tensor(buffer)
                for name, value in attributes[m].items():
                    if name not in TABLES and not name.endswith("_hooks"):
                        m.__dict__[name] = copies.value(value)
            yield
        finally:
            for m in modules:
                m.__dict__.clear()
                m.__dict__.update(attributes[m])
                for table, entries in tables[m].items():
                    m.__dict__[table].clear()
                    m.__dict__[table].update(entries)
            for p, flag, hooks in flags:
                p.requires_grad_(flag)
                if hooks:
                    p._backward_hooks = hooks


@contextmanager
def full_digits() -> Iterator[None]:
    """Within, products of float32 on a GPU are not rounded to TF32, which one kernel does and another does not."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn) if torch.cuda.is_available() else ()
    before = [b.allow_tf32 for b in backends]
    try:
        for b in backends:
            b.allow_tf32 = False
        yield
    finally:
        for b, allowed in zip(backends, before, strict=True):
            b.allow_tf32 = allowed


@contextmanager
def streams(tensors: list[Tensor]) -> Iterator[None]:
    """Within, the random streams of torch, Python and NumPy start from one seed; afterwards none has moved."""
    numpy = sys.modules.get("numpy")
    devices = sorted({t.device.index or 0 for t in tensors if t.device.type == "cuda"})
    python, arrays = random.getstate(), numpy.random.get_state() if numpy else None
    with torch.random.fork_rng(devices=devices):
        reseed(tensors)
        try:
            yield
        finally:
            random.setstate(python)
            if numpy:
                numpy.random.set_state(arrays)


def reseed(tensors: list[Tensor]) -> None:
    """Start every stream anew that a model with these tensors may draw from."""
    torch.default_generator.manual_seed(SEED)
    for device in {t.device.index or 0 for t in tensors if t.device.type == "cuda"}:
        torch.cuda.default_generators[device].manual_seed(SEED)
    random.seed(SEED)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(SEED)


def fresh(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], dict[int, Tensor]]:
    """Arguments of one's own, which a model may write into, and by position the leaves whose gradient is wanted."""
    values, spec = pytree.tree_flatten((args, dict(kwargs)))
    leaves: dict[int, Tensor] = {}
    for i, value in enumerate(values):
        if not isinstance(value, Tensor):
            continue
        values[i] = _writable(value.detach())
        if value.requires_grad:
            leaves[i] = values[i].requires_grad_()
            values[i] = _writable(leaves[i])
    own_args, own_kwargs = pytree.tree_unflatten(values, spec)
    return own_args, own_kwargs, leaves


def _writable(tensor: Tensor) -> Tensor:
    """A copy that lies in memory as the original does, unless entries of that share memory."""
    if tensor.layout is not torch.strided:
        return tensor.clone()
    if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
        return tensor.clone()
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)


class Jitter:
    """Changes each number by a random part of itself, at most `size`, and then by another of at most `more`."""

    def __init__(self, seed: int, size: float, then: int = 0, more: float = 0.0) -> None:
        self.steps = [(torch.Generator().manual_seed(seed), size), (torch.Generator().manual_seed(100 + then), more)]

    def __call__(self, tensor: Tensor) -> Tensor:
        """`tensor`, changed."""
        if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.layout is not torch.strided:
            return tensor
        moved = tensor.detach()
        for generator, size in self.steps:
            part = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device) * 2 - 1
            moved = (moved * (1 + size * part)).to(tensor.dtype)
        return moved.requires_grad_(tensor.requires_grad)


def replaced(model: nn.Module, learning: Mapping[str, Tensor], change: Change) -> dict[str, Tensor]:
    """What learns, once every parameter of `model` has been replaced by a changed one."""
    twins: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                if id(p) not in twins:
                    twins[id(p)] = nn.Parameter(change(p.detach()), requires_grad=p.requires_grad)
                module._parameters[name] = twins[id(p)]
    return {k: twins.get(id(p), p) for k, p in learning.items()}


class Draws(TorchDispatchMode):
    """Within, what is drawn depends on the shape that it is drawn for, and not on what was drawn before.

    Kernels of one device draw in different orders (a fused dropout and its parts), so all is drawn on the CPU.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The result of an operation."""
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags or not args:
            return func(*args, **kwargs)
        reseed([args[0]] if isinstance(args[0], Tensor) else [])
        shape = args[0].shape if isinstance(args[0], Tensor) else args[0]
        if isinstance(shape, list | tuple):
            torch.rand(sum(n * (i + 1) for i, n in enumerate(shape)) % 97)
        return _on_cpu(func, args, kwargs)


def _on_cpu(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result of an operation that was computed on the CPU, on the device where it belongs."""
    device = kwargs.get("device") or next((t.device for t in pytree.tree_leaves(args) if isinstance(t, Tensor)), None)
    if device is None or torch.device(device).type == "cpu":
        return func(*args, **kwargs)
    if "device" in kwargs:
        kwargs["device"] = torch.device("cpu")
    near, named = pytree.tree_map_only(Tensor, Tensor.cpu, (args, kwargs))
    result = func(*near, **named)
    if func._schema.is_mutable:
        args[0].copy_(near[0])
        return args[0]
    return pytree.tree_map_only(Tensor, lambda t: t.to(device), result)


@dataclasses.dataclass(frozen=True)
class Results:
    """Outputs, and gradients by the key that the program gives them; of some, the factors only."""

    outputs: tuple[Tensor, ...]
    gradients: Mapping[str, Tensor | None]
    factors: Mapping[str, Factors] = dataclasses.field(default_factory=dict)


def backward(outputs: Sequence[Tensor], learning: Mapping[str, Tensor], by_factors: bool = False) -> Results:
    """Outputs and gradients, for errors that depend on the outputs' shapes alone.

    by_factors: gradients of weights that are a product of two matrices are not multiplied out. Raises RuntimeError
    where autograd, which is not asked for them then, has no reason to come by such a product.
    """
    factors = weight_factors(outputs, learning) if by_factors else {}
    dense = {k: t for k, t in learning.items() if k not in factors}
    errors = random_errors(outputs)
    sent = [(o, e) for o, e in zip(outputs, errors, strict=True) if e is not None and o.requires_grad]
    gradients: Sequence[Tensor | None] = [None] * len(dense)
    if sent and dense:
        values, grads = zip(*sent, strict=True)
        with torch.autocast(values[0].device.type, enabled=False):  # a backward pass under autocast casts once more
            gradients = torch.autograd.grad(values, list(dense.values()), grads, allow_unused=True)
    if missed := [k for k, f in factors.items() if f.error is None]:
        raise RuntimeError(f"the product that reads {missed[0]} has no error")
    named = dict(zip(dense, gradients, strict=True))
    return Results(tuple(o.detach() for o in outputs), {k: named.get(k) for k in learning}, factors)


def random_errors(outputs: Sequence[Tensor]) -> list[Tensor | None]:
    """A normal number for each entry of the outputs that can carry an error."""
    generator = torch.Generator().manual_seed(0)
    wide = {True: torch.complex128, False: torch.float64}
    return [
        torch.randn(o.shape, generator=generator, dtype=wide[o.is_complex()]).to(o.device, o.dtype)
        if o.is_floating_point() or o.is_complex()
        else None
        for o in outputs
    ]


def has_hooks(model: nn.Module) -> bool:
    """Whether running `model` runs hooks that are not torch's own, such as those of weight norm."""
    everywhere = [m.__dict__[t] for m in model.modules() for t in m.__dict__ if t in HOOKS]
    everywhere += [getattr(nn.modules.module, f"_global{t}") for t in HOOKS]
    hooks = [h for table in everywhere for h in table.values()]
    return not all(f"{getattr(h, '__module__', '')}.".startswith(HARMLESS) for h in hooks)


def multiplied(expected: Results, found: Results) -> tuple[Results, Results]:
    """Both, without factors: multiplied out, or sketched where the program has asked for that very product."""
    agreed = {k: f.sketch() for k, f in expected.factors.items() if f.stands_for(found.gradients.get(k))}
    products = {k: f.product() for k, f in expected.factors.items() if k not in agreed}
    theirs = {**expected.gradients, **products, **agreed}
    return Results(expected.outputs, theirs), Results(found.outputs, {**found.gradients, **agreed})
