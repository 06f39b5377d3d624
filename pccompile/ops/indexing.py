"""Reading and writing at given indices: reading is linear, its adjoint adds up what each entry was read for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pccompile.ir import DEVICE, Node, Ref, TensorType
from pccompile.ops.builder import Builder
from pccompile.ops.linear import linear
from pccompile.ops.registry import define, normal, rewrite


def _i(*entries: Any) -> torch.Tensor:
    return torch.tensor(entries)


linear(
    "aten.index_select.default",
    lambda b, n, e: b("aten.index_add.default", b.zeros(b.type(n["self"])), n["dim"], n["index"], e),
    lambda: (normal(4, 3), 0, _i(1, 1, 3)),
    wiring=False,
)
linear(
    "aten.gather.default",
    lambda b, n, e: b("aten.scatter_add.default", b.zeros(b.type(n["self"])), n["dim"], n["index"], e),
    lambda: (normal(4, 3), 1, _i([0, 1], [2, 2], [1, 0], [0, 0])),
    wiring=False,
)


def _embedding(b: Builder, n: Node, e: Ref) -> dict[str, Any]:
    rows = b.shape(n["weight"])[0]
    padding = n["padding_idx"]
    if n["sparse"]:
        return {"weight": b("pcc.sparse_rows", e, n["indices"], n["weight"], padding)}
    return {
        "weight": b("aten.embedding_dense_backward.default", e, n["indices"], rows, padding, n["scale_grad_by_freq"])
    }


define(
    "aten.embedding.default",
    "linear",
    _embedding,
    spell="F.embedding(indices, weight)",
    samples=(lambda: (normal(5, 3), _i([0, 4], [1, 1])), lambda: (normal(5, 3), _i(2, 0), 2)),
)

SPARSE_ROWS = '''
def sparse_rows(err, indices, table, padding):
    """The errors of the rows that were read, as a sparse tensor in the shape of the table."""
    rows, errors = indices.reshape(-1), err.reshape(-1, table.shape[1])
    if padding >= 0:
        rows, errors = rows[rows != padding], errors[rows != padding]
    return torch.sparse_coo_tensor(rows[None], errors, table.shape)
'''

define(
    "pcc.sparse_rows",
    "linear",
    parameters=("err", "indices", "table", "padding"),
    infer=lambda args, type_of: type_of(args["table"]),
    spell="sparse_rows(err, indices, table, padding)",
    helper=SPARSE_ROWS,
)


def _spell_index(a: Mapping[str, Any]) -> str:
    places = (":" if p is None else f"indices[{i}]" for i, p in enumerate(a["indices"]))
    return f"self[{', '.join(places)}]"


def _spell_put(a: Mapping[str, Any]) -> str:
    """torch.index_put takes no None."""
    function = "torch.ops.aten.index_put" if None in a["indices"] else "torch.index_put"
    return f"{function}(self, indices, values, accumulate)"


def _index(b: Builder, n: Node, e: Ref) -> dict[str, Ref]:
    return {"self": b("aten.index_put.default", b.zeros(b.type(n["self"])), n["indices"], e, True)}


def _index_put(b: Builder, n: Node, e: Ref) -> dict[str, Ref]:
    messages = {"values": b("aten.index.Tensor", e, n["indices"])} if n["values"] in b.wants else {}
    zero = b("aten.zeros.default", (), dtype=b.type(e).dtype, device=DEVICE)
    return messages | {"self": e if n["accumulate"] else b("aten.index_put.default", e, n["indices"], zero, False)}


define(
    "aten.index.Tensor",
    "linear",
    _index,
    spell=_spell_index,
    samples=(
        lambda: (normal(4, 3), [None, _i(0, 2, 2, 1)]),
        lambda: (normal(4, 3), [_i(3, 3, 0)]),
        lambda: (normal(2, 4, 3), [_i([0], [1]), None, _i(2, 2)]),
        lambda: (normal(4, 3, 2), [_i(3, 3, 0), _i(1, 1, 2)]),
    ),
)
rewrite("aten._unsafe_index.Tensor", lambda b, n: b("aten.index.Tensor", n["self"], n["indices"]))
define(
    "aten.index_put.default",
    "linear",
    _index_put,
    spell=_spell_put,
    samples=(
        lambda: (normal(4, 3), [None, _i(0, 2)], normal(4, 2)),
        lambda: (normal(4, 3), [_i(3, 3, 0)], normal(3), True),
        lambda: (normal(4, 3), [_i(3, 1)], normal(2, 1)),
    ),
)
rewrite(
    "aten._unsafe_index_put.default",
    lambda b, n: b("aten.index_put.default", n["self"], n["indices"], n["values"], n["accumulate"]),
)


def _index_add(b: Builder, n: Node, e: Ref) -> dict[str, Ref | None]:
    source = None
    if n["source"] in b.wants:
        source = b("aten.index_select.default", e, n["dim"], n["index"])
        source = source if n["alpha"] == 1 else b.mul(source, n["alpha"])
    return {"self": e, "source": source}


define(
    "aten.index_add.default",
    "linear",
    _index_add,
    samples=(
        lambda: (normal(4, 3), 1, _i(0, 0), normal(4, 2)),
        lambda: (normal(4, 3), 0, _i(3), normal(1, 3), {"alpha": 2}),
    ),
    adds_up="source",
)


def _written(keep: bool) -> Any:
    """Messages of a scatter: what was written over is not read any more, unless it was added to."""

    def rule(b: Builder, n: Node, e: Ref) -> dict[str, Ref | None]:
        place = (n["dim"], n["index"])
        messages: dict[str, Ref | None] = {"self": e if keep else b("aten.scatter.value", e, *place, 0)}
        if n.args.get("src") in b.wants:
            messages["src"] = b("aten.gather.default", e, *place)
        return messages

    return rule


PLACES = ([0, 1], [2, 0], [1, 0], [0, 2])
for name, source, keep in (
    ("aten.scatter.src", lambda: normal(4, 2), False),
    ("aten.scatter.value", lambda: 1.5, False),
    ("aten.scatter_add.default", lambda: normal(4, 2), True),
):
    define(
        name,
        "linear",
        _written(keep),
        samples=(lambda source=source: (normal(4, 3), 1, _i(*PLACES), source()),),
        adds_up="src" if keep else "",
    )


def _where(b: Builder, n: Node) -> tuple[Ref, ...]:
    """The places where a condition holds, an index tensor a dimension; their number is known when they are."""
    kinds = [t for t in n.type if isinstance(t, TensorType)] if isinstance(n.type, tuple) else []
    places = TensorType((kinds[0].shape[0], len(kinds)), torch.int64)
    b.add(Node(n.name, "aten.nonzero.default", {"self": n["condition"]}, places, n.where))
    return tuple(b("aten.select.int", Ref(n.name), 1, i) for i in range(len(kinds)))


rewrite("aten.where.default", _where, "context")


def _masked_select(b: Builder, n: Node, e: Ref) -> dict[str, Ref]:
    like = b("aten.expand.default", b.zeros(b.type(n["self"])), _joint(b, n))
    return {"self": b("aten.masked_scatter.default", like, n["mask"], e)}


def _joint(b: Builder, n: Node) -> Any:
    """The shape that a tensor and its mask broadcast to."""
    both = b("aten.logical_or.default", n["self"], n["mask"])
    return b.shape(both)


define(
    "aten.masked_select.default",
    "linear",
    _masked_select,
    samples=(
        lambda: (normal(4, 3), torch.tensor([True, False, True])),
        lambda: (normal(3), torch.tensor([[True, False, True], [False, True, True]])),
    ),
)


def _masked_scatter(b: Builder, n: Node, e: Ref) -> dict[str, Ref | None]:
    """Entry k of `source` went where the mask is true for the k-th time.

    Errors of places that kept their own entry are added up in one place more, which is then left out.
    """
    mask = b.expand_to(n["mask"], b.shape(n.name))
    messages: dict[str, Ref | None] = {"self": b("aten.masked_fill.Scalar", e, mask, 0)}
    if n["source"] in b.wants:
        count = b.numel(b.shape(n.name))
        true, flat = (b("aten.reshape.default", x, (count,)) for x in (mask, e))
        source = b.type(n["source"])
        entries = b.numel(source.shape)
        kth = b("aten.sub.Tensor", b("aten.cumsum.default", true, 0), 1)
        place = b("aten.where.ScalarOther", true, kth, entries)
        sent = b("aten.scatter_add.default", b.zeros(TensorType((entries + 1,), source.dtype)), 0, place, flat)
        messages["source"] = b.view(b("aten.slice.Tensor", sent, 0, 0, entries), source.shape)
    return messages


define(
    "aten.masked_scatter.default",
    "linear",
    _masked_scatter,
    samples=(
        lambda: (normal(4, 3), torch.tensor([True, False, True]), normal(3, 3)),
        lambda: (normal(4, 3), torch.tensor(False), normal(0, 3)),
        lambda: (normal(3), torch.tensor([[False, True, True], [False, False, True]]), normal(5)),
        lambda: (normal(2, 2), torch.zeros(2, 2, dtype=torch.bool), normal(1)),
    ),
)


def _pasted(read: str, places: tuple[str, ...]) -> Any:
    """Messages of an operation that pastes `src` over a view of `self`: the view's error, and all but that."""

    def rule(b: Builder, n: Node, e: Ref) -> dict[str, Ref | None]:
        place = [n[p] for p in places]
        return {
            "self": b(n.op, e, b.zeros(b.type(n["src"])), *place) if n["self"] in b.wants else None,
            "src": b(read, e, *place) if n["src"] in b.wants else None,
        }

    return rule


for name, read, places, sample in (
    (
        "slice_scatter",
        "slice.Tensor",
        ("dim", "start", "end", "step"),
        lambda: (normal(4, 6), normal(4, 2), 1, 1, 5, 2),
    ),
    ("select_scatter", "select.int", ("dim", "index"), lambda: (normal(4, 6), normal(4), 1, 2)),
    ("diagonal_scatter", "diagonal.default", ("offset", "dim1", "dim2"), lambda: (normal(4, 6), normal(4), 1)),
):
    define(f"aten.{name}.default", "linear", _pasted(f"aten.{read}", places), samples=(sample,))
