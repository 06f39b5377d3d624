"""What the values of a function are called, where they are written into its lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pccompile.backends.torch.code import Expr, name, text
from pccompile.backends.torch.dataflow import Dataflow
from pccompile.backends.torch.statements import Statement, loops_of
from pccompile.ir import Ref
from pccompile.ir.names import Namer


class ValueNames(dict[Ref, str]):
    """The name of each value that has one by now.

    names: of what the function is given. fixed: of what it must keep. owner: the value that a name stands for now.
    stored: where values lie that have a place in a table. inlined: the expressions of values without a name.
    """

    def __init__(self, flow: Dataflow, names: Mapping[Ref, str], fixed: Mapping[Ref, str], reserved: Iterable[str]):
        super().__init__(names)
        self.flow, self.fixed = flow, fixed
        self.namer = Namer((*reserved, *names.values(), *fixed.values()))
        for loop in loops_of(flow.f.lines):
            for c in loop.carried:
                self[c.phi] = self.namer(flow.labels[c.phi].text)
        self.owner = {called: value for value, called in self.items()}
        self.stored: Mapping[Ref, str] = {}
        self.inlined: dict[Ref, Expr] = {}

    def spelled(self, value: Ref) -> Expr:
        """A value where it is read."""
        return self.inlined[value] if value in self.inlined else name(self[value])

    def text(self, value: Ref) -> str:
        """A value where it is read, as Python source."""
        return text(self.spelled(value))

    def own(self, value: Ref) -> str:
        """What a value is called from here on; the first term of a sum is called what the sum is."""
        if value not in self:
            sum_ = self._becomes(value)
            self[value] = self.fixed.get(value) or self.stored.get(sum_) or self.namer(self.flow.labels[sum_].text)
        self.owner[self[value]] = value
        return self[value]

    def take_over(self, value: Ref, operand: Ref) -> str:
        """Call a value by the name of the operand whose memory it takes."""
        called = self[value] = self[operand]
        self.owner[called] = value
        return called

    def accumulates(self, s: Statement, operand: Ref) -> bool:
        """Whether a statement works on the memory of its operand: it adds to it, or has no other use for it."""
        adds = s.op == "aten.add.Tensor" and isinstance(s.args["alpha"], int | float)
        return (
            (s.over or (adds and isinstance(s.args["other"], Ref)))
            and s.even
            and s.args["self"] == operand
            and s.target not in self
            and operand not in self.flow.kept
            and self.flow.alone(operand, s)
        )

    def _becomes(self, value: Ref) -> Ref:
        """What a value is once all is added to it that is added to its memory."""
        while True:
            readers = (r for r in self.flow.readers.get(value, []) if r is not None and self.accumulates(r, value))
            adding = next(readers, None)
            if adding is None:
                return value
            value = adding.target
