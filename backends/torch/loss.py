"""The loss of a generated file: its value, and minus its gradient at each output.

Where predictions move, inference asks for the errors at every step: a function without the value gives them, and what
they need of the targets and of shapes alone is computed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pccompile.backends.torch.lower import lower_loss
from pccompile.backends.torch.optimise import without_dead
from pccompile.backends.torch.printer import Printer
from pccompile.backends.torch.spell import Speller
from pccompile.backends.torch.statements import Function, Statement
from pccompile.ir import Ref
from pccompile.ops import definition

if TYPE_CHECKING:
    from pccompile.backends.torch.emit import Loss

VALUE = '''@torch.no_grad()
def clamp(outputs, targets):
    """Squared error ½‖t − v̂‖², summed. Returns it and minus its gradient at each output, t − v̂."""
    output_errors = {errors}
    return {loss}, output_errors'''
ERRORS = '''def clamp_errors(outputs, targets):
    """Minus the gradient of the squared error at each output, t − v̂."""
    return {errors}'''
WEIGHING = ("aten.nll_loss_forward.default", "aten.nll_loss2d_forward.default")
"""Operations whose second result, the sum of the targets' weights, reads no number of `self`."""


class Clamp:
    """The functions that know the loss. indices: which of the outputs carry an error.

    results: how many outputs are the model's results; the loss sends nothing to those behind.
    """

    def __init__(self, loss: Loss | None, indices: Sequence[int], results: int) -> None:
        self.loss, self.indices, self.results = loss, indices, results
        self.parts = _Parts()
        if loss is not None:
            self.texts = {name: f"outputs[{i}]" for i, name in enumerate(loss.outputs) if name is not None}
            outputs = set(self.texts.values())
            self.texts |= {name: f"targets[{i}]" for i, name in enumerate(loss.targets) if name is not None}
            whole, self.labels = lower_loss(loss.pc, self.texts, loss.constants)
            self.whole = without_dead(whole)
            self.parts = _Parts.of(self.whole, outputs)

    @property
    def has_constants(self) -> bool:
        """Whether something of the errors is computed once."""
        return bool(self.parts.constants)

    def functions(self, speller: Speller, reserved: Iterable[str], moving: bool) -> list[tuple[str, list[str]]]:
        """Each function by name, as lines. moving: inference evaluates the loss."""
        if self.loss is None:
            return self._squared(moving)
        value = self._function(
            self.whole, "clamp(outputs, targets)", "The loss, and minus its gradient at each output.", speller, reserved
        )
        if not moving:
            return [("clamp", ["@torch.no_grad()", *value])]
        given = "outputs, targets" + ", loss_constants" * self.has_constants
        said = "Minus the gradient of the loss at each output, without its value."
        functions = [
            ("clamp_errors", self._function(self.parts.errors, f"clamp_errors({given})", said, speller, reserved))
        ]
        if self.has_constants:
            said = "What `clamp_errors` needs of the targets, and of the shapes of the outputs alone."
            constants = Function(self.parts.fixed.lines, self.parts.fixed.results)
            head = "clamp_constants(outputs, targets)"
            functions.insert(0, ("clamp_constants", self._function(constants, head, said, speller, reserved)))
        return [("clamp", ["@torch.no_grad()", *value]), *functions]

    def _squared(self, moving: bool) -> list[tuple[str, list[str]]]:
        zeros = {j: f"torch.zeros_like(outputs[{j}])" for j in self.indices if j >= self.results}
        each = (zeros.get(j, f"targets[{i}] - outputs[{j}]") for i, j in enumerate(self.indices))
        errors = f"[{', '.join(each)}]"
        terms = [f"0.5 * output_errors[{i}].square().sum()" for i, j in enumerate(self.indices) if j not in zeros]
        loss = " + ".join(terms) or "torch.zeros(())"
        if not moving:
            return [("clamp", VALUE.format(errors=errors, loss=loss).splitlines())]
        return [
            ("clamp_errors", ERRORS.format(errors=errors).splitlines()),
            ("clamp", VALUE.format(errors="clamp_errors(outputs, targets)", loss=loss).splitlines()),
        ]

    def _function(self, f: Function, head: str, said: str, speller: Speller, reserved: Iterable[str]) -> list[str]:
        """One function. What it returns is told by its results: the constants, or the errors and maybe the value."""
        loss = self.loss
        assert loss is not None
        speller.dims, speller.device = set(), False
        words = speller.words(s.op for s in f.statements())
        printer = Printer(f, self.labels, {}, {}, speller, lambda vertex: "", [*reserved, *loss.pc.graph.dims, *words])
        lines = printer.run({})
        returned = self._returned(f, printer)
        first = [f"def {head}:", f'    """{said}"""']
        if speller.device:
            first.append("    device = outputs[0].device")
        for dim in sorted(speller.dims & set(loss.pc.graph.dims)):
            source = loss.pc.graph.dims[dim]
            first.append(f"    {dim} = {self.texts[source.tensor]}.shape[{source.axis}]")
        return [*first, *lines, "", f"    return {returned}"]

    def _returned(self, f: Function, printer: Printer) -> str:
        """The constants, or the errors and before them the value, if it is a result."""
        assert self.loss is not None
        if constants := [printer.names.text(value) for (slot, _), value in f.results.items() if slot == "constant"]:
            return f"[{', '.join(constants)}]"
        zeros = {j: f"torch.zeros_like(outputs[{j}])" for j in self.indices}
        sent = {name: printer.names.text(value) for (slot, name), value in f.results.items() if slot == "gradient"}
        by_output = [self.loss.outputs[j] for j in self.indices]
        errors = (
            zeros[j] if n is None else sent.get(n, zeros[j]) for n, j in zip(by_output, self.indices, strict=True)
        )
        value = [printer.names.text(v) for (slot, _), v in f.results.items() if slot == "output"]
        return ", ".join([*value, f"[{', '.join(errors)}]"])


@dataclass
class _Parts:
    """The errors of a loss in two functions, and the values that one hands to the other."""

    fixed: Function = field(default_factory=Function)
    errors: Function = field(default_factory=Function)
    constants: list[Ref] = field(default_factory=list)

    @classmethod
    def of(cls, whole: Function, outputs: set[str]) -> _Parts:
        """outputs: how the function reads what changes from step to step."""
        made = {s.target: s for s in whole.statements()}
        moving: set[Ref] = set()
        for s in whole.statements():
            if _moves(s, made, moving, outputs):
                moving.add(s.target)
        results = {key: value for key, value in whole.results.items() if key[0] == "gradient"}
        wanted = [s for s in without_dead(Function(whole.lines, results)).statements() if s.target in moving]
        read = [*(r for s in wanted for r in s.reads), *results.values()]
        constants = [r for r in dict.fromkeys(read) if r not in moving and made[r].op.startswith("aten.")]
        constants += [r for r in dict.fromkeys(read) if r not in moving and made[r].op == "getitem"]
        handed = {r: Statement(r, "given", {"text": f"loss_constants[{i}]"}) for i, r in enumerate(constants)}
        lines = [handed.get(s.target, s) for s in whole.statements()]
        fixed = Function(whole.lines, {("constant", str(i)): r for i, r in enumerate(constants)})
        return cls(without_dead(fixed), without_dead(Function([*lines], results)), constants)


def _moves(s: Statement, made: dict[Ref, Statement], moving: set[Ref], outputs: set[str]) -> bool:
    """Whether a value may differ from step to step."""
    if s.op == "given":
        return s.args["text"] in outputs
    if s.op == "getitem" and s.args["index"] == 1 and made[s.args["of"]].op in WEIGHING:
        source = made[s.args["of"]]
        return any(r in moving for name, r in source.args.items() if name != "self" and isinstance(r, Ref))
    if s.op in ("leaf", "alias", "getitem"):
        return any(r in moving for r in s.reads)
    if not s.op.startswith("aten.") or definition(s.op).random:
        return True
    unread = s.args.get(definition(s.op).form_only)
    return any(r in moving for r in s.reads if r != unread)
