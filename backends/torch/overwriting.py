"""Statements that write over an operand, such as sums that are added up in the memory of their first term."""

from __future__ import annotations

from collections.abc import Callable

from pccompile.backends.torch.code import Expr, call, literal, method, name
from pccompile.backends.torch.dataflow import Dataflow
from pccompile.backends.torch.expression_text import scaled
from pccompile.backends.torch.in_place import LERP, MM, MUL
from pccompile.backends.torch.spell import Speller
from pccompile.backends.torch.statements import Role, Statement
from pccompile.backends.torch.value_names import ValueNames
from pccompile.ir import Arg, Ref
from pccompile.ops import definition

Written = tuple[str, Expr]
"""What a line begins with, ending in ` = ` or the like or empty, and the expression behind it."""


class Overwriting:
    """How statements of one function are written that take the place of an operand."""

    def __init__(self, flow: Dataflow, names: ValueNames, speller: Speller) -> None:
        self.flow, self.names, self.speller = flow, names, speller

    def onto_operand(self, s: Statement, operand: Ref) -> Written:
        """The line of a statement that is known to write over an operand."""
        called = self.names.take_over(s.target, operand)
        args, own = self.speller.arguments(s.op, s.args, self.names.spelled), definition(s.op).in_place
        return "", method(name(called), own, *args[1:], **self.speller.named(s.op, s.args, self.names.spelled))

    def line(self, s: Statement, dying: Callable[[Ref], bool]) -> Written | None:
        """The line of a statement that may write over its operand, None where it may not.

        dying: whether nothing reads a value behind this statement.
        """
        operand = s.args.get("self")
        if not isinstance(operand, Ref) or operand in self.names.inlined or not dying(operand):
            return None
        return self._accumulation(s, operand) or self._function(s, operand)

    def _accumulation(self, s: Statement, operand: Ref) -> Written | None:
        """An addition as an accumulation, or a scaling in place, where the operand's memory is ours alone."""
        if s.target in self.names:
            return None
        if self.names.accumulates(s, operand):
            called = self.names.take_over(s.target, operand)
            other = self.flow.made.get(s.args["other"]) if s.args.get("other") in self.names.inlined else None
            return onto(called, s, lambda arg: self.speller.arg(arg, self.names.spelled), other)
        scales = s.op == "aten.neg.default" or (s.op == MUL and isinstance(s.args["other"], float))
        if scales and self.flow.labels[s.target].role is Role.GRADIENT and self.flow.alone(operand, s):
            return f"{self.names.own(s.target)} = ", scaled(name(self.names[operand]), s)
        return None

    def _function(self, s: Statement, operand: Ref) -> Written | None:
        """A function in place, where nothing else will read its argument, a prediction and so floating."""
        known = definition(s.op)
        if not known.from_result or operand not in self.names:
            return None
        if self.flow.labels[operand].role is not Role.PREDICTION or not self.flow.read_once_here(operand, s):
            return None
        return f"{self.names.own(s.target)} = ", call(f"torch.{known.in_place}", name(self.names[operand]))


def onto(called: str, s: Statement, spelled: Callable[[Arg], Expr], other: Statement | None) -> Written:
    """The line that adds to the memory of an operand called so, or scales it.

    spelled: an argument. other: what makes the other operand, where that is written within this line.
    """
    if s.op == LERP:
        return "", method(name(called), "lerp_", spelled(s.args["end"]), literal(s.args["weight"]))
    if s.op == MUL:
        return f"{called} *= ", spelled(s.args["other"])
    further = {} if s.args["alpha"] == 1 else {"alpha": literal(s.args["alpha"])}
    if other and other.op == MM:
        factors = spelled(other.args["self"]), spelled(other.args["mat2"])
        return "", method(name(called), "addmm_", *factors, **further)
    added = spelled(s.args["other"])
    return ("", method(name(called), "add_", added, **further)) if further else (f"{called} += ", added)
