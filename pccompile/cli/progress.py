"""What is told while a model is compiled: progress, stages in full, times, and what a user must know of the result."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from pccompile.api.module import PCModule
from pccompile.backends.netlist import Netlist
from pccompile.backends.netlist.files import text as netlist_text
from pccompile.backends.torch import Source
from pccompile.diagnostics import CompileError, printable
from pccompile.files.writing import SEAL, check_replaceable, write_together
from pccompile.frontends.imported import Imported
from pccompile.report.summary import warnings as worth_knowing
from pccompile.report.tables import Table, show

HIDDEN = ("import-graph", "check")
"""Stages whose result another stage has shown."""


class Progress:
    """What is told while a model is compiled: progress, stages in full, times."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.times: list[tuple[str, float]] = []
        self.active, self.status = True, None
        self.start = time.monotonic()
        self.folder = Path(options.dump_dir) if options.dump_dir else None
        if self.folder:
            self._writable(self.folder)

    def _writable(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as e:
            reason = getattr(e, "strerror", None) or e
            raise CompileError(f"cannot write to {printable(str(folder))}: {reason}") from e

    def __call__(self, stage: str, result: object, seconds: float) -> None:
        """A stage is done."""
        if not self.active:
            return
        self.times.append((stage, seconds))
        if self.status is not None:
            self.status.update(f"compiling: {stage} done")
        if stage in HIDDEN:
            return
        if stage in self.options.print_after:
            print(f"# after {stage}\n{text(result)}", file=sys.stderr)
        if self.folder:
            self.dump(self.folder, stage, result)

    def dump(self, folder: Path, stage: str, result: object) -> None:
        """Write one numbered file. Raises OutputError rather than overwrite a file of somebody else's."""
        number = sum(name not in HIDDEN for name, _ in self.times)
        path = folder / f"{number:02d}-{stage}.txt"
        check_replaceable([path])
        page = f"# After {stage}. {SEAL}\n{text(result)}\n"
        write_together(folder, {path.name: lambda file: file.write_text(page, encoding="utf-8")})

    @contextmanager
    def shown(self) -> Iterator[None]:
        """A line that moves, where stderr is a terminal."""
        if self.options.quiet or not sys.stderr.isatty():
            with nullcontext():
                yield
            return
        from rich.console import Console

        with Console(file=sys.stderr).status("compiling: export") as status:
            self.status = status  # type: ignore[assignment]
            try:
                yield
            finally:
                self.status = None

    def finish(self) -> None:
        """Compiling is over: what is compiled from now on, for comparisons, is not shown."""
        self.active = False
        for stage in {*self.options.print_after} - {name for name, _ in self.times}:
            print(f"# {stage} had nothing to do", file=sys.stderr)
        if self.options.time_passes:
            total = sum(s for _, s in self.times)
            rows = [*((stage, f"{s:.3f}") for stage, s in self.times if stage not in HIDDEN), ("total", f"{total:.3f}")]
            show(Table(("stage", ">seconds"), tuple(rows)), sys.stderr)

    def talk(self, shown: str, pc: PCModule) -> None:
        """Facts that a user must know, on stderr."""
        if self.options.quiet:
            return
        for fact in (*pc.compiled.program.facts, *(f"warning: {w}" for w in worth_knowing(pc, pc.compiled))):
            print(f"{shown}: {fact}", file=sys.stderr)


def text(result: object) -> str:
    """A stage's result as people read it."""
    match result:
        case Netlist():
            return netlist_text(result.spec)
        case Imported():
            return str(result.graph)
        case Source():
            return result.text
    return str(result)
