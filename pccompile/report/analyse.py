"""What can be measured of inference on one batch.

Its spectrum, the regime that it runs in, how it converges, and what becomes of it without a clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pccompile.analysis.asynchronous import Conditions
from pccompile.analysis.spectrum import Measured, Spectrum
from pccompile.diagnostics import CompileError, printable
from pccompile.report.asynchronous import CONDITIONS, AsynchronousReport, asynchronous_report
from pccompile.report.convergence import ConvergenceReport, convergence_report
from pccompile.report.figures import figure, save
from pccompile.report.losses import Criterion
from pccompile.report.regime import RegimeReport, has_regime, regime_report
from pccompile.report.tables import Page, Report, Table, count, number
from pccompile.runtime.displaced_batch import DisplacedBatch
from pccompile.runtime.losses import targets_of
from pccompile.runtime.module import CompiledModule

KINDS = ("spectrum", "regime", "convergence", "asynchronous")
NOTHING = "no hidden vertex: inference has nothing to move, and any rate will do"
AXES = "eigenvalue", "inference converges below this rate"
WIDE = 100.0
"""A picture whose largest number is above it is drawn on a logarithmic axis."""
MEANING = {
    "λmax(H)": "rates of strict, incremental, nudged and langevin",
    "‖A‖²": "rate of alm",
    "σmin(A)²": "how many steps inference needs",
    "λmin(S)": "penalty of alm; below -1, error optimization has several equilibria",
    "λmax(S)": "rate of error-optimization; nudges are to stay below 1 / ‖S‖",
}


@dataclass(frozen=True)
class Analysis(Report):
    """What `pc.analyse` has measured; what was not asked for is None."""

    algorithm: str
    spectrum: SpectrumReport | None = None
    regime: RegimeReport | None = None
    convergence: ConvergenceReport | None = None
    asynchronous: AsynchronousReport | None = None

    @property
    def page(self) -> Page:
        """A page for each kind."""
        pages = [r.page for r in self._reports().values()]
        return Page(tuple(p for i, page in enumerate(pages) for p in (*([""] if i else []), *page.parts)))

    def as_dict(self) -> dict[str, Any]:
        """All numbers, by kind."""
        return {"algorithm": self.algorithm, **{k: r.as_dict() for k, r in self._reports().items()}}

    def _reports(self) -> dict[str, Any]:
        return {k: r for k in KINDS if (r := getattr(self, k)) is not None}

    def plot(self, path: str | Path | None = None) -> Any:
        """The picture of the only report, as that draws it. Raises CompileError where several were measured."""
        reports = [*self._reports().values()]
        if len(reports) != 1:
            raise CompileError(f"a picture shows one report, and {len(reports)} were measured", hint="kinds=(…,)")
        return reports[0].plot(path)


def analyse(
    pc: CompiledModule,
    args: tuple[Any, ...] | Tensor,
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: Any,
    loss: Criterion | None = None,
    kinds: Sequence[str] | None = None,
    conditions: Sequence[Conditions] = CONDITIONS,
) -> Analysis:
    """Measure inference on one batch; the model's buffers and the random stream stay as they are.

    loss: loss(output, target); by default the one that the model was compiled with, or squared error.
    kinds: some of KINDS; by default the spectrum, and the regime of algorithms that have one. conditions: those under
    which "asynchronous" runs vertex by vertex (`pccompile.analysis.asynchronous.Conditions`). Raises CompileError for
    others, and for a model that draws samples which would move.
    """
    if kinds is None:
        kinds = ("spectrum", "regime") if has_regime(pc.options.algorithm) else ("spectrum",)
    if unknown := [k for k in kinds if k not in KINDS]:
        raise CompileError(f"unknown kind {printable(repr(unknown[0]), 40)}", hint=f"some of {', '.join(KINDS)}")
    if not pc.options.transposes:
        what = f"with {pc.options.messages}, messages follow no free energy whose curvature could be measured"
        raise CompileError(what, hint='analyse the model with feedback="transpose" and derivatives="exact"')
    args = (args,) if isinstance(args, Tensor) else tuple(args)
    runtime = pc.prepare(args, kwargs, loss=loss or pc.criterion, target=target)
    inputs = runtime.interface.bind(args, dict(kwargs or {}))
    assert runtime.compiled is not None
    batch = DisplacedBatch(runtime.compiled, pc.tables(runtime), inputs, targets_of(target))
    spectrum = Spectrum(batch)
    return Analysis(
        pc.options.algorithm,
        spectrum_report(spectrum) if "spectrum" in kinds else None,
        regime_report(runtime.options, batch, spectrum) if "regime" in kinds else None,
        convergence_report(runtime.options, batch, spectrum) if "convergence" in kinds else None,
        asynchronous_report(runtime.options, batch, spectrum, conditions) if "asynchronous" in kinds else None,
    )


@dataclass(frozen=True)
class SpectrumReport(Report):
    """Extreme eigenvalues at the forward pass of one batch. Without a hidden vertex, `quantities` is empty.

    quantities: λ_max(H), ‖A‖², σ_min(A)², λ_min(S) and λ_max(S), as in analysis.spectrum, with estimates of their
    errors. rates: the largest rate at which each method converges near the forward pass, by its name.
    """

    quantities: dict[str, Measured]
    rates: dict[str, float]
    condition: float
    longest: int

    @property
    def page(self) -> Page:
        """Two tables: what was measured, and what it means for rates."""
        if not self.quantities:
            return Page((f"spectrum: {NOTHING}",))
        measured = tuple(
            (name, number(m.value, 4), number(m.error, 1), str(m.sweeps), MEANING[name])
            for name, m in self.quantities.items()
        )
        bounds = tuple((name, number(rate, 3)) for name, rate in self.rates.items())
        return Page(
            (
                f"spectrum at the forward pass: condition of A {number(self.condition, 3)}, longest path to an output "
                f"{count(self.longest, 'edge')}",
                Table(("quantity", ">value", ">error", ">sweeps", "what it decides"), measured),
                "",
                Table(("method", ">converges below rate"), bounds),
            )
        )

    def as_dict(self) -> dict[str, Any]:
        """All numbers."""
        quantities = {k: {"value": m.value, "error": m.error, "sweeps": m.sweeps} for k, m in self.quantities.items()}
        own = {"quantities": quantities, "rates": self.rates}
        return own | {"condition": self.condition, "longest_path": self.longest}

    def plot(self, path: str | Path | None = None) -> Any:
        """Eigenvalues, and the rates that they allow, as a matplotlib Figure; written to `path` where one is given.

        Raises CompileError without matplotlib.
        """
        eigenvalues = {name: m.value for name, m in self.quantities.items()}
        picture = figure(7, 4.5)
        panels = picture.subplots(2)
        for axes, numbers, words in zip(panels, (eigenvalues, self.rates), AXES, strict=True):
            finite = {k: v for k, v in numbers.items() if math.isfinite(v)}
            drawn = axes.barh(list(finite), list(finite.values()), height=0.6)
            axes.bar_label(drawn, [number(v, 3) for v in finite.values()], padding=3)
            axes.set(xlabel=words, xscale="symlog" if max(map(abs, finite.values()), default=0.0) > WIDE else "linear")
            axes.use_sticky_edges = False  # room for the numbers, below 0 too
            axes.margins(x=0.15)
            axes.invert_yaxis()
        panels[0].set_title("spectrum at the forward pass of one batch", fontsize="medium")
        return save(picture, path)


def spectrum_report(spectrum: Spectrum) -> SpectrumReport:
    """All quantities, measured, and the bounds on rates that follow."""
    if spectrum.empty:
        return SpectrumReport({}, {}, 1.0, spectrum.longest)
    hessian, stiffness, curvature = spectrum.hessian(), spectrum.stiffness(), spectrum.curvature()
    found = (hessian, stiffness, spectrum.softness(), curvature.low, curvature.high)
    penalty = 2 * curvature.norm
    rates = {
        "fixed-prediction": 2.0,
        "strict": 2 / hessian.value,
        "error-optimization": 2 / (1 + max(curvature.high.value, 0.0)),
        f"alm, penalty {number(penalty)}": 1 / (penalty * stiffness.value) if penalty else float("inf"),
    }
    return SpectrumReport(dict(zip(MEANING, found, strict=True)), rates, spectrum.condition, spectrum.longest)
