"""Products that two runs have in common, computed once: most of what comparing a large program with its model costs."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pccompile.ops import definition

aten = torch.ops.aten
ADDED = aten.addmm_.default
MEMORY = 2 * 2**30
"""Bytes of operands and results that are remembered at most, the model's parameters among them."""
LOOK, ALIKE = 64, 1e-2
"""So many first numbers tell most operands apart: those that are one but for rounding differ by less than this part."""

Place = tuple[Any, ...]


@functools.cache
def _multiplies(func: Any) -> bool:
    """Whether an operator of torch is a product, or as costly as one."""
    return definition(str(func)).operations is not None or func is aten.embedding_dense_backward.default


class _Product:
    """The operands of an operation and its result; `detached` is the same result, apart from autograd."""

    def __init__(self, operands: list[Tensor], result: Any) -> None:
        self.operands, self.result = operands, result
        self.detached = pytree.tree_map_only(Tensor, Tensor.detach, result)
        self.places = list(map(_place, operands))
        self._versions = _writes((operands, result))

    @property
    def untouched(self) -> bool:
        """Whether nobody has written into operands or result."""
        return _writes((self.operands, self.result)) == self._versions


class Products:
    """Results of products by their operands: `recorded` remembers them, `replayed` returns them.

    A result is returned for operands that differ from the remembered ones by at most `rounding`, relatively: a replayed
    run that departs from the recorded one by more computes for itself from there on.
    """

    def __init__(self, rounding: float) -> None:
        self.rounding = rounding
        self._products: dict[Any, list[_Product]] = {}
        self._sizes: dict[int, int] = {}
        self._handed_out: list[tuple[Tensor, int]] = []
        self._pairs: dict[
            tuple[Place, Place], tuple[Tensor, Tensor]
        ] = {}  # alive, so that no other tensor has their memory

    def add(self, left: Tensor, right: Tensor, result: Tensor) -> None:
        """Remember the product of two matrices."""
        key, operands = _key(aten.mm.default, (left, right), {})
        self._products.setdefault(key, []).append(_Product(operands, result))

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Within, products are remembered."""
        with _Mode(self._record):
            yield

    @contextmanager
    def replayed(self, kept: Sequence[Tensor]) -> Iterator[None]:
        """Within, products that are remembered are not computed. kept: what of the first run nobody may write into."""
        memory = {_memory(t) for t in kept if t.layout is torch.strided}
        with _Mode(lambda func, args, kwargs: self._replay(func, args, kwargs, memory)):
            yield

    @property
    def spoilt(self) -> bool:
        """Whether the second run has written into what the first gave."""
        return any(t._version != version for t, version in self._handed_out)

    def _record(self, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        if func is ADDED:
            return result
        key, operands = _key(func, args, kwargs)
        self._sizes |= {_memory(t): t.untyped_storage().nbytes() for t in (*operands, *_tensors(result))}
        if sum(self._sizes.values()) <= MEMORY:
            self._products.setdefault(key, []).append(_Product(operands, result))
        return result

    def _replay(self, func: Any, args: Any, kwargs: Any, kept: set[int]) -> Any:
        if func is ADDED:
            result = None if kwargs else self._remembered(aten.mm.default, args[1:], kwargs, kept)
            return func(*args, **kwargs) if result is None else args[0].add_(result)
        result = self._remembered(func, args, kwargs, kept)
        return func(*args, **kwargs) if result is None else result

    def _remembered(self, func: Any, args: Any, kwargs: Any, kept: set[int]) -> Any:
        key, operands = _key(func, args, kwargs)
        products, places = self._products.get(key, []), list(map(_place, operands))
        known = [sum(map(self._known, places, p.places)) for p in products]
        for i in sorted(range(len(products)), key=known.__getitem__, reverse=True):
            product = products[i]
            if product.untouched and all(map(self._same, operands, product.operands)):
                del products[i]
                self._handed_out += [(t, t._version) for t in _tensors(product.detached) if _memory(t) in kept]
                return product.detached
        return None

    def _known(self, place: Place, other: Place) -> bool:
        return place == other or (place, other) in self._pairs

    def _same(self, operand: Tensor, other: Tensor) -> bool:
        pair = _place(operand), _place(other)
        if not self._known(*pair):
            alike = _near(operand[:1].flatten()[:LOOK], other[:1].flatten()[:LOOK], ALIKE)
            if not (alike and _near(operand, other, self.rounding)):
                return False
            self._pairs[pair] = operand, other
        return True


class _Mode(TorchDispatchMode):
    """Within, `run` computes the products of dense real numbers on the CPU."""

    def __init__(self, run: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.run = run

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The result of an operation."""
        if not _multiplies(func) and func is not ADDED:
            return func(*args, **(kwargs or {}))
        tensors = [t for t in args if isinstance(t, Tensor)]
        plain = all(type(t) is Tensor or type(t) is torch.nn.Parameter for t in tensors)
        real = all(t.layout is torch.strided and t.device.type == "cpu" and not t.is_complex() for t in tensors)
        return self.run(func, args, kwargs or {}) if plain and real else func(*args, **(kwargs or {}))


def _key(func: Any, args: Any, kwargs: Any) -> tuple[Any, list[Tensor]]:
    """What tells products apart without a look at their numbers, and the operands."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    form = [(t.shape, t.stride(), t.dtype) if isinstance(t, Tensor) else t for t in leaves]
    return (func, str(spec), str(form)), [t for t in leaves if isinstance(t, Tensor)]


def _near(a: Tensor, b: Tensor, limit: float) -> bool:
    """Whether ‖a − b‖ ≤ limit ‖b‖."""
    if torch.equal(a, b) or not a.is_floating_point():
        return torch.equal(a, b)
    a, b = (t.float() if t.element_size() < 4 else t for t in (a, b))
    return bool(torch.linalg.vector_norm(a - b) <= limit * torch.linalg.vector_norm(b))


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(tree) if isinstance(t, Tensor)]


def _writes(tree: Any) -> list[int]:
    """How often each tensor has been written into."""
    return [t._version for t in _tensors(tree)]


def _place(tensor: Tensor) -> Place:
    """Where the numbers of a tensor lie, and how often they have been written into."""
    return _memory(tensor), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor._version


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
