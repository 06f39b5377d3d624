"""What the functions of a generated file take and hand to each other, and those that only call others."""

from __future__ import annotations

from functools import cached_property

from pccompile.backends.torch.keys import table_of
from pccompile.backends.torch.reserved import SWEEP
from pccompile.ir import Argument, Program, flat
from pccompile.ir.equations import names, parse
from pccompile.ir.liveness import handed


class Signature:
    """The arguments of the functions behind prediction.

    given: what the loss hands inference. slots: what inference hands learning, and tables: what that is called.
    arguments: what else inference takes, each with the text of its default. learning: those that learning takes too.
    """

    def __init__(self, program: Program) -> None:
        self.program, self.moving = program, bool(program.state)
        self.given = "targets" if self.moving else "output_errors"
        self.slots = handed(program)
        self.tables = tuple(map(table_of, self.slots))
        update = {"update": "lambda gradients: None"} if program.updates else {}
        neighbours = {"neighbours": "None"} if program.exchanges else {}
        self.arguments = {k: _literal(v) for k, v in program.arguments.items()} | update | neighbours
        read = {n for d in flat(program.learn) for n in names(parse(d.equation))}
        self.learning = [k for k in program.arguments if k in read]

    @cached_property
    def defaults(self) -> str:
        """The arguments of inference as a function declares them."""
        return "".join(f", {k}={v}" for k, v in self.arguments.items())

    @cached_property
    def passed(self) -> str:
        """The arguments of inference as a function passes them on."""
        return "".join(f", {k}" for k in self.arguments)

    def both(self) -> list[str]:
        """Inference and then learning, for programs that iterate."""
        return [
            f"def {SWEEP}(params, context, {self.given}{self.defaults}):",
            '    """Infer, then learn."""',
            f"    {', '.join(self.tables)} = infer(params, context, {self.given}{self.passed})",
            f"    return learn(params, context, {', '.join([*self.tables, *self.learning])})",
        ]

    def step(self) -> list[str]:
        """One training step up to the gradients."""
        call = f"{SWEEP}(params, context, {self.given}{self.passed})"
        learned = [f"    gradients, lasting = {call}", "    buffers.update(lasting)", "    return loss, gradients"]
        return [
            f"def step(params, buffers, inputs, targets{self.defaults}):",
            '    """Predict, clamp the outputs, infer and learn. Returns the loss and the gradients."""',
            "    outputs, context = predict(params, buffers, inputs)",
            f"    loss, {'_' if self.moving else 'output_errors'} = clamp(outputs, targets)",
            *(learned if self.program.moved else [f"    return loss, {call}"]),
        ]


def _literal(argument: Argument) -> str:
    """An argument of a program as Python text; in a table by vertex the names may be Refs, whose repr is none."""
    return repr(argument if isinstance(argument, int | float) else {str(k): v for k, v in argument.items()})
