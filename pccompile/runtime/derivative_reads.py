"""What derivatives that an author wrote read from outside: a program has the values that were there when it was made.

Eager torch reads them when the backward pass runs. So they are compared twice: before a call, where a change means
another program, and before its backward pass, where it is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import CellType, FunctionType
from typing import Any

from torch import Tensor, nn

from pccompile.diagnostics import CompileError
from pccompile.frontends.code_reads import CodeReads, functions_in
from pccompile.frontends.imported import Imported
from pccompile.frontends.snapshots import Describer, Description, Snapshots, is_own_code
from pccompile.ops.functions import Context, Saved, cells_of
from pccompile.ops.held_tensors import HeldTensors, noting_held
from pccompile.pipeline import Compiled, compile_imported
from pccompile.runtime.loss_state import is_same_tensor
from pccompile.runtime.model_state import ModelState

FUNCTION, OF_CONTEXT = "pcc.function", frozenset(vars(Context(())))
HINT = "change it after backward(), or let forward keep it in ctx, which hands it to this backward pass"


class DerivativeReads:
    """What the backwards of custom Functions and operators read, as it was when a program was made of them.

    authors: for each the name, what runs, what it is given besides tensors, and the variables that its forward sets.
    """

    def __init__(self, authors: Iterable[Author], held: HeldTensors) -> None:
        self._watching = False
        self._reads = [_Reads(*author) for author in authors]
        self._tensors, self._forward = (
            [(t, t.detach().clone()) for t in {id(t): t for t in tensors}.values()]
            for tensors in (held.backward, held.forward)
        )

    def watch(self) -> None:
        """Begin to compare: the program has been checked, for which other tensors stand in the model for a moment."""
        self._watching = True

    def hold(self) -> bool:
        """Whether the program may be used for a call."""
        return _first_other((*self._tensors, *self._forward)) is None and all(r.holds() for r in self._reads)

    def refuse_changes(self) -> None:
        """Raise CompileError where the backward pass of eager torch would read another value than the call did."""
        if not self._watching:
            return
        names = ", ".join(dict.fromkeys(r.name for r in self._reads))
        for reads in self._reads:
            if not reads.holds():
                what = f"{reads.name} reads {reads.difference()}, which has changed since the model was called"
                raise CompileError(what, hint=HINT)
        if (other := _first_other(self._tensors)) is not None:
            which = f"a tensor {tuple(other.shape)} from outside"
            raise CompileError(f"{names} reads {which}, which has changed since the model was called", hint=HINT)


Author = tuple[str, tuple[FunctionType, ...], Mapping[str, Any], tuple[CellType, ...]]


class _Reads:
    """What the code of one derivative reads."""

    def __init__(
        self,
        name: str,
        functions: tuple[FunctionType, ...],
        given: Mapping[str, Any],
        unread: tuple[CellType, ...],
    ) -> None:
        self.name, self._author = name, (functions, given, unread)
        self._look()

    def _look(self) -> None:
        functions, given, unread = self._author
        self._snapshots = Snapshots()
        describe = _Named(self._snapshots)
        described = tuple((k, describe(v)) for k, v in given.items() if not isinstance(v, Tensor))
        describe.functions.update(dict.fromkeys(functions))
        reads = CodeReads(describe, unread)
        self._description: Description = (*described, *reads.follow(()))
        self._variables, self._kept = reads.variables, describe.met

    def holds(self) -> bool:
        """Whether all is as it was, or has been replaced by what is equal."""
        if self._snapshots.hold():
            return True
        before = self._snapshots, self._description, self._variables, self._kept
        self._look()
        if self._description == before[1]:
            return True
        self._snapshots, self._description, self._variables, self._kept = before
        return False

    def difference(self) -> str:
        """The name of what has changed."""
        for owner, name in self._snapshots.changes():
            found = self._variables.get(id(owner), name)
            if found and not found.startswith("__"):
                return found
        return "what its code calls"


class _Named(Describer):
    """Describes of objects, modules among them, what code reads by name."""

    def __init__(self, snapshots: Snapshots) -> None:
        super().__init__(snapshots, by_name=True)

    def _object(self, value: Any) -> Description:
        if not isinstance(value, nn.Module):
            return super()._object(value)
        for table in (vars(value)[k] for k in ("_modules", "_parameters", "_buffers")):
            owner = _Table(table)
            self.objects[id(owner)] = owner, {}
        self.objects[id(value)] = value, {}
        self.classes[type(value)] = None
        return "object", id(value)


class _Table:
    """A table of a module as an object whose attributes are the entries."""

    def __init__(self, entries: dict[str, Any]) -> None:
        self.__dict__ = entries


def compile_reading(imported: Imported, *how: Any) -> tuple[Compiled, DerivativeReads | None]:
    """As `compile_imported`, and what the derivatives in the program read; None where none is the author's."""
    with noting_held() as held:
        compiled = compile_imported(imported, *how)
    authors = [*_operators(held), *_authors(compiled)]
    return compiled, DerivativeReads(authors, held) if authors else None


def reads_in_pieces(model: nn.Module) -> DerivativeReads | None:
    """What the custom Functions that the code of `model` names may read; None where there are none.

    Dynamo has taken them apart, so that nobody knows what their contexts hold: any module of the model may be there.
    """
    modules = dict(model.named_modules())
    authors = [
        (f"{f.__name__}.backward", _own((f.backward, f.forward, f.setup_context)), modules, ())
        for f in ModelState(model).functions
    ]
    if not authors:
        return None
    reads = DerivativeReads(authors, HeldTensors())
    reads.watch()
    return reads


def _own(values: Iterable[Any]) -> tuple[FunctionType, ...]:
    return tuple(f for value in values for f in functions_in(value) if is_own_code(f))


def _operators(held: HeldTensors) -> Iterator[Author]:
    """The derivatives of operators whose formulas are the user's own code."""
    for operator, functions in held.derivatives.items():
        if own := _own(functions):
            yield f"the backward of {operator}", own, {}, ()


def _authors(compiled: Compiled) -> Iterator[Author]:
    """The derivatives of the user's own Functions in a program."""
    for n in compiled.graph.nodes:
        saved = n["saved"] if n.op == FUNCTION else None
        if isinstance(saved, Saved) and is_own_code(saved.call.function):
            own = _own((saved.call.function.backward,))
            given = {k: v for k, v in saved.entries.items() if k not in OF_CONTEXT}
            cells = cells_of(saved.call.function.forward)
            yield f"{saved}.backward", own, given, tuple(cells[name] for name in saved.entries["nonlocals"])


def _first_other(tensors: Iterable[tuple[Tensor, Tensor]]) -> Tensor | None:
    """The first tensor whose entries are no longer those of its copy."""
    return next((t for t, copy in tensors if not is_same_tensor(t, copy)), None)
