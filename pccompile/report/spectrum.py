"""What bounds the rates of inference on one batch: the spectrum, and the rates that it allows, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pccompile.analysis.spectrum import Measured, Spectrum
from pccompile.report.tables import Page, Report, Table, count, number

NOTHING = "no hidden vertex: inference has nothing to move, and any rate will do"


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


MEANING = {
    "λmax(H)": "rates of strict, incremental, nudged and langevin",
    "‖A‖²": "rate of alm",
    "σmin(A)²": "how many steps inference needs",
    "λmin(S)": "penalty of alm; below -1, error optimization has several equilibria",
    "λmax(S)": "rate of error-optimization; nudges are to stay below 1 / ‖S‖",
}


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
