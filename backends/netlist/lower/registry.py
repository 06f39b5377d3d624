"""Which ATen operations have a circuit, and how each is built: one function an operation, in its family's file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pccompile.backends.netlist.lower.values import Values
from pccompile.ir import Node
from pccompile.ops import OPS

if TYPE_CHECKING:
    from pccompile.backends.netlist.lower.lowering import Lowering

Handler = Callable[["Lowering", Node], Values]
HANDLERS: dict[str, Handler] = {}


def lowers(*ops: str) -> Callable[[Handler], Handler]:
    """A decorator: the function builds the circuit of these operations and returns what their results stand for."""

    def register(handler: Handler) -> Handler:
        for op in ops:
            if op in HANDLERS:
                raise ValueError(f"{op} has two circuits")
            HANDLERS[op] = handler
        return handler

    return register


def has_circuit(op: str) -> bool:
    """Whether an operation of that name can be built from units and projections as it stands."""
    known = OPS.get(op)
    return op in HANDLERS or bool(known and (known.formula is not None or known.random))
