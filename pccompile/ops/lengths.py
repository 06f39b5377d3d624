"""A length that data decides, where a model relies on what it is: checked when the program runs."""

from __future__ import annotations

import torch

from pccompile.ops.registry import call_of, define

SIZED = "pcc.sized"

SOURCE = '''
def sized(x, axis, size):
    """`x`, which must have that size along `axis`: torch might else broadcast it, which no rule here knows of."""
    if x.shape[axis] != size:
        raise RuntimeError(f"a length that is read from data is {x.shape[axis]}, and forward needs {size} there")
    return x
'''

define(
    SIZED,
    "linear",
    lambda b, n, err: {"x": err},
    wiring=True,
    parameters=("x", "axis", "size"),
    infer=lambda args, type_of: type_of(args["x"]),
    spell=call_of("sized"),
    equation="x",
    helper=SOURCE,
    samples=(lambda: (torch.randn(3, 4, dtype=torch.float64), 1, 4),),
)
