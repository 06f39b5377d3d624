"""Sums that are added up in the memory of their first term, as they are written."""

from __future__ import annotations

from collections.abc import Callable

from pccompile.backends.torch.in_place import LERP, MM, MUL
from pccompile.backends.torch.statements import Statement
from pccompile.ir import Arg


def onto(name: str, s: Statement, text: Callable[[Arg], str], other: Statement | None) -> str:
    """The line that adds to the memory of an operand called `name`, or scales it.

    text: an argument as Python source. other: what makes the other operand, where that is written within this line.
    """
    if s.op == LERP:
        return f"{name}.lerp_({text(s.args['end'])}, {s.args['weight']!r})"
    if s.op == MUL:
        return f"{name} *= {text(s.args['other'])}"
    further = "" if s.args["alpha"] == 1 else f", alpha={s.args['alpha']!r}"
    if other and other.op == MM:
        return f"{name}.addmm_({text(other.args['self'])}, {text(other.args['mat2'])}{further})"
    return f"{name}.add_({text(s.args['other'])}{further})" if further else f"{name} += {text(s.args['other'])}"


__all__ = ["onto"]
