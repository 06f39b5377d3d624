"""Everything that keeps a model from being compiled, at once, and what else a user would want to know before."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pccompile.diagnostics import CompileError, Problem, listing, printable
from pccompile.report.summary import warnings
from pccompile.report.tables import Page, Report, count
from pccompile.runtime.module import CompiledModule

if TYPE_CHECKING:
    from pccompile.frontends.onnx import OnnxModule


@dataclass(frozen=True)
class DoctorReport(Report):
    """What keeps a model from being compiled, and what else a user would want to know. model: what it is called."""

    model: str
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    @property
    def page(self) -> Page:
        """A line for each, and the verdict."""
        verdict = count(len(self.problems), "problem") if self.problems else "nothing stands in the way"
        lines = [*map(str, self.problems), *(f"note: {n}" for n in self.notes), verdict]
        return Page(tuple(f"{self.model}: {line}" for line in lines))


def examine(shown: str, model: str, compile_it: Callable[[], CompiledModule]) -> DoctorReport:
    """The findings about a model that is called `shown`. `model` is what the command line names."""
    path = Path(model) if model.lower().endswith(".onnx") else None
    problems: list[Problem] = []
    notes: list[str] = []
    if path is not None:
        from pccompile.frontends.onnx import unsupported

        problems += unsupported(path)
    if not problems:
        try:
            pc = compile_it()
            notes += warnings(pc, pc.compiled)
            if path is not None:
                notes += onnx_notes(pc.__dict__["model"])
        except CompileError as e:
            problems += e.problems
    if path is not None and find_spec("onnxruntime") is None:
        notes.append('onnxruntime is not installed, --verify needs it: pip install "pccompile[check]"')
    return DoctorReport(shown, tuple(problems), tuple(notes))


def onnx_notes(module: OnnxModule) -> Iterable[str]:
    """What is worth knowing about a file that can be compiled."""
    from pccompile.report.reference import constant_weights

    if constant := constant_weights(module):
        weights = f"{count(len(constant), 'weight')} of one number throughout"
        yield f"{weights} ({listing(constant)}): --verify draws them anew"
    if module.formula_constants:
        shown = [f"{printable(name, 60)} = {value:.7g}" for name, value in module.formula_constants.items()]
        yield f"constants of formulas, which do not learn: {listing(shown, 10)} (--train NAME lets one learn)"
    for entry in module.input_types:
        open_: list[Any] = [s for s in entry.shape or () if not isinstance(s, int)]
        if entry.shape is None or open_:
            sizes = "its rank" if entry.shape is None else listing(map(str, open_))
            name = printable(entry.name, 80)
            yield f"input {name} leaves {sizes} open: --shape {name}=… chooses"
