"""Memory that the results of a piece share with its arguments and with one another in eager torch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from pccompile.diagnostics import CompileError


def refuse_overlap(name: str, inputs: Mapping[str, Tensor]) -> None:
    """Raise CompileError where what is written into an argument changes another argument too."""
    target = inputs[name]
    others = [k for k, t in inputs.items() if k != name and memory(t) == memory(target) and t.numel()]
    if others:
        raise CompileError(
            f"{name} is changed in place and shares memory with {others[0]}", hint="clone one of them first"
        )


@dataclass(frozen=True)
class Sharing:
    """For each result, the argument that it is, whether it shares memory with one, and whether with another result."""

    same: tuple[int | None, ...]
    arguments: tuple[bool, ...]
    results: tuple[bool, ...]


def sharing(piece: fx.GraphModule, args: Sequence[Any]) -> Sharing:
    """Which results share memory in eager torch, by one run on copies that leaves no trace."""
    copies = [_copy(a) if isinstance(a, Tensor) else a for a in args]
    with torch.no_grad(), torch.random.fork_rng():
        results = piece(*copies)
    given = {memory(t) for t in _tensors(copies) if t.numel()}
    places = [memory(r) if isinstance(r, Tensor) and r.numel() else None for r in results]
    return Sharing(
        tuple(next((i for i, c in enumerate(copies) if c is r and isinstance(c, Tensor)), None) for r in results),
        tuple(m in given for m in places),
        tuple(m is not None and places.count(m) > 1 for m in places),
    )


def shared(results: list[Any], given: Sequence[Any], inputs: Sequence[Tensor], sharing: Sharing) -> list[Any]:
    """Results that share memory where eager torch's do, as views that autograd knows, and nowhere else."""
    groups: dict[int, list[int]] = {}
    for i, r in enumerate(results):
        same = sharing.same[i]
        if same is not None:
            results[i] = given[same]
        if same is not None or not isinstance(r, Tensor) or not r.numel():
            continue
        bases = [t for t in inputs if memory(t) == memory(r)]
        if sharing.arguments[i]:
            results[i] = _view_of(bases, r)
        elif bases:
            results[i] = r.clone()
        else:
            groups.setdefault(memory(r), []).append(i)
    for members in groups.values():
        if len(members) == 1:
            results[members[0]] = _changeable(results[members[0]])
            continue
        whole = next((i for i in members if _is_whole(results[i])), None)
        if whole is None and not _apart([results[i] for i in members]):
            raise CompileError("two results are overlapping parts of one value", hint="clone one of them")
        for i in members:
            if i == whole:
                results[i] = _changeable(results[i])
        for i in members:
            if i == whole:
                continue
            if whole is not None and sharing.results[i]:
                results[i] = _view_of([results[whole]], results[i])
            else:
                results[i] = results[i].clone()
    return results


def _changeable(t: Tensor) -> Tensor:
    """`t` such that autograd lets it be changed in place, which it forbids for a view that was made in a Function."""
    return t.clone() if t._is_view() and t.requires_grad else t


def _view_of(bases: Sequence[Tensor], view: Tensor) -> Tensor:
    """`view` made anew from the only one of `bases`, so that autograd knows that a change of one changes the other."""
    same = len(bases) == 1 and bases[0].dtype == view.dtype and not view.is_conj() and not view.is_neg()
    if not same:
        raise CompileError("a result shares memory with an argument in a way that is not followed", hint="clone it")
    base = bases[0].detach() if bases[0].requires_grad and not view.requires_grad else bases[0]
    return base.as_strided(view.shape, view.stride(), view.storage_offset())


def _copy(t: Tensor) -> Tensor:
    """`t` with memory of its own and the same strides, which decide whether a reshape is a view."""
    plain = t.detach()
    if plain.layout is not torch.strided or not plain.numel() or plain.is_conj() or plain.is_neg():
        return plain.clone()
    length = 1 + sum((n - 1) * s for n, s in zip(plain.shape, plain.stride(), strict=True))
    return plain.as_strided((length,), (1,)).clone().as_strided(plain.shape, plain.stride())


def memory(t: Tensor) -> int:
    """The memory that a tensor lies in; for a sparse one, the tensor itself."""
    return t.untyped_storage().data_ptr() if t.layout is torch.strided else id(t)


def _is_whole(t: Tensor) -> bool:
    return t.is_contiguous() and t.numel() * t.element_size() == t.untyped_storage().nbytes()


def _apart(tensors: Sequence[Tensor]) -> bool:
    """Whether tensors in one memory cover ranges that do not overlap."""
    spans = sorted(
        (t.storage_offset(), t.storage_offset() + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)))
        for t in tensors
    )
    return all(a[1] < b[0] for a, b in itertools.pairwise(spans))


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    return [v for v in values if isinstance(v, Tensor)]
