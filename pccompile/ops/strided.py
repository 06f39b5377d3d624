"""Reading and writing at strides: entries that lie so far apart in a tensor whose own entries lie side by side."""

from __future__ import annotations

from typing import Any

import torch

from pccompile.ir import DEVICE, Node, Ref
from pccompile.ops.builder import Builder
from pccompile.ops.registry import Message, define

PLACE = ("size", "stride", "storage_offset")


def _as_strided(a: Any) -> str:
    """The offset is one within the tensor's own entries, wherever they lie in memory."""
    first = "" if a["storage_offset"] in (0, None) else ".flatten()[storage_offset:]"
    return f"self.contiguous(){first}.as_strided(size, stride)"


def _read(b: Builder, n: Node, e: Ref) -> dict[str, Message]:
    """What several windows read gets the sum of their errors."""
    shape = b.shape(n["self"])
    entries = b("aten.arange.default", b.numel(shape), dtype=torch.int64, device=DEVICE)
    places = b("aten.as_strided.default", entries, *(n[p] for p in PLACE))
    count = (b.numel(b.shape(e)),)
    none = b("aten.zeros.default", (b.numel(shape),), dtype=b.type(e).dtype, device=DEVICE)
    return {"self": b.view(b("aten.index_add.default", none, 0, b.view(places, count), b.view(e, count)), shape)}


define(
    "aten.as_strided.default",
    "linear",
    _read,
    spell=_as_strided,
    samples=(
        lambda: (torch.randn(4, 6, dtype=torch.float64), (3, 4), (6, 1)),
        lambda: (torch.randn(4, 6, dtype=torch.float64), (5, 4), (1, 2), 3),
    ),
)

SCATTER = '''
def strided_scatter(x, src, size, stride, offset):
    """`x` with `src` in the place of the entries that lie `stride` apart from entry `offset` on."""
    result = x.clone(memory_format=torch.contiguous_format)
    result.view(-1)[offset:].as_strided(size, stride).copy_(src)
    return result
'''


def _write(b: Builder, n: Node, e: Ref) -> dict[str, Message]:
    """Of a write in place. torch's own rule for the operator is another, and written where a model calls that."""
    place = [n[p] for p in PLACE]
    return {
        "self": b(n.op, e, b.zeros(b.type(n["src"])), *place) if n["self"] in b.wants else None,
        "src": b("aten.as_strided.default", e, *place) if n["src"] in b.wants else None,
    }


define(
    "aten.as_strided_scatter.default",
    "linear",
    _write,
    spell=lambda a: (
        f"strided_scatter(self, src, size, stride, {0 if a['storage_offset'] is None else 'storage_offset'})"
    ),
    helper=SCATTER,
    samples=(
        lambda: (
            torch.randn(4, 6, dtype=torch.float64),
            torch.randn(3, 2, dtype=torch.float64),
            (3, 2),
            (7, 1),
            2,
        ),
    ),
)
