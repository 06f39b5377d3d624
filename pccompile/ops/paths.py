"""A value that Python read and decided by: checked when the program runs, which is of one path only."""

from __future__ import annotations

import torch

from pccompile.ops.registry import call_of, define

ON_PATH = "pcc.on_path"
OTHER_PATH = "OtherPath"
"""What the exception is called, in generated code, that a program raises on values of another path."""

SOURCE = '''
class OtherPath(RuntimeError):
    """Python would take another path through forward than the one that this program is of."""


def on_path(x, values, where):
    """`x`, whose entries must be those that Python read when this program was captured."""
    found, read = (", ".join(map(repr, v)) for v in (x.reshape(-1).tolist(), values))
    if found != read:  # as texts: 0.0 is not -0.0
        raise OtherPath(f"forward reads {found} at {where}, and this program is of the path on which it read {read}")
    return x
'''

define(
    ON_PATH,
    "linear",
    lambda b, n, err: {"x": err},
    wiring=True,
    parameters=("x", "values", "where"),
    infer=lambda args, type_of: type_of(args["x"]),
    spell=call_of("on_path"),
    equation="x",
    helper=SOURCE,
    samples=(lambda: (torch.zeros(2, dtype=torch.float64), (0.0, 0.0), "model.py:3"),),
)
