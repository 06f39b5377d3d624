"""`torch.compile(model, backend="pccompile")`: any Python program, cut by Dynamo into pieces that learn locally.

Each piece between two graph breaks becomes a program of its own, whose backward pass is predictive coding; autograd
hands the errors from piece to piece. Parameters come to a piece as arguments.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from pccompile.diagnostics import CompileError
from pccompile.driver import Options, import_model
from pccompile.frontends.dynamo import exportable
from pccompile.frontends.exported import Imported
from pccompile.passes.activity import active
from pccompile.runtime.module import PCModule


def backend(
    piece: fx.GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """What runs a piece. options: as `pccompile.compile` takes them, but for the loss.

    Nothing is compiled before the first call, since an error raised here may be silenced by Dynamo, which then would
    leave the gradients to autograd.
    """
    del example_inputs
    made: list[_Piece] = []

    def run(*args: Any) -> tuple[Any, ...]:
        if not made:
            made.append(_Piece(piece, dict(options or {})))
        return made[0].run(args)

    return run


class _Piece(PCModule):
    """A piece with predictive-coding gradients, in place of what Dynamo found between two graph breaks."""

    def __init__(self, piece: fx.GraphModule, options: dict[str, Any]) -> None:
        named = {k: options.pop(k) for k in ("algorithm", "granularity") if k in options}
        hook = options.pop("hook", None)
        module, self.kept = exportable(piece)
        super().__init__(module, Options(**named, settings=options), hook=hook)
        self.sharing: dict[int, _Sharing] = {}

    def _import(self, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any) -> Imported:
        plain = pytree.tree_map_only(Tensor, torch.Tensor.detach, args)
        return import_model(self.__dict__["model"], plain, kwargs, hook=self._hook, writes=True, fixed=self._fixed)

    def run(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The piece's results, and what it writes into its arguments, as eager torch has them."""
        learning = [t for t in (*_tensors(args), *self.parameters()) if t.requires_grad]
        given = tuple(args[i] for i in self.kept)
        if not learning or not torch.is_grad_enabled():
            return self._plain(given)
        traced = self._traced(given, {})
        imported, interface = traced.imported, traced.interface
        inputs = interface.bind(given, {})
        wanted = {name for name, t in inputs.items() if t.requires_grad} | imported.graph.wanted
        carrying = active(replace(imported.graph, wanted=frozenset(wanted)))
        for name in imported.writes:
            _check_write(name, inputs)
        if not carrying.intersection(imported.graph.outputs):
            return self._plain(given)
        if id(imported) not in self.sharing:
            self.sharing[id(imported)] = _sharing(self.__dict__["model"], given)
        runtime = self._runtime(given, {})
        own = {k: t.clone() if k in imported.writes else t for k, t in inputs.items()}
        outputs = self._run(runtime, own)
        position = {o: i for i, o in enumerate(imported.graph.outputs)}
        results = interface.assemble(outputs, inputs)
        for name, value in imported.writes.items():
            inputs[name].copy_(outputs[position[value]])
        return tuple(_shared(list(results), given, list(own.values()), self.sharing[id(imported)]))

    def _plain(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """What eager torch returns where no error can flow."""
        with torch.no_grad() if torch.is_grad_enabled() else nullcontext():
            results: tuple[Any, ...] = self.__dict__["model"](*args)
        given = set(map(id, args))
        if any(r.requires_grad and id(r) not in given for r in _tensors(results)):
            raise CompileError(
                "gradients are switched on within a program that is called without them",
                hint="call it outside torch.no_grad()",
            )
        return results


def _check_write(name: str, inputs: Mapping[str, Tensor]) -> None:
    """Raise CompileError where what is written into an argument changes another argument too."""
    target = inputs[name]
    others = [k for k, t in inputs.items() if k != name and _memory(t) == _memory(target) and t.numel()]
    if others:
        raise CompileError(
            f"{name} is changed in place and shares memory with {others[0]}", hint="clone one of them first"
        )


@dataclass(frozen=True)
class _Sharing:
    """For each result, the argument that it is, whether it shares memory with one, and whether with another result."""

    same: tuple[int | None, ...]
    arguments: tuple[bool, ...]
    results: tuple[bool, ...]


def _sharing(piece: fx.GraphModule, args: Sequence[Any]) -> _Sharing:
    """Which results share memory in eager torch, by one run on copies that leaves no trace."""
    copies = [a.detach().clone() if isinstance(a, Tensor) else a for a in args]
    with torch.no_grad(), torch.random.fork_rng():
        results = piece(*copies)
    given = {_memory(t) for t in _tensors(copies) if t.numel()}
    memory = [_memory(r) if isinstance(r, Tensor) and r.numel() else None for r in results]
    return _Sharing(
        tuple(next((i for i, c in enumerate(copies) if c is r and isinstance(c, Tensor)), None) for r in results),
        tuple(m in given for m in memory),
        tuple(m is not None and memory.count(m) > 1 for m in memory),
    )


def _shared(results: list[Any], given: Sequence[Any], inputs: Sequence[Tensor], sharing: _Sharing) -> list[Any]:
    """Results that share memory where eager torch's do, as views that autograd knows, and nowhere else."""
    groups: dict[int, list[int]] = {}
    for i, r in enumerate(results):
        same = sharing.same[i]
        if same is not None:
            results[i] = given[same]
        if same is not None or not isinstance(r, Tensor) or not r.numel():
            continue
        bases = [t for t in inputs if _memory(t) == _memory(r)]
        if sharing.arguments[i]:
            results[i] = _view_of(bases, r)
        elif bases:
            results[i] = r.clone()
        else:
            groups.setdefault(_memory(r), []).append(i)
    for members in groups.values():
        if len(members) == 1:
            continue
        whole = next((i for i in members if _is_whole(results[i])), None)
        if whole is None and not _apart([results[i] for i in members]):
            raise CompileError("two results are overlapping parts of one value", hint="clone one of them")
        for i in members:
            if i == whole:
                continue
            if whole is not None and sharing.results[i]:
                results[i] = _view_of([results[whole]], results[i])
            else:
                results[i] = results[i].clone()
    return results


def _view_of(bases: Sequence[Tensor], view: Tensor) -> Tensor:
    """`view` made anew from the only one of `bases`, so that autograd knows that a change of one changes the other."""
    same = len(bases) == 1 and bases[0].dtype == view.dtype and not view.is_conj() and not view.is_neg()
    if not same:
        raise CompileError("a result shares memory with an argument in a way that is not followed", hint="clone it")
    base = bases[0].detach() if bases[0].requires_grad and not view.requires_grad else bases[0]
    return base.as_strided(view.shape, view.stride(), view.storage_offset())


def _memory(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


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
