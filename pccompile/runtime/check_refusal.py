"""The error that says what differs between a program and its model, and where."""

from __future__ import annotations

from collections.abc import Sequence

from pccompile.analysis.compare import Difference
from pccompile.diagnostics import NOWHERE, CompileError, listing, printable
from pccompile.runtime.fault_location import Fault

REPORT = "please report it, or change the model there; check=False compiles without this comparison"
OTHERWISE = "forward may run otherwise while it is captured (torch.compiler.is_compiling()); check=False compiles that"


def refusal(differing: Sequence[Difference], fault: Fault | None, captured_otherwise: bool = False) -> CompileError:
    """The error that names what differs. captured_otherwise: the program is what was captured, vertex by vertex."""
    worst = max(differing, key=lambda d: d.relative_error)
    named = [d.name if d.name.startswith(("output ", "input ")) else printable(d.name, 80) for d in differing]
    much = f"{printable(worst.name, 80)} {worst.note or f'by {worst.relative_error:.2g}'}"
    differ = "differs" if len(named) == 1 else "differ"
    what = f"the program is not the model: {listing(named)} {differ} from eager torch ({much})"
    where = NOWHERE
    if fault is not None:
        what, where = f"{what}; {fault}", fault.vertex.where
    elif captured_otherwise:
        return CompileError(f"{what}; so does what was captured of it", hint=OTHERWISE)
    return CompileError(what, where, REPORT)
