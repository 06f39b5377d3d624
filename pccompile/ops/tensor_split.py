"""Pieces between places that a tensor holds: `tensor_split` by a tensor, whose lengths are known when it runs."""

from __future__ import annotations

from typing import Any

import torch

from pccompile.ir import TensorType
from pccompile.ops.registry import call_of, define

SPLIT = "aten.tensor_split.tensor_indices_or_sections"
PIECE = "pcc.piece"
AT = "tensor_indices_or_sections"

PUT = '''
def put_piece(whole, piece, at, dim, index):
    """A copy of `whole` with `piece` as number `index` of the pieces that it has between the places `at`."""
    whole = whole.clone()
    torch.tensor_split(whole, at, dim)[index].copy_(piece)
    return whole
'''


def _sample(places: tuple[int, ...], index: int) -> tuple[Any, ...]:
    x, at = torch.randn(4, 3, dtype=torch.float64), torch.tensor(places)
    shape = torch.tensor_split(x, at)[index].shape
    return x, at, 0, index, TensorType(tuple(shape), x.dtype)


define(
    PIECE,
    "linear",
    lambda b, n, e: {"self": b("pcc.put_piece", b.zeros(b.type(n["self"])), e, n[AT], n["dim"], n["index"])},
    parameters=("self", AT, "dim", "index", "type"),
    infer=lambda args, type_of: args["type"],
    spell=f"torch.tensor_split(self, {AT}, dim)[index]",
    equation="piece(x)",
    samples=tuple((lambda places=places, i=i: _sample(places, i)) for places in ((1, 3), (3, 1)) for i in range(3)),
)
define(
    "pcc.put_piece",
    "linear",
    parameters=("whole", "piece", "at", "dim", "index"),
    infer=lambda args, type_of: type_of(args["whole"]),
    spell=call_of("put_piece"),
    helper=PUT,
)
