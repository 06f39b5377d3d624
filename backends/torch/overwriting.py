"""Statements that write over an operand, such as sums that are added up in the memory of their first term."""

from __future__ import annotations

from collections.abc import Callable

from pccompile.backends.torch.dataflow import Dataflow
from pccompile.backends.torch.expression_text import scaling
from pccompile.backends.torch.in_place import LERP, MM, MUL
from pccompile.backends.torch.spell import Speller
from pccompile.backends.torch.statements import Role, Statement
from pccompile.backends.torch.value_names import ValueNames
from pccompile.ir import Arg, Ref
from pccompile.ops import definition


class Overwriting:
    """How statements of one function are written that take the place of an operand."""

    def __init__(self, flow: Dataflow, names: ValueNames, speller: Speller) -> None:
        self.flow, self.names, self.speller = flow, names, speller

    def onto_operand(self, s: Statement, operand: Ref) -> str:
        """The line of a statement that is known to write over an operand."""
        name = self.names.take_over(s.target, operand)
        arguments = self.speller.arguments(s.op, s.args, self.names.spell)[1:]
        return f"{name}.{definition(s.op).in_place}({', '.join(arguments)})"

    def line(self, s: Statement, dying: Callable[[Ref], bool]) -> str:
        """The line of a statement that may write over its operand, '' where it may not.

        dying: whether nothing reads a value behind this statement.
        """
        operand = s.args.get("self")
        if not isinstance(operand, Ref) or operand in self.names.inlined or not dying(operand):
            return ""
        return self._accumulation(s, operand) or self._function(s, operand)

    def _accumulation(self, s: Statement, operand: Ref) -> str:
        """An addition as an accumulation, or a scaling in place, where the operand's memory is ours alone."""
        if s.target in self.names:
            return ""
        if self.names.accumulates(s, operand):
            name = self.names.take_over(s.target, operand)
            other = self.flow.made.get(s.args["other"]) if s.args.get("other") in self.names.inlined else None
            return onto(name, s, lambda arg: self.speller.arg(arg, self.names.spell), other)
        scales = s.op == "aten.neg.default" or (s.op == MUL and isinstance(s.args["other"], float))
        if scales and self.flow.labels[s.target].role is Role.GRADIENT and self.flow.alone(operand, s):
            return f"{self.names.own(s.target)} = {self.names[operand]}.{scaling(s)}"
        return ""

    def _function(self, s: Statement, operand: Ref) -> str:
        """A function in place, where nothing else will read its argument, a prediction and so floating."""
        known = definition(s.op)
        if not known.from_result or operand not in self.names:
            return ""
        if self.flow.labels[operand].role is not Role.PREDICTION or not self.flow.read_once_here(operand, s):
            return ""
        return f"{self.names.own(s.target)} = torch.{known.in_place}({self.names[operand]})"


def onto(name: str, s: Statement, text: Callable[[Arg], str], other: Statement | None) -> str:
    """The line that adds to the memory of an operand called `name`, or scales it.

    text: an argument as Python source. other: what makes the other operand, where that is written within this line.
    """
    if s.op == LERP:
        return f"{name}.lerp_({text(s.args['end'])}, {s.args['weight']!r})"
    if s.op == MUL:
        return f"{name} *= {text(s.args['other'])}"
    further = "" if s.args["alpha"] == 1 else f", alpha={s.args['alpha']!r}"
    if other and other.op == MM:
        return f"{name}.addmm_({text(other.args['self'])}, {text(other.args['mat2'])}{further})"
    return f"{name}.add_({text(s.args['other'])}{further})" if further else f"{name} += {text(s.args['other'])}"
