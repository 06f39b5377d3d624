"""Which operations have a circuit, and how each is built: one function an operation, or for all of a kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pccompile.backends.netlist.lower.values import Values
from pccompile.ir import Node
from pccompile.ops import OpDef, definition

if TYPE_CHECKING:
    from pccompile.backends.netlist.lower.lowering import Lowering

Handler = Callable[["Lowering", Node], Values]


@dataclass(frozen=True)
class Circuit:
    """How an operation is built.

    tokens: the argument in which it takes integers whose values are not known. Everywhere else they are wiring.
    """

    build: Handler
    tokens: str = ""


CIRCUITS: dict[str, Circuit] = {}
KINDS: list[tuple[Callable[[OpDef], bool], Circuit]] = []
"""Circuits of all operations for which something holds, unless they have one of their own."""


def lowers(*ops: str, tokens: str = "") -> Callable[[Handler], Handler]:
    """A decorator: the function builds the circuit of these operations and returns what their results stand for."""

    def register(handler: Handler) -> Handler:
        for op in ops:
            if op in CIRCUITS:
                raise ValueError(f"{op} has two circuits")
            CIRCUITS[op] = Circuit(handler, tokens)
        return handler

    return register


def lowers_where(holds: Callable[[OpDef], bool], tokens: str = "") -> Callable[[Handler], Handler]:
    """A decorator: the function builds the circuits of operations for which holds(definition)."""

    def register(handler: Handler) -> Handler:
        KINDS.append((holds, Circuit(handler, tokens)))
        return handler

    return register


def circuit(op: str) -> Circuit | None:
    """How the operation called `op` is built; None where it cannot be."""
    own, known = CIRCUITS.get(op), definition(op)
    return own or next((general for holds, general in KINDS if holds(known)), None)


def has_circuit(op: str) -> bool:
    """Whether an operation of that name can be built from units and projections as it stands."""
    return circuit(op) is not None or definition(op).random
