"""What a coverage suite reports: one row for each case, kept as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol

STATUSES = ("pass", "not capturable", "refused", "fail", "wrong")
"""pass: every sample agrees. not capturable: torch.export itself refuses the model. refused: we refuse it, in one clear
line. fail: an error that is not a clear refusal. wrong: numbers that differ, the worst of all."""


@dataclass(frozen=True)
class Row:
    """One case. kind: which of a suite's questions ("forward", "gradient" …). passed of `total` samples agree; seconds
    of CPU for compiling and running them; reason: one line where the status is not "pass"."""

    name: str
    kind: str
    status: str
    passed: int = 0
    total: int = 0
    seconds: float = 0.0
    reason: str = ""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status {self.status!r} is none of {', '.join(STATUSES)}")


class Suite(Protocol):
    """What each module of this package offers."""

    FLOORS: Mapping[str, float]
    """Figures that must not fall, by the names that `figures` gives them."""

    def names(self) -> list[str]:
        """The cases, sorted."""

    def check(self, name: str, samples: int | None = None) -> list[Row]:
        """Run one case, on its first `samples` samples or on all."""

    def figures(self, rows: Sequence[Row]) -> dict[str, float]:
        """The headline figures."""

    def document(self, rows: Sequence[Row]) -> str:
        """The suite's section of docs/coverage.md, from its heading on."""


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write rows, sorted by name, as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        table.writeheader()
        for row in sorted(rows, key=lambda r: (r.name, r.kind)):
            table.writerow({**asdict(row), "seconds": f"{row.seconds:.1f}"})


def read(path: Path) -> list[Row]:
    """The rows of a CSV that `write` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Row(r["name"], r["kind"], r["status"], int(r["passed"]), int(r["total"]), float(r["seconds"]), r["reason"])
            for r in csv.DictReader(file)
        ]
