"""Netlists in other people's formats. Each exporter is one object, found through entry points."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from pccompile.backends.netlist.netlist import Netlist
from pccompile.backends.netlist.operations import OPERATIONS
from pccompile.diagnostics import CompileError, Problem, printable
from pccompile.files.writing import SEAL, Write, check_replaceable, sealed, write_together

GROUP = "pccompile.backends"
"""The entry point group; an entry point leads to an object that is an `Exporter`."""

TABLE = {
    "nengo": "pccompile.backends.netlist.export.nengo:EXPORTER",
    "nir": "pccompile.backends.netlist.export.nir:EXPORTER",
    "sana-fe": "pccompile.backends.netlist.export.sana_fe:EXPORTER",
    "verilog": "pccompile.backends.netlist.export.verilog:EXPORTER",
}
"""The exporters that come with pccompile, for a source tree whose metadata do not name them."""

SEALS = {**dict.fromkeys((".py", ".yaml", ".txt"), f"\n# {SEAL}\n"), ".sv": f"\n// {SEAL}\n", ".nir": SEAL}
"""What is written behind files that can be sealed: a comment, or what readers of the format do not get to."""


@runtime_checkable
class Exporter(Protocol):
    """Writes netlists in one other format."""

    name: str

    def supports(self, net: Netlist) -> tuple[str, ...]:
        """Why `net` cannot be written, a sentence for each population or projection; empty if it can."""
        ...

    def emit(self, net: Netlist, folder: Path, *, name: str = "", **options: Any) -> tuple[Path, ...]:
        """Write `net` into `folder`; return the files, called after `name` or else the netlist.

        Raises CompileError, and then nothing is written.
        """
        ...


def available() -> tuple[str, ...]:
    """The names of all exporters, those that other packages bring among them."""
    return tuple(sorted({*TABLE, *(e.name for e in metadata.entry_points(group=GROUP))}))


def exporter(name: str) -> Exporter:
    """The exporter called `name`. Raises CompileError where there is none."""
    found = next(iter(metadata.entry_points(group=GROUP, name=name)), None)
    if found is None and name in TABLE:
        found = metadata.EntryPoint(name, TABLE[name], GROUP)
    if found is None:
        raise CompileError(f"no exporter is called {printable(name)}", hint=f"there are {', '.join(available())}")
    try:
        loaded = found.load()
    except (ImportError, AttributeError) as e:
        raise CompileError(f"exporter {name} does not load from {found.value}: {e}") from e
    if not isinstance(loaded, Exporter):
        raise CompileError(f"{found.value} is no exporter: it has no name, supports() and emit()")
    return loaded


def library(module: str, wanted: str) -> ModuleType:
    """An optional library. Raises CompileError that says what pip is to install."""
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise CompileError(f"{module} is not installed ({e})", hint=f"pip install '{wanted}'") from e


def refuse(name: str, reasons: tuple[str, ...]) -> None:
    """Raise CompileError with all that an exporter cannot write; nothing where there are no reasons."""
    if reasons:
        raise CompileError([Problem(f"{name} cannot say {r}") for r in reasons])


def unsaid_operations(net: Netlist, name: str) -> dict[str, str]:
    """Why the exporter of that name cannot write it, by projection, for each whose operation it has no words for."""
    reasons = {p.name: OPERATIONS[p.op].unsaid.get(name) for p in net.spec.projections}
    return {projection: f"projection {projection}: {why}" for projection, why in reasons.items() if why is not None}


def write(folder: Path, files: Mapping[str, bytes]) -> tuple[Path, ...]:
    """Write all files or none. Raises OutputError, also rather than overwrite what pccompile did not write.

    The first file is sealed, and speaks for those that cannot be.
    """
    first = next(iter(files))
    check_replaceable((folder / name for name in files), spoken_for=sealed(folder / first))
    endings = {name: SEALS.get(Path(name).suffix, "").encode() for name in files}
    return write_together(folder, {name: _writer(data + endings[name]) for name, data in files.items()})


def _writer(data: bytes) -> Write:
    return lambda path: path.write_bytes(data)
